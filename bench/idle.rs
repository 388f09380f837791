//! What a worker costs that has nothing to do, and what one running container adds: the built `longshore worker`, as a
//! person starts it, on an SQLite file of its own.
//!
//! The limit of the time until it is ready is the time in which the same binary says its version.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use longshore::broker::{Broker, Command, Submission};
use longshore::events::{EventData, EventFilter, EventStart};
use longshore::task::{ContentType, TaskId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::containers;
use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};
use crate::support::{Outcome, process, rig};

const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(10);
/// As long as four heartbeats.
const LONG_WATCH: Duration = Duration::from_secs(60);
/// Four heartbeats, at which it also looks for what a lost ring would have told; and the runtime's timer wheel turns
/// about as often on its way to each of them; a beat may reach over the border of two moments.
const HEARTBEATS: f64 = 12.0;
/// Wake-ups within it are one moment.
const MOMENT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);
/// The first container makes what all others use, too.
const FURTHER: usize = 8;

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin("idle", "a worker with nothing to do (less is better)");
    let [mut ready, mut resident, mut wakeups, mut moments, mut first, mut further, mut limit] =
        [const { Vec::new() }; 7];
    let [mut python_ready, mut python_resident, mut python_wakeups] = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        limit.push(says_its_version().await?);
        let round = round().await?;
        ready.push(round.ready);
        resident.push(round.resident / 1_024.0);
        wakeups.push(round.wakeups);
        moments.push(round.moments);
        first.push(round.first);
        further.push(round.further);
        if let Some(idle) = peer.idle(SETTLE, WATCH).await? {
            python_ready.push(idle.ready);
            python_resident.push(idle.resident / 1_024.0);
            python_wakeups.push(idle.wakeups);
        }
    }
    let row = Row::new("ready after, seconds", Figure::of(&ready)).limit(Figure::of(&limit));
    answer.add(row.python(Figure::if_any(&python_ready)).below(0.3));
    let row = Row::new("resident memory, MiB", Figure::of(&resident));
    answer.add(row.python(Figure::if_any(&python_resident)).below(25.0));
    let row = Row::new("wake-ups per second", Figure::of(&wakeups));
    answer.add(row.python(Figure::if_any(&python_wakeups)));
    answer.add(Row::new("moments of a minute with a wake-up", Figure::of(&moments)).below(HEARTBEATS));
    answer.add(Row::new("the first running container adds, KiB", Figure::of(&first)));
    answer.add(Row::new("each further one adds, KiB", Figure::of(&further)).below(200.0));
    Ok(answer.end())
}

struct Round {
    ready: f64,
    resident: f64,
    wakeups: f64,
    moments: f64,
    first: f64,
    further: f64,
}

async fn round() -> Outcome<Round> {
    let folder = rig::folder()?;
    let begin = Instant::now();
    let mut worker = start(folder.path())?;
    ready_line(&mut worker).await?;
    let ready = begin.elapsed().as_secs_f64();
    let id = worker.id().ok_or("the worker ended")?;
    tokio::time::sleep(SETTLE).await;
    let resident = process::resident(id)?;
    let (wakeups, moments) = watch(id).await?;
    let broker = rig::client(&rig::settings(folder.path(), 1)?).await?;
    let one = run_containers(&broker, 1).await?;
    let with_one = process::resident(id)?;
    let more = run_containers(&broker, FURTHER).await?;
    let with_all = process::resident(id)?;
    cancel(&broker, one.into_iter().chain(more)).await?;
    end(worker).await?;
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let further = (with_all - with_one) / FURTHER as f64;
    Ok(Round { ready, resident, wakeups, first: with_one - resident, moments, further })
}

/// Wake-ups of its threads per second, and how many moments of a minute had one.
async fn watch(id: u32) -> Outcome<(f64, f64)> {
    let begin = Instant::now();
    let first = process::sleeps(id)?;
    let (mut before, mut moments) = (first.clone(), 0.0);
    while begin.elapsed() < LONG_WATCH {
        tokio::time::sleep(MOMENT).await;
        if process::wakeups_since(id, &before)? > 0.0 {
            moments += 1.0;
            before = process::sleeps(id)?;
        }
    }
    Ok((process::wakeups_since(id, &first)? / LONG_WATCH.as_secs_f64(), moments))
}

fn start(state: &Path) -> Outcome<Child> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(["worker", "--concurrency", &(FURTHER + 1).to_string()]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LONGSHORE_")) {
        command.env_remove(name);
    }
    command
        .env("LONGSHORE_STATE_DIR", state)
        .env("LONGSHORE_WORKER__DISK_HIGH_WATER", "1")
        .env_remove("TMPDIR");
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
}

async fn ready_line(worker: &mut Child) -> Outcome<()> {
    let output = worker.stdout.take().ok_or("invariant: its output is piped")?;
    let line = tokio::time::timeout(PATIENCE, BufReader::new(output).lines().next_line()).await??;
    match line {
        Some(line) if line.contains("ready") => Ok(()),
        Some(line) => Err(format!("the worker said {line:?} instead of being ready").into()),
        None => Err("the worker ended before it was ready".into()),
    }
}

async fn says_its_version() -> Outcome<f64> {
    let begin = Instant::now();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
    let said = command.arg("--version").stdin(Stdio::null()).output().await?;
    if !said.status.success() {
        return Err("longshore does not say its version".into());
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Starts `count` containers that sleep and waits until they all run, and a little longer.
async fn run_containers(broker: &Broker, count: usize) -> Outcome<Vec<TaskId>> {
    let mut events = broker.topic.follow(EventFilter::default(), EventStart::Now).await?;
    let args = json!({
        "image": "busybox:latest",
        "pull": "never",
        "container_args": ["sleep", "600"],
        // As the first process of its container, sleep hears nothing else.
        "options": { "network_mode": "none", "stop_signal": "SIGKILL" },
    });
    let mut tasks = Vec::new();
    for _ in 0..count {
        let task = containers::task(&args)?;
        broker.submit.submit(vec![Submission::of(&task, ContentType::Json, 0)]).await?;
        tasks.push(task.id);
    }
    let all_run = async {
        let mut running = 0;
        while running < count {
            let event = events.next().await.ok_or("the events ended")??;
            match &event.data {
                EventData::Running { .. } => running += 1,
                EventData::Failed { error, .. } => return Err(error.to_string().into()),
                _ => {}
            }
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(PATIENCE, all_run).await??;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(tasks)
}

async fn cancel(broker: &Broker, tasks: impl Iterator<Item = TaskId>) -> Outcome<()> {
    let mut events = broker.topic.follow(EventFilter::default(), EventStart::Now).await?;
    let mut left = 0;
    for task in tasks {
        broker.topic.command(Command::Cancel { task, reason: "it was measured".to_owned() }).await?;
        left += 1;
    }
    let all_gone = async {
        while left > 0 {
            let event = events.next().await.ok_or("the events ended")??;
            left -= u32::from(event.kind().is_terminal());
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(PATIENCE, all_gone).await?
}

async fn end(mut worker: Child) -> Outcome<()> {
    let id = i32::try_from(worker.id().ok_or("the worker ended too early")?)?;
    kill(Pid::from_raw(id), Signal::SIGTERM)?;
    let ended = tokio::time::timeout(PATIENCE, worker.wait()).await??;
    if ended.success() { Ok(()) } else { Err(format!("the worker ended with {ended}").into()) }
}
