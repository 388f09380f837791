//! What producers without a client of ours may do, and the whole road over NATS alone.

use std::time::Duration;

use serde_json::Value;

use crate::contract::dock::{Dock, fetch_one, settle};
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;
use longshore::broker::Settlement;

#[tokio::test]
async fn a_plain_publish_is_a_valid_submission() {
    let nats = Nats::start().await;
    let one = nats.one().await;
    let producer = nats.connection().await;
    let body = br#"{"v": 1, "id": "plain", "task": "longshore.ping"}"#;
    producer.publish("longshore.v1.task.default.high", body.as_slice().into()).await.unwrap();
    let delivery = fetch_one(&one).await;
    assert_eq!(delivery.body, body.as_slice());
    assert_eq!((delivery.queue.as_str(), delivery.redelivered), ("default", false));
    settle(delivery, Settlement::Ack).await;
}

#[tokio::test]
async fn queue_records_events_and_cancels_need_no_server_but_nats() {
    let nats = Nats::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", nats.url()));
    // Canceled before a worker meets it.
    let canceled = longshore.ping(&["--label", "study=a"]).await;
    longshore.ok(&["task", "cancel", &canceled]).await;
    let listed = longshore.ok(&["task", "list", "--label", "study=a", "--output", "json"]).await;
    assert!(listed.contains(&canceled), "what waits is listed: {listed}");
    let worker = longshore.worker(&["--name", "quay"]).await;
    let done = longshore.ping(&["--label", "study=a"]).await;
    longshore.ok(&["task", "wait", &done]).await;
    let record: Value =
        serde_json::from_str(&longshore.ok(&["task", "show", &done, "--output", "json"]).await).unwrap();
    assert!(record.to_string().contains("\"status\":\"succeeded\""), "{record}");
    eventually(Duration::from_secs(20), "the canceled one is recorded", async || {
        let said = longshore.run(&["task", "show", &canceled, "--output", "json"]).await;
        said.stdout.contains("\"canceled\"").then_some(())
    })
    .await;
    let events = longshore.ok(&["events", "--task", &done]).await;
    assert!(events.contains("longshore.task.succeeded.v1"), "{events}");
    let workers = longshore.ok(&["worker", "list"]).await;
    assert!(workers.contains("quay"), "{workers}");
    assert!(!worker.log().contains("not fenced"), "the store is shared: {}", worker.log());
}
