//! How soon a container's progress reaches a subscriber at the broker, over NATS and over Redis, while eight containers talk:
//! through their pipes, the worker's bus and the server. Asked by `progress`.
//!
//! Every container writes ten reports and ten lines of log a second by itself. The lines that count are written into the
//! same pipes by a thread of this process: a container could only tell the time by a program that takes longer than they do.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use longshore::broker::{Broker, Command, Submission};
use longshore::config::Address;
use longshore::events::{EventData, EventFilter, EventKind, EventStart};
use longshore::lifecycle::LifePhase;
use longshore::task::{Arg, ContentType, Task, TaskId};
use longshore::worker::Worker;
use serde_json::json;

use crate::brokers::{Kind, Server};
use crate::support::report::{Answer, Figure, Row};
use crate::support::{Outcome, rig};

const CONTAINERS: usize = 8;
/// Lines of one round.
const LINES: usize = 1_600;
/// Between two of them: with what the container itself says each task stays below the rate at which reports are put together.
const EVERY: Duration = Duration::from_millis(5);
/// What a container says until it is ended.
const SCRIPT: &str = r#"exec 3>$0; while :; do echo busy; echo '{"message": "busy"}' >&3; sleep 0.1; done"#;
/// In milliseconds.
const MIDDLE: f64 = 5.0;
const LATE: f64 = 50.0;
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks.
pub(crate) async fn ask(rounds: u32, answer: &mut Answer) -> Outcome<()> {
    for kind in [Kind::Nats, Kind::Redis] {
        let [mut middle, mut late] = [const { Vec::new() }; 2];
        for _ in 0..rounds {
            let delays = round(kind).await?;
            middle.push(crate::progress::at(&delays, 50));
            late.push(crate::progress::at(&delays, 99));
        }
        let case = |which: &str| format!("{kind:?}'s subscriber, {CONTAINERS} busy containers, {which}");
        answer.add(Row::new(case("median"), Figure::of(&middle)).below(MIDDLE));
        answer.add(Row::new(case("99 of 100"), Figure::of(&late)).below(LATE));
    }
    Ok(())
}

/// How long each line took, sorted.
async fn round(kind: Kind) -> Outcome<Vec<Duration>> {
    let server = Server::start(kind).await?;
    let folder = rig::folder()?;
    let mut settings = rig::settings(folder.path(), CONTAINERS)?;
    settings.brokers = vec![Address::new(server.url())];
    settings.store = Address::new(server.url());
    let broker = rig::client(&settings).await?;
    let worker = Worker::start(&settings).await?;
    let tasks = begin(&broker).await?;
    let delays = measure(&broker, folder.path()).await;
    for task in tasks {
        broker.topic.command(Command::Cancel { task, reason: "measured".to_owned() }).await?;
    }
    worker.lifecycle.advance(LifePhase::Draining);
    if !worker.ended().await {
        return Err("the worker left something unsettled".into());
    }
    delays
}

/// Submits the containers and waits until all of them run.
async fn begin(broker: &Broker) -> Outcome<Vec<TaskId>> {
    let started = EventFilter { kinds: vec![EventKind::Running], ..EventFilter::default() };
    let mut started = broker.topic.follow(started, EventStart::Now).await?;
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
        "container_args": ["-c", SCRIPT, {"$": "ProgressPipe"}]});
    let mut tasks = Vec::new();
    for _ in 0..CONTAINERS {
        let mut task = Task::new("docker_run", longshore::task::ArgMap::new());
        for (name, value) in args.as_object().ok_or("no arguments")? {
            task.args.insert(name.clone(), Arg::from_value(value.clone(), name)?);
        }
        broker.submit.submit(vec![Submission::of(&task, ContentType::Json, 0)]).await?;
        tasks.push(task.id);
    }
    for _ in 0..CONTAINERS {
        tokio::time::timeout(PATIENCE, started.next()).await?.ok_or("the events ended")??;
    }
    Ok(tasks)
}

async fn measure(broker: &Broker, state: &Path) -> Outcome<Vec<Duration>> {
    let mut pipes = Vec::new();
    fifos_below(state, &mut pipes)?;
    if pipes.len() != CONTAINERS {
        return Err(format!("{} pipes of {CONTAINERS} containers were found", pipes.len()).into());
    }
    let told = EventFilter { kinds: vec![EventKind::Progress], ..EventFilter::default() };
    let mut events = broker.topic.follow(told, EventStart::Now).await?;
    let writing = tokio::task::spawn_blocking(move || write_lines(&pipes));
    let hearing = async {
        let mut heard = vec![None; LINES];
        let mut left = LINES;
        while left > 0 {
            let event = events.next().await.ok_or("the events ended")??;
            let at = Instant::now();
            let EventData::Progress(progress) = event.data else { continue };
            let number = progress.message.and_then(|text| text.parse::<usize>().ok());
            if let Some(slot @ None) = number.and_then(|number| heard.get_mut(number)) {
                *slot = Some(at);
                left -= 1;
            }
        }
        Outcome::Ok(heard)
    };
    let (written, heard) = tokio::time::timeout(PATIENCE, async { tokio::join!(writing, hearing) }).await?;
    let (written, heard) = (written??, heard?);
    let both = written.iter().zip(heard);
    let mut delays: Vec<Duration> =
        both.filter_map(|(written, heard)| Some(heard?.duration_since(*written))).collect();
    delays.sort_unstable();
    Ok(delays)
}

/// Writes the lines that count, into one pipe after the other; when each write was begun.
fn write_lines(pipes: &[PathBuf]) -> Outcome<Vec<Instant>> {
    let open = |pipe: &PathBuf| OpenOptions::new().write(true).open(pipe);
    let mut pipes: Vec<File> = pipes.iter().map(open).collect::<Result<_, _>>()?;
    let mut written = Vec::with_capacity(LINES);
    for number in 0..LINES {
        std::thread::sleep(EVERY);
        let pipe = &mut pipes[number % CONTAINERS];
        written.push(Instant::now());
        pipe.write_all(format!("{{\"message\": \"{number}\"}}\n").as_bytes())?;
    }
    Ok(written)
}

fn fifos_below(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_fifo() {
            found.push(path);
        } else if kind.is_dir() {
            fifos_below(&path, found)?;
        }
    }
    Ok(())
}
