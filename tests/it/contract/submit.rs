//! What is queued, and what it arrives as.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::{Broker, Settlement, Submission, Submitted};
use serde_json::json;

use super::dock::{Dock, assert_nothing_comes, fetch_all, fetch_one, message, queue, settle, submit};

pub(crate) async fn a_message_arrives_as_it_was_sent(dock: &impl Dock) {
    let one = dock.one().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    let headers = BTreeMap::from([
        ("task".to_owned(), json!("girder_worker.docker.tasks.docker_run")),
        ("nested".to_owned(), json!({"list": [1, 2.5, null, "ä"]})),
    ]);
    let sent = Submission {
        body: bytes.clone().into(),
        content_type: "application/x-custom".to_owned(),
        content_encoding: Some("utf-8".to_owned()),
        headers: headers.clone(),
        ..message("a")
    };
    let before = Timestamp::now() - Duration::from_secs(1);
    submit(&one, vec![sent]).await;
    let delivery = fetch_one(&one).await;
    assert_eq!(delivery.body, bytes);
    assert_eq!(delivery.content_type.as_deref(), Some("application/x-custom"));
    assert_eq!(delivery.content_encoding.as_deref(), Some("utf-8"));
    assert_eq!(delivery.headers, headers);
    assert_eq!(delivery.queue, queue("default"));
    assert!(!delivery.redelivered);
    assert!(
        delivery.submitted.is_none_or(|at| at > before && at <= Timestamp::now() + Duration::from_secs(1))
    );
}

/// Whether the broker tells duplicates at all; where it does not, records do.
fn remembers(broker: &Broker) -> bool {
    broker.capabilities.dedup_window != Some(Duration::ZERO)
}

pub(crate) async fn one_dedup_id_is_queued_once_also_after_it_was_done(dock: &impl Dock) {
    let one = dock.one().await;
    if !remembers(&one) {
        return;
    }
    submit(&one, vec![message("a")]).await;
    let again = vec![message("b"), message("a"), message("c"), message("c")];
    let results = one.submit.submit(again).await.unwrap();
    assert_eq!(results, [Submitted::Queued, Submitted::Duplicate, Submitted::Queued, Submitted::Duplicate]);
    for delivery in fetch_all(&one, 3, 3).await {
        settle(delivery, Settlement::Ack).await;
    }
    assert_eq!(one.submit.submit(vec![message("a")]).await.unwrap(), [Submitted::Duplicate]);
    assert_nothing_comes(&one).await;
}

pub(crate) async fn a_new_generation_is_no_duplicate(dock: &impl Dock) {
    let one = dock.one().await;
    submit(&one, vec![message("a")]).await;
    let reason = "not today".to_owned();
    settle(fetch_one(&one).await, Settlement::DeadLetter { reason }).await;
    let next = || Submission { dedup_id: "a.1.0".to_owned(), ..message("a") };
    submit(&one, vec![next()]).await;
    if remembers(&one) {
        assert_eq!(one.submit.submit(vec![next()]).await.unwrap(), [Submitted::Duplicate]);
    }
    settle(fetch_one(&one).await, Settlement::Ack).await;
}

pub(crate) async fn an_expired_message_is_still_handed_over(dock: &impl Dock) {
    let one = dock.one().await;
    let expires = Some(Timestamp::now() - Duration::from_secs(60));
    submit(&one, vec![Submission { expires, ..message("a") }]).await;
    // The worker records it as expired; a broker that dropped it would leave its submitter without an answer.
    settle(fetch_one(&one).await, Settlement::Ack).await;
}
