//! Workers of one RabbitMQ that are killed at random while they work: nothing is lost, and every caller is answered.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, Consumer};
use rand::RngExt;
use serde_json::{Value, json};

use crate::support::celery::{Peer, Producer};
use crate::support::docker::engine;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::process::tied_to_this_thread;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const TASKS: usize = 200;
const KILLS: usize = 12;
const WORKERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(100);

/// A worker of plain Celery beside ours, which answers "python"; dropping it kills it.
struct Python(std::process::Child);

impl Python {
    async fn beside(rabbit: &RabbitMq) -> Python {
        let peer = Peer::installed().await;
        let command = peer.python(&["kombu_redis.py", &rabbit.url(), "work", "celery"]);
        let folder = command.get_current_dir().unwrap();
        let mut command = tied_to_this_thread(&command);
        command.current_dir(folder).env("C_FORCE_ROOT", "1").stdout(std::process::Stdio::null());
        Python(command.spawn().unwrap())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the results of tasks arrive, as long as the connection lives.
async fn answers(rabbit: &RabbitMq) -> (Connection, Consumer) {
    let connection = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .queue_declare("answers".into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let answers =
        channel.basic_consume("answers".into(), "".into(), options, FieldTable::default()).await.unwrap();
    (connection, answers)
}

#[tokio::test]
async fn what_a_killed_worker_held_is_run_by_others_also_by_a_python_worker_on_its_queue() {
    engine().await;
    let rabbit = RabbitMq::vhost().await;
    let (_connection, mut answers) = answers(&rabbit).await;
    let settings = format!(
        "brokers = [\"{}?handoff_after=200ms\"]\n[worker]\nlease = \"3s\"\npoison_limit = 100\n",
        rabbit.url()
    );
    // Each with a disk of its own, which dies with it.
    let fleet = async |n: usize| {
        let longshore = Longshore::with_settings(&settings);
        let worker = longshore.worker(&["-c", "2", "-n", &format!("w{n}")]).await;
        (longshore, worker)
    };
    let _python = Python::beside(&rabbit).await;
    let (first, mut second) = (fleet(1).await, fleet(2).await);
    let producer = Producer::on(&rabbit.url(), "celery").await.answered_in("answers");
    let mut waiting = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let id = uuid::Uuid::now_v7().to_string();
        let kwargs =
            json!({"image": "busybox:latest", "pull_image": false, "container_args": ["sleep", "0.2"]});
        producer.send("girder_worker.docker.tasks.docker_run", &id, &json!({}), &kwargs).await;
        waiting.insert(id);
    }
    for n in 3..5 {
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(300..1_200))).await;
        second.1.kill();
        second = fleet(n).await;
    }
    let (_disk, mut dies) = first;
    dies.kill();
    let mut by_python = 0;
    eventually(PATIENCE, "every caller is answered", async || {
        while let Some(Some(Ok(answer))) = answers.next().now_or_never() {
            let result: Value = serde_json::from_slice(&answer.data).unwrap();
            assert_eq!(result["status"], "SUCCESS", "{result}");
            by_python += usize::from(result["result"] == "python");
            waiting.remove(result["task_id"].as_str().unwrap());
        }
        waiting.is_empty().then_some(())
    })
    .await;
    assert!((1..40).contains(&by_python), "{by_python} of 40 went to the Python worker");
}

#[tokio::test]
async fn two_hundred_tasks_outlive_workers_that_are_killed_at_random() {
    let (rabbit, redis) = (RabbitMq::vhost().await, Redis::start().await);
    let (_connection, mut answers) = answers(&rabbit).await;

    let producer = Producer::on(&rabbit.url(), "celery").await.answered_in("answers");
    for _ in 0..TASKS {
        let id = uuid::Uuid::now_v7().to_string();
        let sleep = format!("{}ms", rand::rng().random_range(10..400));
        producer.send("longshore.ping", &id, &json!({}), &json!({"sleep": sleep})).await;
    }

    // Custody soon and leases short, so that both ways back from a dead worker are taken.
    let settings = format!(
        "brokers = [\"{}?handoff_after=200ms\"]\nstore = \"{}\"\n[worker]\nlease = \"3s\"\npoison_limit = 100\nupkeep_interval = \"1s\"\n[celery]\nresult_backend = \"rpc://\"\n",
        rabbit.url(),
        redis.url()
    );
    let installed: Vec<Longshore> = (0..WORKERS).map(|_| Longshore::with_settings(&settings)).collect();
    let mut workers = Vec::new();
    for (n, longshore) in installed.iter().enumerate() {
        workers.push(longshore.worker(&["-c", "4", "-n", &format!("w{n}")]).await);
    }
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut gather = async |seen: &mut BTreeMap<String, Vec<String>>| {
        while let Some(Some(Ok(answer))) = answers.next().now_or_never() {
            let result: Value = serde_json::from_slice(&answer.data).unwrap();
            let id = result["task_id"].as_str().unwrap().to_owned();
            seen.entry(id).or_default().push(result["status"].as_str().unwrap().to_owned());
        }
    };
    for _ in 0..KILLS {
        let pause = rand::rng().random_range(200..1_200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let n = rand::rng().random_range(0..WORKERS);
        workers[n].kill();
        workers[n] = installed[n].worker(&["-c", "4", "-n", &format!("w{n}")]).await;
        gather(&mut seen).await;
    }
    eventually(PATIENCE, "every caller is answered", async || {
        gather(&mut seen).await;
        (seen.len() == TASKS).then_some(())
    })
    .await;
    let bad: Vec<_> = seen.iter().filter(|(_, told)| told.iter().any(|status| status != "SUCCESS")).collect();
    assert!(bad.is_empty(), "{bad:?}");
    // Nothing is left behind that would run again.
    eventually(PATIENCE, "every queue is empty", async || {
        let said = installed[0].run(&["queue", "list", "--output", "json"]).await;
        let said: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        let queues = said["queues"].as_array().cloned().unwrap_or_default();
        let full = |queue: &Value| ["ready", "leased", "delayed"].iter().any(|held| queue[*held] != 0);
        (!queues.is_empty() && !queues.iter().any(full)).then_some(())
    })
    .await;
}
