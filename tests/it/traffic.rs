//! What a worker sends to RabbitMQ while nothing happens, counted by the server's own trace.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};

use crate::support::celery::Producer;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;

const PATIENCE: Duration = Duration::from_secs(40);

/// Every message that anybody publishes on a virtual host, by where it goes.
struct Trace {
    _connection: Connection,
    heard: Consumer,
}

impl Trace {
    async fn of(rabbit: &RabbitMq) -> Trace {
        rabbit.trace();
        let connection = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let own = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("trace".into(), own, FieldTable::default()).await.unwrap();
        let options = QueueBindOptions::default();
        let (queue, exchange, key) = ("trace".into(), "amq.rabbitmq.trace".into(), "publish.#".into());
        channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await.unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let heard = channel.basic_consume("trace".into(), "".into(), options, FieldTable::default()).await;
        Trace { _connection: connection, heard: heard.unwrap() }
    }

    /// How many came since the last call, by exchange and routing key.
    fn published(&mut self) -> BTreeMap<String, usize> {
        let mut published = BTreeMap::new();
        while let Some(Some(Ok(told))) = self.heard.next().now_or_never() {
            let headers = told.properties.headers().as_ref().unwrap().inner();
            let text = |value: &AMQPValue| match value {
                AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
                other => format!("{other:?}"),
            };
            let keys = match &headers["routing_keys"] {
                AMQPValue::FieldArray(keys) => keys.as_slice().iter().map(text).collect::<Vec<_>>().join(","),
                other => text(other),
            };
            *published.entry(format!("{}/{keys}", text(&headers["exchange_name"]))).or_insert(0) += 1;
        }
        published
    }

    /// Counts for that long, from now on.
    async fn over(&mut self, time: Duration) -> BTreeMap<String, usize> {
        self.published();
        tokio::time::sleep(time).await;
        self.published()
    }
}

#[tokio::test]
async fn an_idle_worker_publishes_nothing_and_a_running_task_only_the_renewals_of_its_custody() {
    let rabbit = RabbitMq::vhost().await;
    let mut trace = Trace::of(&rabbit).await;
    // Presence is said each second, and a lease lasts eight.
    let settings = format!(
        "brokers = [\"{}?handoff_after=500ms\"]\n[worker]\nlease = \"8s\"\npresence_interval = \"1s\"\n",
        rabbit.url()
    );
    let longshore = Longshore::with_settings(&settings);
    let mut worker = longshore.worker(&["-c", "1", "-n", "quay"]).await;
    let listed = async || longshore.ok(&["worker", "list"]).await.contains("quay").then_some(());
    eventually(PATIENCE, "it has announced itself", listed).await;
    assert_eq!(trace.over(Duration::from_secs(5)).await, BTreeMap::new(), "an idle worker published");
    // What it said at first has lapsed by its own words, and it is there all the same.
    assert!(listed().await.is_some());

    let producer = Producer::on(&rabbit.url(), "celery").await;
    producer.send("longshore.ping", "runs", &json!({}), &json!({"sleep": "300s"})).await;
    let status = async || {
        let said = longshore.run(&["task", "show", "runs", "--output", "json"]).await;
        serde_json::from_str::<Value>(&said.stdout).unwrap_or_default()["status"].clone()
    };
    eventually(PATIENCE, "it runs", async || {
        (status().await == "running" || status().await == "staging").then_some(())
    })
    .await;
    // Told by another process than the one that holds it.
    let custody =
        async || longshore.ok(&["queue", "list"]).await.contains("longshore.custody.celery.").then_some(());
    eventually(PATIENCE, "its message is in custody", custody).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let published = trace.over(Duration::from_secs(14)).await;
    let (custody, others): (Vec<_>, Vec<_>) =
        published.iter().partition(|(to, _)| to.starts_with("/longshore.custody.celery."));
    assert!(others.is_empty(), "a running task published {others:?}");
    let renewals: usize = custody.iter().map(|(_, count)| **count).sum();
    // A lease of eight seconds is renewed each three and a half: once a lease would be too late.
    assert!((2..=5).contains(&renewals), "{renewals} renewals in 14 s");

    // A worker that dies is known as gone when the last deadline that it named has passed.
    worker.kill();
    eventually(PATIENCE, "it is known as gone", async || {
        (!longshore.ok(&["worker", "list"]).await.contains("quay")).then_some(())
    })
    .await;
}
