//! What passes between a worker and its broker: while nothing happens only signs of life, and while tasks talk more than
//! anybody reads still every end.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::docker::adopt::Quay;
use crate::support::nats::Nats;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

/// How often a worker says that it lives, and prolongs what it holds.
const EVERY: Duration = Duration::from_secs(2);
/// How long it is listened to.
const WINDOW: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(60);

fn settings(broker: &str) -> String {
    let (every, lease) = (EVERY.as_secs(), EVERY.as_secs() * 4);
    format!(
        "brokers = [\"{broker}\"]\n[worker]\nconcurrency = 4\nlease = \"{lease}s\"\npresence_interval = \"{every}s\"\n\
         upkeep_interval = \"1h\"\n"
    )
}

/// What a server was told, by what it means.
type Told = BTreeMap<String, usize>;

/// A server that can be overheard.
trait Overheard {
    /// Everything that is sent to it for a while.
    async fn overhear(&self) -> Told;
}

impl Overheard for Nats {
    async fn overhear(&self) -> Told {
        let ear = self.connection().await;
        let mut all = ear.subscribe(">").await.unwrap();
        ear.flush().await.unwrap();
        let mut told = Told::new();
        let listening = async {
            while let Some(message) = all.next().await {
                let meanings = [
                    ("_INBOX.", ""),
                    ("$KV.longshore_workers.", "it lives"),
                    ("$KV.longshore_records.", "its lease, in the record"),
                    ("$JS.ACK.", "its lease"),
                    ("$JS.API.CONSUMER.MSG.NEXT.", "it waits for work"),
                ];
                let known = meanings.iter().find(|(start, _)| message.subject.starts_with(start));
                count(&mut told, known.map_or(message.subject.as_str(), |(_, meaning)| meaning));
            }
        };
        let _ = tokio::time::timeout(WINDOW, listening).await;
        told
    }
}

impl Overheard for Redis {
    async fn overhear(&self) -> Told {
        let mut ear = BufReader::new(TcpStream::connect(self.address()).await.unwrap());
        ear.write_all(b"MONITOR\r\n").await.unwrap();
        let mut told = Told::new();
        let listening = async {
            let mut line = String::new();
            while ear.read_line(&mut line).await.unwrap() > 0 {
                let meanings = [
                    ("+ok", ""),
                    // Each script is told once, when it is first called.
                    ("\"script\" \"load\"", ""),
                    // What a script does at the server.
                    (" lua]", ""),
                    ("longshore:{workers}", "it lives"),
                    ("longshore:result", "its lease, in the record"),
                    ("xreadgroup", "it waits for work"),
                    ("longshore:queue:", "its lease, or a look"),
                ];
                let line = std::mem::take(&mut line).to_lowercase();
                let known = meanings.iter().find(|(mark, _)| line.contains(mark));
                count(&mut told, known.map_or(line.trim(), |(_, meaning)| meaning));
            }
        };
        let _ = tokio::time::timeout(WINDOW, listening).await;
        told
    }
}

/// What may be told, and how often at most.
type Most<'a> = &'a [(&'a str, usize)];

/// What means nothing is none.
fn count(told: &mut Told, meaning: &str) {
    if !meaning.is_empty() {
        *told.entry(meaning.to_owned()).or_default() += 1;
    }
}

/// Asserts that nothing else was told, and nothing more often than that.
fn only(mut told: Told, most: Most<'_>) {
    let all = told.clone();
    for (meaning, most) in most {
        let count = told.remove(*meaning).unwrap_or_default();
        assert!(count <= *most, "{meaning:?} was told {count} times, and not at most {most}: {all:?}");
    }
    assert!(told.is_empty(), "what is no sign of life was told: {told:?} of {all:?}");
}

/// Beats of something that happens every so often, and one more at an edge.
fn beats(every: Duration) -> usize {
    usize::try_from(WINDOW.as_millis() / every.as_millis()).unwrap() + 1
}

async fn only_heartbeats(server: &impl Overheard, broker: &str, (idle, running): (Most<'_>, Most<'_>)) {
    let quay = Quay::new(&settings(broker)).await;
    let _worker = quay.worker(&[]).await;
    eventually(SOON, "the worker stands still", async || {
        let told = server.overhear().await;
        (!told.is_empty() && told.values().sum::<usize>() < 40).then_some(())
    })
    .await;
    only(server.overhear().await, idle);
    let sleeps = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
                        "container_args": ["-c", "echo up; sleep 600"]});
    let task = quay.submit(sleeps, json!([])).await;
    quay.says(&task, "up").await;
    only(server.overhear().await, &[idle, running].concat());
}

#[tokio::test]
async fn an_idle_worker_and_a_running_container_tell_nats_only_that_they_live() {
    let nats = Nats::start().await;
    let (lives, waits) = (beats(EVERY), 4);
    let idle = [("it lives", lives), ("it waits for work", waits)];
    let running = [("its lease", lives), ("its lease, in the record", lives)];
    only_heartbeats(&nats, &nats.url(), (&idle, &running)).await;
}

#[tokio::test]
async fn an_idle_worker_and_a_running_container_tell_redis_only_that_they_live() {
    let redis = Redis::start().await;
    let lives = beats(EVERY);
    // A blocking read lasts ten seconds, and a look stands before each.
    let idle = [("it lives", lives), ("it waits for work", 2), ("its lease, or a look", 2 + lives)];
    let running = [("its lease, in the record", lives)];
    only_heartbeats(&redis, &redis.url(), (&idle, &running)).await;
}

mod long {
    use futures_util::TryStreamExt;
    use jiff::Timestamp;
    use longshore::events::{Event, EventData, EventFilter, EventKind, EventStart, Progress};
    use longshore::task::Fence;

    use super::{Duration, Nats, Redis, StreamExt};
    use crate::contract::dock::{Dock, queue, task};

    const LINES: u64 = 1_000_000;
    const BATCH: u64 = 2_000;
    const PATIENCE: Duration = Duration::from_secs(120);

    fn event(name: &str, number: u64, data: EventData) -> Event {
        let (task, queue) = (task(name), queue("default"));
        Event { task, queue, fence: Fence(7), number, time: Timestamp::now(), data }
    }

    /// A reader that stands still while another task tells a million lines, and one that comes afterwards, both hear how
    /// the first task ended.
    async fn a_million_lines_evict_no_end(dock: &impl Dock) {
        let broker = dock.one().await;
        let ends = EventFilter { kinds: vec![EventKind::Succeeded], ..EventFilter::default() };
        let mut away = broker.topic.follow(EventFilter::default(), EventStart::Oldest).await.unwrap();
        broker
            .topic
            .publish(&[event("quiet", 0, EventData::Succeeded { exit_code: Some(0) })])
            .await
            .unwrap();
        for first in (0..LINES).step_by(usize::try_from(BATCH).unwrap()) {
            let said =
                |number: u64| Progress { message: Some(format!("line {number}")), ..Progress::default() };
            let lines: Vec<Event> = (first..first + BATCH)
                .map(|number| event("loud", number, EventData::Progress(said(number))))
                .collect();
            broker.topic.publish(&lines).await.unwrap();
        }
        let end = EventData::Succeeded { exit_code: Some(0) };
        broker.topic.publish(&[event("loud", LINES, end)]).await.unwrap();
        let kept = broker.topic.replay(ends, EventStart::Oldest).await.unwrap();
        let kept: Vec<Event> =
            tokio::time::timeout(PATIENCE, kept.try_collect()).await.expect("it ends").unwrap();
        assert_eq!(kept.iter().map(|event| event.task.as_str()).collect::<Vec<_>>(), ["quiet", "loud"]);
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let next = tokio::time::timeout(PATIENCE, away.next()).await.expect("it goes on");
            let event = next.expect("it does not end").unwrap();
            if event.kind() == EventKind::Succeeded {
                heard.push(event.task.to_string());
            }
        }
        assert_eq!(heard, ["quiet", "loud"]);
    }

    #[tokio::test]
    async fn a_million_lines_evict_no_end_from_nats() {
        a_million_lines_evict_no_end(&Nats::start().await).await;
    }

    #[tokio::test]
    async fn a_million_lines_evict_no_end_from_redis() {
        a_million_lines_evict_no_end(&Redis::start().await).await;
    }
}
