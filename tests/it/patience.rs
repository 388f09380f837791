//! Tasks that run for longer than RabbitMQ waits for an acknowledgement: run once, and not lost with their worker.
//!
//! The long form is the issue's: a minute of patience and a task of three. `make long` runs it.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::support::celery::Producer;
use crate::support::impatient::Impatient;
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;

/// How long everything takes in one form of the test.
struct Pace {
    patience: Duration,
    looks_every: Duration,
    task: Duration,
    settings: &'static str,
    handoff_after: &'static str,
}

const SHORT: Pace = Pace {
    patience: Duration::from_secs(6),
    looks_every: Duration::from_millis(500),
    task: Duration::from_secs(20),
    settings: "[worker]\nlease = \"5s\"\n",
    handoff_after: "1s",
};

/// With the worker's own defaults: a lease of a minute, custody after half a minute.
const LONG: Pace = Pace {
    patience: Duration::from_secs(60),
    looks_every: Duration::from_secs(60),
    task: Duration::from_secs(180),
    settings: "",
    handoff_after: "30s",
};

impl Pace {
    async fn node(&self) -> Impatient {
        Impatient::with(self.patience, self.looks_every).await
    }

    fn installed(&self, node: &Impatient) -> Longshore {
        let broker = format!("{}?handoff_after={}", node.url(), self.handoff_after);
        Longshore::with_settings(&format!("brokers = [\"{broker}\"]\n{}", self.settings))
    }

    /// Sends a ping that takes this pace's time; its id.
    async fn send(&self, node: &Impatient, queue: &str) -> String {
        let id = uuid::Uuid::now_v7().to_string();
        let producer = Producer::on(&node.url(), queue).await;
        producer
            .send("longshore.ping", &id, &json!({}), &json!({"sleep": format!("{}s", self.task.as_secs())}))
            .await;
        id
    }

    /// The record once the task is over.
    async fn over(&self, longshore: &Longshore, worker: &mut Worker, id: &str) -> Value {
        eventually(self.task * 3 + Duration::from_secs(60), "the task is over", async || {
            assert!(worker.ended().is_none(), "the worker ended");
            let record = record(longshore, id).await;
            record.get("outcome").is_some().then_some(record)
        })
        .await
    }

    async fn runs_once_and_keeps_its_channel(&self, queue: &str) {
        let node = self.node().await;
        let longshore = self.installed(&node);
        let mut worker = longshore.worker(&["-Q", queue, "-c", "1", "-n", queue]).await;
        let id = self.send(&node, queue).await;
        let record = self.over(&longshore, &mut worker, &id).await;
        assert_eq!((&record["status"], &record["attempts"]), (&json!("succeeded"), &json!(1)), "{record}");
        let log = worker.log();
        for broken in
            ["nothing could be fetched", "timed out", "does not answer", "bound again", "taken over"]
        {
            assert!(!log.contains(broken), "{log}");
        }
    }

    async fn outlives_its_worker_and_that_workers_disk(&self, queue: &str) {
        let node = self.node().await;
        let longshore = self.installed(&node);
        let mut worker = longshore.worker(&["-Q", queue, "-c", "1", "-n", "first"]).await;
        let id = self.send(&node, queue).await;
        eventually(Duration::from_secs(30), "it runs", async || {
            (record(&longshore, &id).await["status"] == "staging").then_some(())
        })
        .await;
        // Into custody.
        tokio::time::sleep(self.patience).await;
        worker.kill();
        drop(longshore);
        let next = self.installed(&node);
        let mut worker = next.worker(&["-Q", queue, "-c", "1", "-n", "second"]).await;
        let record = self.over(&next, &mut worker, &id).await;
        assert_eq!(record["status"], "succeeded", "{record}");
    }
}

async fn record(longshore: &Longshore, id: &str) -> Value {
    let said = longshore.run(&["task", "show", id, "--output", "json"]).await;
    serde_json::from_str(&said.stdout).unwrap_or_default()
}

/// Without it the others would show nothing.
#[tokio::test]
async fn whoever_holds_a_message_there_for_long_loses_his_channel() {
    let node = SHORT.node().await;
    let connection = Connection::connect(&node.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .queue_declare("held".into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), "held".into(), options, b"x", BasicProperties::default()).await.unwrap();
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("held".into(), "".into(), options, FieldTable::default()).await.unwrap();
    let _held = consumer.next().await.unwrap().unwrap();
    eventually(SHORT.patience * 10, "the channel is closed", async || {
        (!channel.status().connected()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_task_that_runs_for_longer_than_rabbitmq_waits_runs_once() {
    SHORT.runs_once_and_keeps_its_channel("once").await;
}

#[tokio::test]
async fn a_long_task_of_a_killed_worker_is_run_by_another_without_the_first_ones_disk() {
    SHORT.outlives_its_worker_and_that_workers_disk("again").await;
}

mod long {
    use super::LONG;

    #[tokio::test]
    async fn a_task_of_three_minutes_runs_once_where_rabbitmq_waits_one() {
        LONG.runs_once_and_keeps_its_channel("long-once").await;
    }

    #[tokio::test]
    async fn a_task_of_three_minutes_outlives_its_worker_where_rabbitmq_waits_one() {
        LONG.outlives_its_worker_and_that_workers_disk("long-again").await;
    }
}
