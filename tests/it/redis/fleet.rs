//! `longshore worker list|info|drain|resume`, over every broker.

use std::time::Duration;

use serde_json::Value;

use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

#[tokio::test]
async fn workers_of_a_redis_broker_are_listed_and_steered() {
    let redis = Redis::start().await;
    workers_are_listed_and_steered(&format!("brokers = [\"{}\"]\n", redis.url())).await;
}

#[tokio::test]
async fn workers_of_an_sqlite_broker_are_listed_and_steered() {
    workers_are_listed_and_steered("").await;
}

#[tokio::test]
async fn workers_of_a_nats_broker_are_listed_and_steered() {
    let nats = Nats::start().await;
    workers_are_listed_and_steered(&format!("brokers = [\"{}\"]\n", nats.url())).await;
}

#[tokio::test]
async fn workers_of_a_rabbitmq_broker_are_listed_and_steered() {
    let rabbit = RabbitMq::vhost().await;
    workers_are_listed_and_steered(&format!("brokers = [\"{}\"]\n", rabbit.url())).await;
}

async fn workers_are_listed_and_steered(broker: &str) {
    let settings =
        "[worker]\npresence_interval = \"1s\"\n[resources]\ngpus = [\"g0\"]\ncustom = { licence = 2 }\n";
    let longshore = Longshore::with_settings(&format!("{broker}{settings}"));
    let said = longshore.run(&["worker", "list", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap()["workers"], Value::Array(Vec::new()));
    let _worker = longshore.worker(&["--name", "quay", "--concurrency", "3"]).await;
    let listed = eventually(Duration::from_secs(10), "it is listed", async || {
        let said = longshore.ok(&["worker", "list", "--output", "json"]).await;
        serde_json::from_str::<Value>(&said).unwrap()["workers"].get(0).cloned()
    });
    let listed = listed.await;
    assert_eq!((&listed["worker"], &listed["lanes"]), (&Value::from("quay"), &Value::from(3)));
    assert!(listed["disks"][0]["free"].as_u64().unwrap() > 0);
    let table = longshore.ok(&["worker", "list"]).await;
    assert!(
        table.contains("quay") && table.contains("0/3") && table.contains(env!("CARGO_PKG_VERSION")),
        "{table}"
    );
    let info = longshore.ok(&["worker", "info", "quay"]).await;
    assert!(info.contains("licence 2") && info.contains("g0") && info.contains("0 of 3 busy"), "{info}");

    for (command, phase) in [("drain", "paused"), ("resume", "running")] {
        longshore.ok(&["worker", command, "quay"]).await;
        eventually(Duration::from_secs(10), &format!("it is {phase}"), async || {
            longshore.ok(&["worker", "info", "quay"]).await.contains(phase).then_some(())
        })
        .await;
    }
    let said = longshore.run(&["worker", "drain", "nobody"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("known are: quay"), "{}", said.stderr);
}
