//! A worker in this process on an SQLite file of its own, with work that is queued first and then drained.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use figment::value::Value;
use longshore::broker::{self, Broker, BrokerUrl, OpenOptions, Submission};
use longshore::config::{self, FileChoice, Flag, Settings, Sources};
use longshore::lifecycle::LifePhase;
use longshore::task::{ContentType, Task};
use longshore::worker::Worker;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::{Outcome, process};

/// Tasks in one submission.
const BATCH: usize = 1_000;
/// No drain takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a drain took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    /// From the moment in which the worker was let go to the last settlement.
    pub(crate) took: Duration,
    /// Of all processors, for this whole process.
    pub(crate) processors: Duration,
}

/// A paused worker.
pub(crate) struct Rig {
    worker: Worker,
    broker: Broker,
    file: PathBuf,
    _folder: TempDir,
}

impl Rig {
    /// With so many lanes and every other setting at its default.
    pub(crate) async fn start(lanes: usize) -> Outcome<Self> {
        let folder = folder()?;
        let settings = settings(folder.path(), lanes)?;
        let broker = client(&settings).await?;
        let worker = Worker::start(&settings).await?;
        let file = folder.path().join("longshore.db");
        let rig = Self { worker, broker, file, _folder: folder };
        rig.pause().await;
        Ok(rig)
    }

    /// Queues `tasks`.
    pub(crate) async fn queue(&self, tasks: impl Iterator<Item = Task>) -> Outcome<()> {
        let mut tasks = tasks.peekable();
        while tasks.peek().is_some() {
            let batch = tasks.by_ref().take(BATCH);
            let batch = batch.map(|task| Submission::of(&task, ContentType::Json, 0)).collect();
            self.broker.submit.submit(batch).await?;
        }
        Ok(())
    }

    /// Lets the worker go until `count` of the queued tasks are settled. `look`: between two looks at the queue.
    pub(crate) async fn drain(&self, count: usize, look: Duration) -> Outcome<Drained> {
        let watch = Watch::open(&self.file)?;
        let before = process::processor_time()?;
        let begin = Instant::now();
        self.worker.lifecycle.resume();
        let end = tokio::task::spawn_blocking(move || watch.settled(count, look)).await??;
        let processors = process::processor_time()?.saturating_sub(before);
        self.pause().await;
        Ok(Drained { took: end - begin, processors })
    }

    /// Ends the worker.
    pub(crate) async fn end(self) -> Outcome<()> {
        self.worker.lifecycle.advance(LifePhase::Draining);
        if self.worker.ended().await { Ok(()) } else { Err("the worker left something unsettled".into()) }
    }

    /// Until nothing is at work any more, for longer than a fetch takes that was under way.
    async fn pause(&self) {
        self.worker.lifecycle.advance(LifePhase::Paused);
        let mut quiet = 0;
        while quiet < 10 {
            quiet = if self.worker.ledger.is_empty() { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A look at the queue that costs the worker next to nothing: messages have rising numbers and are removed when they are
/// settled, and the lowest number that is there is found at the edge of the table.
struct Watch {
    connection: Connection,
    first: i64,
}

impl Watch {
    fn open(file: &Path) -> Outcome<Self> {
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut watch = Self { connection, first: 0 };
        watch.first = watch.lowest()?.ok_or("nothing is queued")?;
        Ok(watch)
    }

    fn lowest(&self) -> Outcome<Option<i64>> {
        let mut lowest = self.connection.prepare_cached("SELECT min(id) FROM messages")?;
        Ok(lowest.query_row([], |row| row.get(0))?)
    }

    fn settled(&self, count: usize, look: Duration) -> Outcome<Instant> {
        let target = self.first + i64::try_from(count)?;
        let begin = Instant::now();
        while self.lowest()?.is_some_and(|lowest| lowest < target) {
            if begin.elapsed() > PATIENCE {
                return Err("the queue is not drained within two minutes".into());
            }
            std::thread::sleep(look);
        }
        Ok(Instant::now())
    }
}

/// A folder for state, on the disk that the build is on: an in-memory file system would make every sync free.
pub(crate) fn folder() -> Outcome<TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// The defaults, with state in `folder`.
pub(crate) fn settings(folder: &Path, lanes: usize) -> Outcome<Settings> {
    settings_with(folder, lanes, &[])
}

/// The same with these besides.
pub(crate) fn settings_with(
    folder: &Path,
    lanes: usize,
    more: &[(&'static str, Value)],
) -> Outcome<Settings> {
    let state = folder.to_str().ok_or("the build folder's path is no text")?;
    let flag = |key, value| Flag { flag: "bench", key, value };
    let mut flags =
        vec![flag("state_dir", Value::from(state)), flag("worker.concurrency", Value::from(lanes))];
    flags.extend(more.iter().map(|(key, value)| flag(key, value.clone())));
    let environment = std::env::vars().filter(|(name, _)| name == "DOCKER_HOST").collect();
    Ok(config::load(&Sources { file: FileChoice::None, environment, flags })?.settings)
}

/// The first broker, opened as one who only gives work and listens.
pub(crate) async fn client(settings: &Settings) -> Outcome<Broker> {
    let options = OpenOptions {
        queues: Vec::new(),
        worker: "bench".to_owned(),
        incarnation: "bench".to_owned(),
        lease: settings.worker.lease.get(),
        connect_timeout: settings.connect_timeout.get(),
        event_age: settings.events.age.get(),
        event_count: settings.events.count,
    };
    Ok(broker::open(&BrokerUrl::parse(settings.brokers[0].expose())?, &options).await?)
}
