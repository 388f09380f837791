//! How soon a line of progress is an event: from its being written to a container's progress pipe to its arrival at a
//! sink of the task's bus. A thread of this process writes, as the container would.
//!
//! The limit is a bare FIFO with a thread that waits in `read`. `subject_progress` goes on to subscribers at brokers.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore::cancel::CancelScope;
use longshore::crew::Crew;
use longshore::error::TaskError;
use longshore::events::reporter::{LogLimits, Reporter};
use longshore::events::{Bus, EventData, EventSink, Notice, SinkError};
use longshore::handler::{Attempt, FenceGate, Identity};
use longshore::pipeline::{Pipeline, Request, Settings};
use longshore::task::{Arg, ArgMap, Fence, Task};
use nix::sys::stat::Mode;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::Outcome;
use crate::support::report::{Answer, Figure, Row};

/// Lines of one round.
const LINES: u32 = 500;
/// Between two lines: whoever reads has gone to sleep by then.
const PAUSE: Duration = Duration::from_millis(2);
/// Of a line's way, in milliseconds.
const BAR: f64 = 5.0;

/// Asks.
pub(crate) async fn ask(rounds: u32) -> Outcome<Answer> {
    let mut answer =
        Answer::begin("progress", "from a line in a progress pipe to its event (ms; less is better)");
    let [mut middle, mut late, mut bare_middle, mut bare_late] = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        let bare = tokio::task::spawn_blocking(bare).await??;
        bare_middle.push(at(&bare, 50));
        bare_late.push(at(&bare, 99));
        let ours = through_the_pipeline().await?;
        middle.push(at(&ours, 50));
        late.push(at(&ours, 99));
    }
    for (case, ours, bare) in [("median", middle, bare_middle), ("99 of 100", late, bare_late)] {
        answer.add(Row::new(case, Figure::of(&ours)).limit(Figure::of(&bare)).below(BAR));
    }
    crate::subject_progress::ask(rounds, &mut answer).await?;
    Ok(answer.end())
}

/// Milliseconds that so many of a hundred took at most.
pub(crate) fn at(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |delay| delay.as_secs_f64() * 1e3)
}

async fn through_the_pipeline() -> Outcome<Vec<Duration>> {
    let folder = tempfile::tempdir()?;
    let (sender, events) = mpsc::unbounded_channel();
    let bus = Bus::new(vec![Arc::new(Arrivals(sender))], 1e9, Crew::new());
    let pipe = Arg::from_value(json!({"$": "ProgressPipe"}), "args")?;
    let request = Request { container_args: vec![pipe], ..Request::default() };
    let (mut pipeline, plan) = Pipeline::stage(request, &attempt(bus), &Settings::new(folder.path())).await?;
    pipeline.open()?;
    let argument = Path::new(&plan.arguments[0]).to_owned();
    let mount = plan.mounts.iter().find(|mount| mount.target == argument).ok_or("no pipe was made")?;
    let fifo = OpenOptions::new().write(true).open(&mount.source)?;
    let delays = tokio::task::spawn_blocking(move || write_lines(fifo, events)).await??;
    pipeline.container_ended().await?;
    Ok(delays)
}

/// What a bare reader adds to a line.
fn bare() -> Outcome<Vec<Duration>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let (sender, events) = mpsc::unbounded_channel();
    let reader = path.clone();
    let reading = std::thread::spawn(move || -> std::io::Result<()> {
        let mut fifo = File::open(reader)?;
        let mut line = [0; 256];
        while fifo.read(&mut line)? > 0 {
            // Whoever counts may have given up.
            let _ = sender.send(Instant::now());
        }
        Ok(())
    });
    let delays = write_lines(OpenOptions::new().write(true).open(&path)?, events)?;
    reading.join().map_err(|_| "the reader panicked")??;
    Ok(delays)
}

/// Writes lines one by one and waits for each; how long each took, sorted.
fn write_lines(mut fifo: File, mut arrived: mpsc::UnboundedReceiver<Instant>) -> Outcome<Vec<Duration>> {
    let mut delays = Vec::new();
    for n in 0..LINES {
        std::thread::sleep(PAUSE);
        let written = Instant::now();
        fifo.write_all(format!("{{\"current\": {n}}}\n").as_bytes())?;
        let at = arrived.blocking_recv().ok_or("nobody reads any more")?;
        delays.push(at.duration_since(written));
    }
    delays.sort_unstable();
    Ok(delays)
}

/// An attempt that tells `bus`.
fn attempt(bus: Bus) -> Attempt {
    struct Open;
    #[async_trait]
    impl FenceGate for Open {
        async fn check(&self) -> Result<(), TaskError> {
            Ok(())
        }
    }
    let task = Arc::new(Task::new("docker_run", ArgMap::new()));
    let report = Reporter::new(task.clone(), Fence(1), bus, LogLimits::default());
    let here: Arc<str> = Arc::from("bench");
    let identity =
        Identity { worker: here.clone(), instance: here.clone(), incarnation: here.clone(), host: here };
    Attempt::new(task, (1, Fence(1)), CancelScope::new(), report, (Box::new(Open), identity))
}

/// Notes when each progress event reached it.
struct Arrivals(mpsc::UnboundedSender<Instant>);

#[async_trait]
impl EventSink for Arrivals {
    fn name(&self) -> &'static str {
        "arrivals"
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        for _ in notices.iter().filter(|notice| matches!(notice.event.data, EventData::Progress(_))) {
            // Whoever counts may have given up.
            let _ = self.0.send(Instant::now());
        }
        Ok(())
    }
}
