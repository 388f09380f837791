//! What nobody should put into a queue: parked with its reason, never lost, never a loop.

use std::time::Duration;

use longshore::broker::Settlement;
use redis::AsyncCommands;
use serde_json::json;

use super::dock::CeleryRedis;
use super::peer::peer;
use crate::contract::dock::{Dock, LONG, assert_nothing_comes, fetch_within, queue, settle};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;

/// Envelopes that are none, and a word that the reason must have.
fn hostile() -> Vec<(Vec<u8>, &'static str)> {
    let nested = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    vec![
        (b"not json".to_vec(), "no JSON"),
        (b"\xff\xfe\x00".to_vec(), "UTF-8"),
        (b"[1, 2]".to_vec(), "no map"),
        (b"7".to_vec(), "no map"),
        (b"{}".to_vec(), "no body"),
        (br#"{"headers": {}, "properties": {"delivery_tag": "x"}}"#.to_vec(), "no body"),
        (br#"{"body": 7, "headers": {}, "properties": {}}"#.to_vec(), "no body"),
        (br#"{"body": "", "headers": 7, "properties": {}}"#.to_vec(), "headers"),
        (br#"{"body": "", "headers": {}, "properties": []}"#.to_vec(), "properties"),
        (br#"{"body": "***", "headers": {}, "properties": {"body_encoding": "base64"}}"#.to_vec(), "base64"),
        (br#"{"body": "", "headers": {}, "content-type": 1, "properties": {}}"#.to_vec(), "content-type"),
        (nested.into_bytes(), "JSON"),
    ]
}

#[tokio::test]
async fn what_is_no_envelope_is_parked_byte_for_byte_and_holds_nobody_up() {
    let dock = CeleryRedis::start().await;
    let mut producer = dock.redis.connection().await;
    for (bytes, _) in hostile() {
        let _: i64 = producer.lpush("celery", bytes).await.unwrap();
    }
    let ids = peer(&dock.redis.url(), &["send", "celery", "0"]).await;
    let one = dock.client("one", &["celery"], LONG).await;
    let came = fetch_within(&one, 100, Duration::from_secs(10)).await;
    assert_eq!(came.len(), 1, "{came:?}");
    assert_eq!(came[0].headers["id"], ids[0]);
    for delivery in came {
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&one).await;
    let mut letters = one.dead.list(Some(&queue("celery")), 100).await.unwrap();
    letters.reverse();
    assert_eq!(letters.len(), hostile().len());
    for (letter, (bytes, word)) in letters.iter().zip(hostile()) {
        assert!(letter.reason.contains(word), "{:?} has not {word:?}", letter.reason);
        assert_eq!(one.dead.show(&letter.id).await.unwrap().unwrap().body, bytes);
    }
    let left: Vec<String> = producer.keys("*unacked*").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_envelope_that_only_luas_reader_refuses_is_a_task_like_any_other() {
    let dock = CeleryRedis::start().await;
    let envelope = json!({
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"task": "t", "id": "odd", "argsrepr": "SURROGATE"},
        "properties": {"priority": 6, "body_encoding": "base64", "delivery_tag": "a-b",
                       "delivery_info": {"exchange": "", "routing_key": "celery"}},
    });
    let text = envelope.to_string().replace("SURROGATE", "\\ud800");
    let mut producer = dock.redis.connection().await;
    let list = "celery\u{6}\u{16}6";
    let _: i64 = producer.lpush(list, &text).await.unwrap();
    let lease = Duration::from_millis(500);
    let dies = dock.client("dies", &["celery"], lease).await;
    let first = fetch_within(&dies, 1, Duration::from_secs(3)).await;
    assert_eq!(first[0].headers["id"], "odd");
    let unread: bool = producer.exists("unacked").await.unwrap();
    assert!(!unread, "kombu would find what it may not be able to write");
    // Its lease lapses, it is given back, it waits: it comes each time.
    let one = dock.client("one", &["celery"], LONG).await;
    for after in [Duration::ZERO, Duration::from_millis(200)] {
        let came = fetch_within(&one, 1, Duration::from_secs(3)).await;
        assert_eq!((came.len(), came[0].redelivered), (1, true));
        for delivery in came {
            settle(delivery, Settlement::Release { after }).await;
        }
    }
    let came = fetch_within(&one, 1, Duration::from_secs(3)).await;
    for delivery in came {
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&one).await;
    let left: Vec<String> = producer.keys("*aside*").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_worker_outlives_hostile_tasks_and_a_huge_one() {
    let dock = CeleryRedis::start().await;
    let mut producer = dock.redis.connection().await;
    let huge = json!({
        "body": "A".repeat(4 << 20), "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"task": "girder_worker.docker.tasks.docker_run", "id": "huge"},
        "properties": {"body_encoding": "base64", "delivery_tag": "huge", "delivery_info": {"exchange": "", "routing_key": "celery"}},
    });
    let bodies = [
        json!({"headers": {"task": "girder_worker.docker.tasks.docker_run"}}),
        json!({"headers": {"task": 7, "id": {}}}),
        json!({"headers": {"task": "girder_worker.docker.tasks.docker_run", "id": "x", "eta": 7}}),
        json!({"headers": {}, "body": ""}),
    ];
    for (number, hostile) in bodies.into_iter().enumerate() {
        let mut envelope = json!({
            "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
            "properties": {"body_encoding": "base64", "delivery_tag": number.to_string(),
                           "delivery_info": {"exchange": "", "routing_key": "celery"}},
        });
        envelope.as_object_mut().unwrap().extend(hostile.as_object().unwrap().clone());
        let _: i64 = producer.lpush("celery", envelope.to_string()).await.unwrap();
    }
    let _: i64 = producer.lpush("celery", huge.to_string()).await.unwrap();
    let longshore = Longshore::with_settings(&format!(
        "brokers = [\"{}\"]\n[message]\nmax_bytes = \"1MiB\"\n",
        dock.url().expose()
    ));
    let mut worker = longshore.worker(&[]).await;
    let dead = eventually(Duration::from_secs(40), "all are parked", async || {
        let letters = dock.one().await.dead.list(None, 100).await.unwrap();
        (letters.len() == 5).then_some(letters)
    });
    assert!(dead.await.iter().any(|letter| letter.bytes > 2 << 20), "the huge one keeps its bytes");
    assert!(worker.ended().is_none());
    let left: i64 = producer.hlen("unacked").await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_letter_that_is_requeued_still_says_who_waits_for_its_result() {
    let dock = CeleryRedis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", dock.url().expose()));
    let worker = longshore.worker(&["-Q", "celery", "-c", "1"]).await;
    let envelope = json!({
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"task": "no.such", "id": "odd"},
        "properties": {"priority": 3, "body_encoding": "base64", "delivery_tag": "a-b", "correlation_id": "odd",
                       "reply_to": "answers", "delivery_info": {"exchange": "", "routing_key": "celery"}},
    });
    let mut producer = dock.redis.connection().await;
    let _: i64 = producer.lpush("celery\u{6}\u{16}3", envelope.to_string()).await.unwrap();
    let one = dock.one().await;
    let letter = eventually(Duration::from_secs(20), "it is parked", async || {
        one.dead.list(None, 1).await.unwrap().pop()
    })
    .await;
    drop(worker);
    longshore.ok(&["dead", "requeue", &letter.id]).await;
    let back: Vec<String> = producer.lrange("celery\u{6}\u{16}3", 0, -1).await.unwrap();
    let back: serde_json::Value = serde_json::from_str(&back[0]).unwrap();
    let properties = |name: &str| back["properties"][name].clone();
    assert_eq!(
        (properties("reply_to"), properties("correlation_id"), properties("priority")),
        (json!("answers"), json!("odd"), json!(3))
    );
    assert_eq!((&back["body"], &back["headers"]["task"]), (&envelope["body"], &json!("no.such")));
}
