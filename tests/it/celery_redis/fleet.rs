//! Workers of both kinds on one queue, and workers that die.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore::broker::{BrokerUrl, Submission};
use longshore::store::{self, Status};
use longshore::task::{Arg, ArgMap, ContentType, QueueName, Task};
use rand::RngExt;
use redis::AsyncCommands;
use serde_json::{Value, json};

use super::dock::CeleryRedis;
use super::peer::{peer, worker};
use crate::contract::dock::{Dock, LONG};
use crate::support::docker::engine;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;

const WITHIN: Duration = Duration::from_secs(90);

fn settings(dock: &CeleryRedis) -> String {
    let url = dock.redis.url();
    format!(
        "brokers = [\"celery+{url}\"]\n[celery]\nresult_backend = \"{url}\"\n[worker]\nlease = \"2s\"\nqueues = [\"celery\"]\n"
    )
}

/// The result that stands in Redis for a task, once it is there.
async fn result(connection: &mut redis::aio::MultiplexedConnection, id: &str) -> Option<Value> {
    let stored: Option<String> = connection.get(format!("celery-task-meta-{id}")).await.unwrap();
    stored.map(|text| serde_json::from_str(&text).unwrap())
}

fn ids(sent: &Value) -> Vec<String> {
    sent.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_python_worker_and_longshore_share_a_queue_without_loss() {
    engine().await;
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&settings(&dock));
    let _ours = longshore.worker(&["-c", "2"]).await;
    let _theirs = worker(&dock.redis.url(), "celery").await;
    let mut priorities = Vec::new();
    for n in 0..24 {
        priorities.push(["0", "3", "6", "9"][n % 4]);
    }
    let sent = ids(&peer(&dock.redis.url(), &[&["send", "celery"][..], &priorities].concat()).await);
    let mut connection = dock.redis.connection().await;
    let mut by = BTreeSet::new();
    for id in &sent {
        let result =
            eventually(WITHIN, "every task has a result", async || result(&mut connection, id).await).await;
        assert_eq!(result["status"], "SUCCESS", "{result}");
        by.insert(result["result"].as_str().unwrap_or("longshore").to_owned());
    }
    assert_eq!(by, BTreeSet::from(["longshore".to_owned(), "python".to_owned()]), "one did all the work");
    let held = eventually(WITHIN, "nothing is held any more", async || {
        let held: i64 = connection.hlen("unacked").await.unwrap();
        (held == 0).then_some(())
    });
    held.await;
}

#[tokio::test]
async fn what_a_killed_worker_held_is_run_by_a_python_worker_or_another_one_beside_it() {
    engine().await;
    let dock = CeleryRedis::start().await;
    // What a process found of its predecessor's and did not come to adopt is others' after that window.
    let settings = format!("{}poison_limit = 100\nadopt_window = \"5s\"\n", settings(&dock));
    let installed = [Longshore::with_settings(&settings), Longshore::with_settings(&settings)];
    let _theirs = worker(&dock.redis.url(), "celery").await;
    let mut ours = Vec::new();
    for (n, longshore) in installed.iter().enumerate() {
        ours.push(longshore.worker(&["-c", "2", "-n", &format!("w{n}")]).await);
    }
    let sent = ids(&peer(&dock.redis.url(), &[&["send", "celery"][..], &["0"; 40]].concat()).await);
    for n in [0, 1, 0] {
        let lives = Duration::from_millis(rand::rng().random_range(200..900));
        tokio::time::sleep(lives).await;
        ours[n].kill();
        ours[n] = installed[n].worker(&["-c", "2", "-n", &format!("w{n}")]).await;
    }
    // The last one is not started again.
    ours[0].kill();
    let mut connection = dock.redis.connection().await;
    for id in &sent {
        let result =
            eventually(WITHIN, "every task has a result", async || result(&mut connection, id).await).await;
        assert_eq!(result["status"], "SUCCESS", "{result}");
    }
}

#[tokio::test]
async fn a_task_of_a_killed_worker_is_held_until_the_next_one_ends_it() {
    engine().await;
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&settings(&dock));
    let mut dies = longshore.worker(&["-c", "1"]).await;
    let mut connection = dock.redis.connection().await;
    let sent = ids(&peer(&dock.redis.url(), &["send", "celery", "0", "0", "0"]).await);
    eventually(WITHIN, "the worker holds them", async || {
        let held: i64 = connection.hlen("unacked").await.unwrap();
        (held > 0).then_some(())
    })
    .await;
    dies.kill();
    let mut waiting: i64 = connection.hlen("unacked").await.unwrap();
    waiting += connection.llen::<_, i64>("celery").await.unwrap();
    let mut ended = 0;
    for id in &sent {
        ended += i64::from(result(&mut connection, id).await.is_some());
    }
    assert!(waiting + ended >= 3, "{waiting} are there and {ended} ended: something is lost");
    let _next = longshore.worker(&["-c", "1"]).await;
    for id in &sent {
        let result = eventually(WITHIN, "it has a result", async || result(&mut connection, id).await).await;
        assert_eq!(result["status"], "SUCCESS", "{result}");
    }
}

#[tokio::test]
async fn a_celery_task_waits_for_its_time_never_starts_when_it_expired_and_can_be_revoked_meanwhile() {
    engine().await;
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&settings(&dock));
    let _worker = longshore.worker(&["-c", "1"]).await;
    let seen = peer(&dock.redis.url(), &["timed", "celery"]).await;
    assert_eq!(
        (&seen["later"]["state"], &seen["later"]["error"]),
        (&json!("SUCCESS"), &json!(null)),
        "{seen}"
    );
    assert!(seen["later"]["after"].as_f64().unwrap() >= 3.0, "{seen}");
    for (which, why) in [("expired", "expired"), ("revoked", "revoked")] {
        let error = json!(format!("TaskRevokedError: {why}"));
        assert_eq!((&seen[which]["state"], &seen[which]["error"]), (&json!("REVOKED"), &error), "{seen}");
    }
}

/// A task of no effect that takes a moment.
fn ping() -> Task {
    let args = ArgMap::from([("sleep".to_owned(), Arg::Text("30ms".to_owned()))]);
    Task { queue: QueueName::new("celery").unwrap(), ..Task::new("longshore.ping", args) }
}

#[tokio::test]
async fn over_random_kills_no_task_is_lost() {
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&format!("{}poison_limit = 100\n", settings(&dock)));
    let producer = dock.client("producer", &[], LONG).await;
    let tasks: Vec<Task> = (0..200).map(|_| ping()).collect();
    let messages = tasks.iter().map(|task| Submission::of(task, ContentType::Json, 0)).collect();
    producer.submit.submit(messages).await.unwrap();
    for _ in 0..6 {
        let mut worker = longshore.worker(&["-c", "4"]).await;
        // At any moment: while it takes, runs, records or settles.
        let lives = Duration::from_millis(rand::rng().random_range(0..400));
        tokio::time::sleep(lives).await;
        worker.kill();
    }
    let _last = longshore.worker(&["-c", "4"]).await;
    let url = BrokerUrl::parse(&dock.redis.url()).unwrap();
    let store = store::open(&url, &dock.options("test", &[], LONG)).await.unwrap();
    for task in &tasks {
        eventually(WITHIN, "every task has ended well", async || {
            let found = store.load(&task.id).await.unwrap()?;
            (found.record.status == Status::Succeeded).then_some(())
        })
        .await;
    }
    let mut connection = dock.redis.connection().await;
    eventually(WITHIN, "nothing is held any more", async || {
        let held: i64 = connection.hlen("unacked").await.unwrap();
        (held == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_queue_of_a_celery_site_is_listed_paused_and_purged() {
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&settings(&dock));
    drop(longshore.worker(&["-c", "1"]).await);
    longshore.ok(&["queue", "pause", "celery"]).await;
    let sent = ids(&peer(&dock.redis.url(), &["send", "celery", "0", "9"]).await);
    let tasks = longshore.ok(&["task", "list"]).await;
    assert!(sent.iter().all(|id| tasks.contains(&id[..8])), "{tasks}");
    let explained = longshore.ok(&["task", "explain", &sent[0]]).await;
    assert!(explained.contains("paused"), "{explained}");
    let queues = longshore.ok(&["queue", "list"]).await;
    assert!(queues.contains("celery") && queues.contains("paused"), "{queues}");
    longshore.ok(&["queue", "purge", "celery", "--yes"]).await;
    let mut connection = dock.redis.connection().await;
    let left: i64 = connection.llen("celery").await.unwrap();
    assert_eq!(left, 0);
}
