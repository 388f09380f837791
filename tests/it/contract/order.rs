//! Who gets what, and in which order.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::{MessageId, Settlement, Submission};
use tokio::time::Instant;

use super::dock::{
    Dock, LONG, assert_nothing_comes, bodies, fetch_all, fetch_one, message, on, settle, submit,
    with_priority,
};

pub(crate) async fn credit_is_never_exceeded_over_queues_and_priorities(dock: &impl Dock) {
    let one = dock.client("one", &["a", "b", "c"], LONG).await;
    let mut all = Vec::new();
    for (queue, priority, number) in (0..36).map(|n| (["a", "b", "c"][n % 3], [1, 5, 9][n / 3 % 3], n)) {
        all.push(on(queue, with_priority(priority, message(&format!("m{number}")))));
    }
    submit(&one, all).await;
    // Asserts the credit of each fetch.
    let fetched = fetch_all(&one, 36, 5).await;
    let distinct: BTreeSet<String> = bodies(&fetched).into_iter().collect();
    assert_eq!(distinct.len(), 36, "a message was handed over twice");
    assert_nothing_comes(&one).await;
}

pub(crate) async fn two_consumers_share_without_overlap(dock: &impl Dock) {
    let one = dock.one().await;
    let two = dock.client("two", &["default"], LONG).await;
    submit(&one, (0..60).map(|n| message(&format!("m{n}"))).collect()).await;
    let (first, second) = tokio::join!(fetch_all(&one, 30, 3), fetch_all(&two, 30, 3));
    let ids: BTreeSet<String> = first.iter().chain(&second).map(|d| d.message.to_string()).collect();
    assert_eq!(ids.len(), 60, "a message was handed to both");
    for delivery in first.into_iter().chain(second) {
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&one).await;
}

pub(crate) async fn the_best_priority_comes_first_and_then_the_oldest(dock: &impl Dock) {
    let one = dock.client("one", &["default", "other"], LONG).await;
    let first = with_priority(2, message("low"));
    submit(&one, vec![first, message("normal-1"), message("normal-2")]).await;
    submit(&one, vec![on("other", with_priority(9, message("high"))), message("normal-3")]).await;
    let fetched = bodies(&fetch_all(&one, 5, 1).await);
    assert_eq!(fetched[0], "high");
    assert_eq!(fetched[1..4], ["normal-1", "normal-2", "normal-3"]);
    assert_eq!(fetched[4], "low");
}

pub(crate) async fn a_message_is_not_handed_over_before_its_time(dock: &impl Dock) {
    let one = dock.one().await;
    let delay = Duration::from_millis(500);
    let start = Instant::now();
    let not_before = Some(Timestamp::now() + delay);
    submit(&one, vec![Submission { not_before, ..message("later") }]).await;
    // What is there already does not wait for it.
    submit(&one, vec![message("now")]).await;
    assert_eq!(bodies(&[fetch_one(&one).await]), ["now"]);
    assert_eq!(bodies(&[fetch_one(&one).await]), ["later"]);
    // Less some rounding: brokers reckon in whole milliseconds.
    assert!(start.elapsed() + Duration::from_millis(2) >= delay, "it came after {:?}", start.elapsed());
    // A time that has passed is no delay.
    let not_before = Some(Timestamp::now() - Duration::from_secs(5));
    submit(&one, vec![Submission { not_before, ..message("past") }]).await;
    assert_eq!(bodies(&[fetch_one(&one).await]), ["past"]);
}

pub(crate) async fn only_named_queues_are_fetched(dock: &impl Dock) {
    let one = dock.one().await;
    submit(&one, vec![on("gpu", message("a"))]).await;
    assert_nothing_comes(&one).await;
    let other = dock.client("other", &["gpu"], LONG).await;
    let delivery = fetch_one(&other).await;
    assert_eq!(delivery.queue.as_str(), "gpu");
    assert_ne!(delivery.message, MessageId(String::new()));
}
