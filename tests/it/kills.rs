//! Workers of one RabbitMQ that are killed at random while they work: nothing is lost, and every caller is answered.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rand::RngExt;
use serde_json::{Value, json};

use crate::support::celery::Producer;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const TASKS: usize = 200;
const KILLS: usize = 12;
const WORKERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(100);

#[tokio::test]
async fn two_hundred_tasks_outlive_workers_that_are_killed_at_random() {
    let (rabbit, redis) = (RabbitMq::vhost().await, Redis::start().await);
    let connection = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .queue_declare("answers".into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut answers =
        channel.basic_consume("answers".into(), "".into(), options, FieldTable::default()).await.unwrap();

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
