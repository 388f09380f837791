//! A worker on several brokers, and workers of several versions on one.

use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::{Broker, Pool, Presence, Settlement, Submission};
use serde_json::{Value, json};

use crate::contract::dock::{Amqp, Dock, LONG, Sqlite, fetch_within, message, on, queue, settle, submit};
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

/// Puts a ping into a broker through the command line.
async fn ping(longshore: &Longshore, broker: &str, id: &str, args: Value) {
    let file = longshore.folder().join("ping.json");
    let task = json!({"v": 1, "id": id, "task": "longshore.ping", "args": args});
    std::fs::write(&file, task.to_string()).unwrap();
    longshore.ok(&["--broker", broker, "submit", "--file", file.to_str().unwrap()]).await;
}

async fn succeeds(longshore: &Longshore, id: &str, within: Duration) {
    eventually(within, &format!("{id} has succeeded"), async || {
        longshore.run(&["task", "show", id]).await.stdout.contains("succeeded").then_some(())
    })
    .await;
}

/// The addresses of a broker in a file and of a server, and a worker's installation on both, which records in the file.
fn on_both(redis: &Redis, folder: &tempfile::TempDir) -> (String, String, Longshore) {
    let (near, far) = (format!("sqlite://{}/near.db", folder.path().display()), redis.url());
    let settings =
        format!("brokers = [\"{near}\", \"{far}\"]\n[worker]\nlease = \"5s\"\nstaging_ahead = 1\n");
    (near, far, Longshore::with_settings(&settings))
}

#[tokio::test]
async fn while_one_broker_is_away_a_worker_goes_on_with_the_other_and_takes_it_up_again_when_it_is_back() {
    let mut redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (near, far, longshore) = on_both(&redis, &folder);
    let mut worker = longshore.worker(&["--concurrency", "2"]).await;
    for (broker, id) in [(&near, "near-before"), (&far, "far-before")] {
        ping(&longshore, broker, id, json!({})).await;
        succeeds(&longshore, id, Duration::from_secs(20)).await;
    }
    // One of its tasks runs while it goes away, and ends before it is back.
    ping(&longshore, &far, "far-during", json!({"sleep": 2})).await;
    eventually(Duration::from_secs(20), "it runs", async || {
        let said = longshore.ok(&["--broker", &far, "queue", "list", "--output", "json"]).await;
        let queues: Value = serde_json::from_str(&said).unwrap();
        (queues["queues"][0]["leased"] == 1).then_some(())
    })
    .await;
    redis.server().kill();
    for n in 0..5 {
        let id = format!("near-{n}");
        ping(&longshore, &near, &id, json!({})).await;
        succeeds(&longshore, &id, Duration::from_secs(10)).await;
    }
    succeeds(&longshore, "far-during", Duration::from_secs(20)).await;
    assert!(worker.ended().is_none(), "{}", worker.log());
    redis.server().start_again().await;
    ping(&longshore, &far, "far-after", json!({})).await;
    succeeds(&longshore, "far-after", Duration::from_secs(40)).await;
    // What ended meanwhile is taken off, and was run once.
    eventually(Duration::from_secs(40), "nothing is left at it", async || {
        let said = longshore.run(&["--broker", &far, "queue", "list", "--output", "json"]).await;
        let queues: Value = serde_json::from_str(&said.stdout).ok()?;
        let queue = &queues["queues"][0];
        (queue["ready"] == 0 && queue["leased"] == 0 && queue["delayed"] == 0).then_some(())
    })
    .await;
    let record: Value =
        serde_json::from_str(&longshore.ok(&["task", "show", "far-during", "--output", "json"]).await)
            .unwrap();
    assert_eq!(record["attempts"], 1, "{record}");
}

#[tokio::test]
async fn the_brokers_of_a_worker_share_its_room_and_neither_starves() {
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (near, far, longshore) = on_both(&redis, &folder);
    for n in 0..4 {
        ping(&longshore, &near, &format!("near-{n}"), json!({"sleep": 0.5})).await;
        ping(&longshore, &far, &format!("far-{n}"), json!({"sleep": 0.5})).await;
    }
    let _worker = longshore.worker(&["--concurrency", "1"]).await;
    let mut most = 0;
    eventually(Duration::from_secs(60), "all have ended", async || {
        let mut leased = 0;
        let mut waiting = 0;
        for broker in [&near, &far] {
            let said = longshore.ok(&["--broker", broker, "queue", "list", "--output", "json"]).await;
            let queues: Value = serde_json::from_str(&said).unwrap();
            leased += queues["queues"][0]["leased"].as_u64().unwrap();
            waiting += queues["queues"][0]["ready"].as_u64().unwrap();
        }
        most = most.max(leased);
        (leased + waiting == 0).then_some(())
    })
    .await;
    // One that runs, one that is staged, and one that is being settled.
    assert!((1..=3).contains(&most), "{most} were taken at once by a worker with room for two");
    for id in ["near-3", "far-3"] {
        succeeds(&longshore, id, Duration::from_secs(5)).await;
    }
}

/// A worker of the next version, as far as others see it.
fn next_version() -> Presence {
    Presence {
        worker: "newer".to_owned(),
        incarnation: "1".to_owned(),
        host: "here".to_owned(),
        version: "99.0.0".to_owned(),
        kinds: vec!["longshore.ping".to_owned(), "longshore.later".to_owned()],
        envelope: 2,
        queues: vec![queue("work")],
        lanes: 1,
        busy: 0,
        pool: Pool::default(),
        disks: Vec::new(),
        phase: "running".to_owned(),
        seen: Timestamp::now(),
        deadline: Timestamp::now() + Duration::from_secs(600),
    }
}

/// So many messages of the next version: half of them a later envelope, half of them a kind that is not known here.
fn of_next_version(from: usize, count: usize) -> Vec<Submission> {
    let body = |n: usize| match n % 2 {
        0 => json!({"v": 2, "id": format!("n{n}"), "task": "longshore.ping", "arguments": []}),
        _ => json!({"v": 1, "id": format!("n{n}"), "task": "longshore.later"}),
    };
    let of =
        |n: usize| Submission { body: body(n).to_string().into(), ..on("work", message(&format!("n{n}"))) };
    (from..from + count).map(of).collect()
}

async fn letters(broker: &Broker) -> usize {
    broker.dead.list(None, 100).await.unwrap().len()
}

/// What a later version sent is left to the worker that knows it while that lives, and parked when it is gone.
async fn a_later_version_is_left_to_those_who_know_it(dock: &impl Dock) {
    let settings = "[worker]\nrelease_damping = \"300ms\"\npresence_interval = \"1s\"\nqueues = [\"work\"]\n";
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite://{}/records.db", folder.path().display());
    let longshore = Longshore::with_settings(&format!(
        "brokers = [\"{}\"]\nstore = \"{store}\"\n{settings}",
        dock.url().expose()
    ));
    // Not the usual queue: on RabbitMQ that stands for Celery's.
    let newer = dock.client("newer", &["work"], LONG).await;
    newer.fleet.announce(&next_version()).await.unwrap();
    submit(&newer, of_next_version(0, 10)).await;
    let older = longshore.worker(&["--name", "older"]).await;
    // The older one meets all of them, some more than once, before the newer one is there.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(letters(&newer).await, 0, "{}", older.log());
    let mut left = 10;
    eventually(Duration::from_secs(30), "the newer one gets them all", async || {
        for delivery in fetch_within(&newer, 10, Duration::from_millis(500)).await {
            settle(delivery, Settlement::Ack).await;
            left -= 1;
        }
        (left == 0).then_some(())
    })
    .await;
    assert_eq!(letters(&newer).await, 0);
    newer.fleet.leave("newer").await.unwrap();
    submit(&newer, of_next_version(10, 2)).await;
    eventually(Duration::from_secs(20), "they are parked", async || {
        (letters(&newer).await == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_later_version_on_sqlite_is_left_to_those_who_know_it() {
    a_later_version_is_left_to_those_who_know_it(&Sqlite::start().await).await;
}

#[tokio::test]
async fn a_later_version_on_redis_is_left_to_those_who_know_it() {
    a_later_version_is_left_to_those_who_know_it(&Redis::start().await).await;
}

#[tokio::test]
async fn a_later_version_on_nats_is_left_to_those_who_know_it() {
    a_later_version_is_left_to_those_who_know_it(&Nats::start().await).await;
}

#[tokio::test]
async fn a_later_version_on_rabbitmq_is_left_to_those_who_know_it() {
    a_later_version_is_left_to_those_who_know_it(&Amqp::start().await).await;
}
