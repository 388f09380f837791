//! How long progress takes from a write into the container's pipe to the event stream and to the document of the job. Asked
//! by `girder`, of the real Girder: its rate of updates is the limit.
//!
//! The pipe is written to by this process in the container's place, in the middle of the job's interval as often as not.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use longshore::cancel::CancelScope;
use longshore::crew::Crew;
use longshore::error::TaskError;
use longshore::events::reporter::{LogLimits, Reporter};
use longshore::events::subject::Subject;
use longshore::events::{Bus, EventData, EventFilter, EventStart};
use longshore::girder::job::{JobSink, Steering};
use longshore::girder::{Client, Connection, Session, Settings as Girder, Site};
use longshore::handler::{Attempt, FenceGate, Identity};
use longshore::http::{Anything, Judge, Verify};
use longshore::pipeline::{MountKind, Pipeline, Request, Settings};
use longshore::store::PhaseTimes;
use longshore::task::{ArgMap, Fence, Secret, Task, TaskId};
use serde_json::{Value, json};

use crate::support::Outcome;
use crate::support::report::{Answer, Figure, Row};
use crate::support::rig;

/// Writes of one round.
const WRITES: usize = 60;
/// Between two of them: no divisor of the job's interval.
const EVERY: Duration = Duration::from_millis(130);
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks, a round for each of `jobs`: what the test route of Girder answers.
pub(crate) async fn ask(api_url: &str, jobs: &[Value], answer: &mut Answer) -> Outcome<()> {
    let mut all: [Vec<f64>; 2] = Default::default();
    for job in jobs {
        let [events, document] = round(api_url, job).await?;
        all[0].extend(events);
        all[1].extend(document);
    }
    answer.add(Row::new("progress to the event stream (ms)", Figure::of(&all[0])).below(5.0));
    answer.add(Row::new("progress to the job's document (ms)", Figure::of(&all[1])).below(600.0));
    Ok(())
}

/// Milliseconds from each write to the events and to the document.
async fn round(api_url: &str, job: &Value) -> Outcome<[Vec<f64>; 2]> {
    let (folder, crew) = (rig::folder()?, Crew::new());
    let broker = rig::client(&rig::settings(folder.path(), 1)?).await?;
    let site = Arc::new(Site::plain(Girder::default()));
    let sinks = JobSink::new(site.clone(), Arc::new(Nobody), crew.clone());
    let bus =
        Bus::new(vec![Arc::new(Subject::new(broker.topic.clone())), Arc::new(sinks)], 50.0, crew.clone());
    let task = Arc::new(task(api_url, job)?);
    let filter = EventFilter { task: Some(task.id.clone()), ..EventFilter::default() };
    let mut events = broker.topic.follow(filter, EventStart::Now).await?;

    let attempt = attempt(&task, bus);
    attempt.report().staging(1, "bench", PhaseTimes::default());
    let connectors = vec![serde_json::from_value(json!({"$": "ProgressPipe"}))?];
    let request = Request { stream_connectors: connectors, ..Request::default() };
    let settings = Settings::new(folder.path().join("work"));
    let (mut pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await?;
    pipeline.open()?;
    let fifo = plan.mounts.iter().find(|mount| mount.kind == MountKind::Fifo);
    let fifo = fifo.ok_or("no pipe was made")?.source.clone();

    let writing = tokio::task::spawn_blocking(move || write(&fifo));
    let told = async {
        let mut told = Vec::with_capacity(WRITES);
        while told.len() < WRITES {
            let event = events.next().await.ok_or("the events ended")??;
            if let EventData::Progress(progress) = event.data {
                let reached = place(progress.current);
                told.resize(reached.max(told.len()), Instant::now());
            }
        }
        Outcome::Ok(told)
    };
    let (written, told, shown) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(writing, told, shown(&site, api_url, job)) })
            .await?;
    let (written, told, shown) = (written??, told?, shown?);
    pipeline.container_ended().await?;
    let after = |seen: &[Instant]| {
        written.iter().zip(seen).map(|(at, seen)| seen.duration_since(*at).as_secs_f64() * 1e3).collect()
    };
    Ok([after(&told), after(&shown)])
}

/// Writes into the pipe as a container does; when each write was begun.
fn write(fifo: &std::path::Path) -> Outcome<Vec<Instant>> {
    let mut pipe = std::fs::OpenOptions::new().write(true).open(fifo)?;
    let mut written = Vec::with_capacity(WRITES);
    for n in 1..=WRITES {
        written.push(Instant::now());
        pipe.write_all(format!("{{\"current\": {n}, \"total\": {WRITES}}}\n").as_bytes())?;
        std::thread::sleep(EVERY);
    }
    Ok(written)
}

/// When the job's document told of each write, or of a later one.
async fn shown(site: &Arc<Site>, api_url: &str, job: &Value) -> Outcome<Vec<Instant>> {
    let id = job["id"].as_str().ok_or("the job has no id")?;
    let token = job["spec"]["headers"]["Girder-Token"].as_str().map(Secret::new);
    let connection = Connection { api_url: api_url.to_owned(), token, session: Session::default() };
    let judge: Arc<dyn Judge> = Arc::new(Anything);
    let client: Client = site.client(&connection, &judge)?;
    let mut shown = Vec::with_capacity(WRITES);
    while shown.len() < WRITES {
        let document = client.get_json(&format!("job/{id}"), &[]).await?;
        let reached = place(document["progress"]["current"].as_f64());
        shown.resize(reached.max(shown.len()), Instant::now());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(shown)
}

/// How many writes a progress stands for.
fn place(current: Option<f64>) -> usize {
    (1..=WRITES).take_while(|n| current.is_some_and(|current| current >= count(*n))).count()
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn task(api_url: &str, job: &Value) -> Outcome<Task> {
    let spec = &job["spec"];
    let girder = json!({"api_url": api_url, "token": job["token"], "job": {
        "url": spec["url"], "method": spec["method"], "headers": spec["headers"], "log": true,
    }});
    Ok(Task { girder: Some(serde_json::from_value(girder)?), ..Task::new("bench", ArgMap::new()) })
}

fn attempt(task: &Arc<Task>, bus: Bus) -> Attempt {
    let fence = Fence::after(Fence(0), jiff::Timestamp::now());
    let report = Reporter::new(task.clone(), fence, bus, LogLimits::default());
    let here: Arc<str> = Arc::from("bench");
    let identity =
        Identity { worker: here.clone(), instance: here.clone(), incarnation: here.clone(), host: here };
    Attempt::new(task.clone(), (1, fence), CancelScope::new(), report, (Box::new(Open), identity))
}

/// A fence that always holds.
struct Open;

#[async_trait]
impl FenceGate for Open {
    async fn check(&self) -> Result<(), TaskError> {
        Ok(())
    }
}

/// Whom the job cannot cancel.
struct Nobody;

impl Steering for Nobody {
    fn cancel(&self, _: &TaskId, _: &str) {}
    fn is_live(&self, _: &TaskId, _: Fence) -> bool {
        true
    }
    fn judge(&self, _: &Arc<Task>) -> Arc<dyn Judge> {
        Arc::new(Anything)
    }
    fn laxest(&self, _: &Task) -> Verify {
        Verify::Strictly
    }
}
