//! The command beside workers at both ends, servers that go away, and signals; and RabbitMQ, where some of it is less.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use longshore::broker::{Settlement, Submission};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{moved, native, run};
use crate::contract::dock::{Amqp, Dock, LONG, Sqlite, fetch_all, message, queue, settle, submit};
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

/// An installation whose broker and store are at this address.
fn at(url: &str) -> Longshore {
    Longshore::with_settings(&format!("brokers = [\"{url}\"]\n[worker]\npresence_interval = \"1s\"\n"))
}

/// Puts so many pings into the queue that each takes some milliseconds.
async fn load(longshore: &Longshore, from: usize, count: usize) {
    let file = longshore.folder().join("ping.json");
    for n in from..from + count {
        let ping = json!({"v": 1, "id": format!("t{n}"), "task": "longshore.ping", "priority": n % 10, "args": {"sleep": 0.02}});
        std::fs::write(&file, ping.to_string()).unwrap();
        longshore.ok(&["submit", "--file", file.to_str().unwrap()]).await;
    }
}

/// The tasks that ended well there, each with its attempts.
async fn succeeded(longshore: &Longshore) -> Vec<(String, u64)> {
    let said =
        longshore.ok(&["task", "list", "--status", "succeeded", "--limit", "1000", "--output", "json"]).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    let text = |task: &Value| task["id"].as_str().unwrap().to_owned();
    said["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| (text(task), task["attempts"].as_u64().unwrap()))
        .collect()
}

async fn counted(longshore: &Longshore, args: &[&str]) -> Value {
    let said = longshore.run(&[&["queue", "move"], args, &["--output", "json"]].concat()).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    serde_json::from_str(&said.stdout).unwrap()
}

#[tokio::test]
async fn every_task_runs_once_while_workers_on_redis_and_nats_take_what_is_moved() {
    let (near, far) = (Redis::start().await, Nats::start().await);
    every_task_runs_once(near.url(), far.url()).await;
}

#[tokio::test]
async fn every_task_runs_once_while_workers_on_sqlite_and_redis_take_what_is_moved() {
    let (near, far) = (Sqlite::start().await, Redis::start().await);
    every_task_runs_once(near.url().expose(), far.url()).await;
}

async fn every_task_runs_once(near: String, far: String) {
    const TASKS: usize = 60;
    let (here, there) = (at(&near), at(&far));
    load(&here, 0, TASKS).await;
    let (_one, _other) =
        tokio::join!(here.worker(&["--concurrency", "1"]), there.worker(&["--concurrency", "2"]));
    // To and fro, while both work.
    let mut moves = 0;
    for (from, to) in [(&near, &far), (&far, &near), (&near, &far)] {
        let told = counted(&here, &[from, to, "--queue", "default", "--limit", "15"]).await;
        assert_eq!((&told["duplicates"], &told["unsettled"]), (&json!(0), &json!(0)), "{told}");
        moves += told["moved"].as_u64().unwrap();
    }
    assert!(moves > 0, "there was nothing left to move");
    let ran = eventually(Duration::from_secs(60), "all have ended", async || {
        let all = [succeeded(&here).await, succeeded(&there).await].concat();
        (all.len() >= TASKS).then_some(all)
    })
    .await;
    let names: BTreeSet<&String> = ran.iter().map(|(name, _)| name).collect();
    assert_eq!((names.len(), ran.len()), (TASKS, TASKS), "none ran at both: {ran:?}");
    assert!(ran.iter().all(|(_, attempts)| *attempts == 1), "{ran:?}");
}

#[tokio::test]
async fn a_broker_that_is_away_for_a_while_is_waited_for() {
    let (near, mut far) = (Sqlite::start().await, Redis::start().await);
    submit(&near.one().await, (0..20).map(|n| native(&format!("t{n}"))).collect()).await;
    let moving = super::transfer(&near, &far).await;
    far.server().kill();
    let (tally, ()) = tokio::join!(run(&moving), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        far.server().start_again().await;
    });
    assert_eq!(tally.moved, 20);
    fetch_all(&far.one().await, 20, 20).await;
}

#[tokio::test]
async fn a_signal_ends_it_behind_what_is_on_its_way_and_the_same_command_goes_on() {
    let (near, mut far) = (Sqlite::start().await, Redis::start().await);
    submit(&near.one().await, (0..300).map(|n| native(&format!("t{n}"))).collect()).await;
    let (from, to) = (near.url().expose(), far.url());
    let longshore = Longshore::new();
    let arguments = ["queue", "move", &from, &to, "--queue", "default", "--output", "json"];
    // It stands still at the other broker when the signal comes.
    far.server().freeze().await;
    let mut command = longshore.command(&arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let frozen = command.spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(frozen.id()).unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill(pid, Signal::SIGINT).unwrap();
    far.server().thaw();
    let output = tokio::task::spawn_blocking(move || frozen.wait_with_output().unwrap()).await.unwrap();
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    let said = longshore.run(&arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    fetch_all(&far.one().await, 300, 100).await;
    assert!(near.one().await.admin.queues().await.unwrap().iter().all(|queue| queue.ready == 0));
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_its_remedy() {
    let redis = Redis::start().await;
    let (url, longshore) = (redis.url(), Longshore::new());
    let refused = async |args: &[&str]| {
        let said = longshore.run(&[&["queue", "move"], args].concat()).await;
        assert_eq!(said.code, Some(2), "{said:?}");
        said.stderr
    };
    let told = refused(&[&url, &url, "--queue", "default"]).await;
    assert!(told.contains("name another --to-queue"), "{told}");
    let told = refused(&[&url, "memory:x", "--queue", "default"]).await;
    assert!(told.contains("broker of one process"), "{told}");
    longshore.ok(&["--broker", &url, "queue", "pause", "default"]).await;
    let told = refused(&[&url, &url, "--queue", "default", "--to-queue", "other"]).await;
    assert!(told.contains("is paused at") && told.contains("queue resume default"), "{told}");
    longshore.ok(&["--broker", &url, "queue", "resume", "default"]).await;
    submit(&redis.one().await, vec![native("a")]).await;
    let told = counted(&longshore, &[&url, &url, "--queue", "default", "--to-queue", "other"]).await;
    assert_eq!((&told["moved"], &told["to_queue"]), (&json!(1), &json!("other")));
}

#[tokio::test]
async fn celerys_messages_leave_rabbitmq_with_their_bytes_and_headers_and_what_is_delayed_stays() {
    let (rabbit, redis) = (Amqp::start().await, Redis::start().await);
    let here = rabbit.one().await;
    let headers =
        [("task", json!("girder_worker.docker.tasks.docker_run")), ("id", json!("c")), ("retries", json!(1))];
    let headers = headers.map(|(name, value)| (name.to_owned(), value));
    let body: &[u8] = br#"[[], {}, {"callbacks": null}]"#;
    let sent = Submission { body: body.to_vec().into(), headers: headers.clone().into(), ..message("c") };
    let later =
        Submission { not_before: Some(jiff::Timestamp::now() + Duration::from_secs(600)), ..native("later") };
    submit(&here, vec![sent, native("plain"), later]).await;
    // Records of RabbitMQ's workers are kept elsewhere.
    let records = Sqlite::start().await;
    let moving = longshore::transfer::Transfer {
        from: rabbit.client("mover", &["default"], LONG).await,
        to: redis.client("mover", &[], LONG).await,
        away: queue("default"),
        queue: queue("default"),
        records: records.store().await,
        limit: None,
        limits: longshore::task::Limits::default(),
    };
    let tally = run(&moving).await;
    assert_eq!((tally.moved, tally.unsettled), (2, 0), "{tally:?}");
    let there = redis.one().await;
    for delivery in fetch_all(&there, 2, 10).await {
        if delivery.body == body {
            let mut kept = delivery.headers.clone();
            assert_eq!(kept.remove("longshore-hop"), Some(json!(1)));
            assert_eq!(kept.remove("longshore-header-order"), Some(json!("lost")));
            assert_eq!(kept, headers.clone().into());
        }
        settle(delivery, Settlement::Release { after: Duration::ZERO }).await;
    }
    // And back, where a duplicate cannot be told but by the records.
    let back = longshore::transfer::Transfer {
        from: redis.client("mover", &["default"], LONG).await,
        to: rabbit.client("mover", &[], LONG).await,
        away: queue("default"),
        queue: queue("back"),
        records: redis.store().await,
        limit: None,
        limits: longshore::task::Limits::default(),
    };
    assert_eq!(run(&back).await, moved(2));
    let again = rabbit.client("two", &["back"], LONG).await;
    for delivery in fetch_all(&again, 2, 10).await {
        assert_eq!(delivery.hop(), 2);
        settle(delivery, Settlement::Ack).await;
    }
}
