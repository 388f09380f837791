//! Dead letters.

use std::collections::BTreeMap;

use longshore::broker::{Broker, Settlement, Submission};
use serde_json::json;

use super::dock::{Dock, LONG, assert_nothing_comes, fetch_one, message, on, queue, settle, submit, task};

async fn park(broker: &Broker, submission: Submission, reason: &str) {
    submit(broker, vec![submission]).await;
    settle(fetch_one(broker).await, Settlement::DeadLetter { reason: reason.to_owned() }).await;
}

pub(crate) async fn a_dead_letter_keeps_its_original_bytes(dock: &impl Dock) {
    let one = dock.one().await;
    let bytes: Vec<u8> = (0..=255).rev().cycle().take(5_000).collect();
    let headers = BTreeMap::from([("id".to_owned(), json!("x"))]);
    let content_encoding = Some("binary".to_owned());
    let sent = Submission {
        body: bytes.clone().into(),
        headers: headers.clone(),
        content_encoding: content_encoding.clone(),
        ..message("a")
    };
    park(&one, sent, "no such task kind").await;
    assert_nothing_comes(&one).await;
    let listed = one.dead.list(None, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].reason, "no such task kind");
    assert_eq!((listed[0].bytes, &listed[0].queue), (5_000, &queue("default")));
    assert!(listed[0].task.as_ref().is_none_or(|id| *id == task("a")));
    let letter = one.dead.show(&listed[0].id).await.unwrap().unwrap();
    assert_eq!(letter.body, bytes);
    assert_eq!(letter.headers, headers);
    assert_eq!(letter.content_type.as_deref(), Some("application/json"));
    assert_eq!(letter.content_encoding, content_encoding);
    assert_eq!(letter.summary, listed[0]);
}

pub(crate) async fn dead_letters_are_listed_newest_first_and_by_queue(dock: &impl Dock) {
    let one = dock.client("one", &["default", "gpu"], LONG).await;
    park(&one, message("a"), "first").await;
    park(&one, on("gpu", message("b")), "second").await;
    park(&one, message("c"), "third").await;
    let reasons = async |name: Option<&str>, limit| {
        let listed = one.dead.list(name.map(queue).as_ref(), limit).await.unwrap();
        listed.into_iter().map(|letter| letter.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(None, 10).await, ["third", "second", "first"]);
    assert_eq!(reasons(None, 2).await, ["third", "second"]);
    assert_eq!(reasons(Some("default"), 10).await, ["third", "first"]);
    assert_eq!(reasons(Some("gpu"), 10).await, ["second"]);
    assert!(reasons(Some("other"), 10).await.is_empty());
}

pub(crate) async fn a_dropped_letter_is_gone(dock: &impl Dock) {
    let one = dock.one().await;
    park(&one, message("a"), "bad").await;
    let id = one.dead.list(None, 1).await.unwrap().remove(0).id;
    assert!(one.dead.drop_letter(&id).await.unwrap());
    assert!(!one.dead.drop_letter(&id).await.unwrap());
    assert_eq!(one.dead.show(&id).await.unwrap(), None);
    assert!(one.dead.list(None, 1).await.unwrap().is_empty());
    assert!(!one.dead.drop_letter("no such id").await.unwrap());
}
