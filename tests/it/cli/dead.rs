//! `dead` and `decode`: parked messages, shown without their tokens.

use longshore::broker::{Settled, Settlement};
use longshore::cancel::CancelScope;
use serde_json::{Value, json};

use super::Harbour;

const TASK: &str = r#"{"v": 1, "id": "t1", "task": "docker_run", "args": {"image": "busybox"},
    "girder": {"api_url": "http://girder.test/api/v1", "token": "hunter2"}}"#;

/// Parks one submitted message as a worker would.
async fn park(harbour: &Harbour, reason: &str) {
    let broker = harbour.broker().await;
    let delivery = broker.source.fetch(1, &CancelScope::new()).await.unwrap().remove(0);
    let settlement = Settlement::DeadLetter { reason: reason.to_owned() };
    assert_eq!(delivery.lease.settler.settle(settlement).await, Settled::Settled);
}

fn letters(harbour: &Harbour) -> Value {
    harbour.run(&["dead", "list", "--output", "json"]).json()["dead"].take()
}

async fn harbour_with_a_letter() -> (Harbour, String) {
    let harbour = Harbour::new();
    let file = harbour.file("task.json", TASK);
    harbour.run(&["submit", "--file", file.to_str().unwrap()]).good();
    park(&harbour, "it crashed four workers").await;
    let id = letters(&harbour)[0]["id"].as_str().unwrap().to_owned();
    (harbour, id)
}

#[tokio::test]
async fn a_dead_letter_is_shown_without_its_tokens_unless_asked() {
    let (harbour, id) = harbour_with_a_letter().await;
    assert!(harbour.run(&["dead", "list"]).good().contains("it crashed four workers"));
    for args in [&["dead", "show"][..], &["dead", "show", "--output", "json"]] {
        let shown = harbour.run(&[args, &[id.as_str()]].concat()).good();
        assert!(shown.contains("busybox") && shown.contains("[redacted]"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let raw = harbour.run(&["dead", "show", "--raw", &id]).good();
    assert_eq!(serde_json::from_str::<Value>(&raw).unwrap()["girder"]["token"], "hunter2");
}

#[tokio::test]
async fn a_requeued_letter_comes_back_in_a_new_generation() {
    let (harbour, id) = harbour_with_a_letter().await;
    assert_eq!(harbour.run(&["dead", "requeue", &id]).good(), "t1\n");
    assert_eq!(letters(&harbour), json!([]));
    let broker = harbour.broker().await;
    let delivery = broker.source.fetch(1, &CancelScope::new()).await.unwrap().remove(0);
    let body: Value = serde_json::from_slice(&delivery.body).unwrap();
    assert_eq!((&body["id"], &body["generation"]), (&json!("t1"), &json!(1)));
    assert_eq!(body["girder"]["token"], "hunter2");
}

#[tokio::test]
async fn a_dropped_letter_is_gone_and_a_second_drop_says_so() {
    let (harbour, id) = harbour_with_a_letter().await;
    harbour.run(&["dead", "drop", &id]).good();
    assert_eq!(letters(&harbour), json!([]));
    assert!(harbour.run(&["dead", "drop", &id]).bad(2).contains("longshore dead list"));
    assert!(harbour.run(&["dead", "show", &id]).bad(2).contains("longshore dead list"));
}

#[test]
fn a_message_is_decoded_without_its_tokens_unless_asked() {
    let harbour = Harbour::new();
    let file = harbour.file("message.json", TASK);
    let file = file.to_str().unwrap();
    let task = harbour.run(&["decode", file]).json();
    assert_eq!((&task["id"], &task["girder"]["token"]), (&json!("t1"), &json!("[redacted]")));
    assert_eq!(harbour.run(&["decode", "--raw", file]).json()["girder"]["token"], "hunter2");
}

#[test]
fn a_message_that_would_be_refused_is_told_with_its_reason() {
    let harbour = Harbour::new();
    let told = [
        r#"{"v": 1, "task": "docker_run", "args": {"a": {"$": "VolumPath", "filename": "x"}}}"#,
        r#"{"v": 9, "task": "docker_run"}"#,
        r#"{"v": 1, "task""#,
        "[]",
    ]
    .map(|text| {
        let file = harbour.file("message.json", text);
        harbour.run(&["decode", file.to_str().unwrap()]).bad(1)
    });
    insta::assert_snapshot!(told.join("--\n"));
}
