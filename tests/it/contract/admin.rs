//! Listing and steering queues.

use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::{
    Broker, BrokerError, Contents, Intake, QueueInfo, Settlement, Submission, WaitingQuery,
};
use longshore::cancel::CancelScope;

use super::dock::{
    Dock, LONG, PROMPT, assert_nothing_comes, bodies, fetch_one, message, on, queue, settle, submit, task,
    with_priority,
};

async fn info(broker: &Broker, name: &str) -> QueueInfo {
    let queues = broker.admin.queues().await.unwrap();
    queues.into_iter().find(|info| info.name == queue(name)).expect("the queue is listed")
}

/// Whether the broker says, both by its word and when asked, that it cannot list what waits.
async fn refuses_to_list(broker: &Broker) -> bool {
    if broker.capabilities.list {
        return false;
    }
    let asked = broker.admin.waiting(&WaitingQuery::default()).await;
    assert!(matches!(asked, Err(BrokerError::Unsupported { .. })), "what cannot be listed is refused");
    true
}

pub(crate) async fn a_paused_queue_hands_nothing_out_until_it_is_resumed(dock: &impl Dock) {
    let one = dock.client("one", &["default", "gpu"], LONG).await;
    one.admin.set_intake(&queue("default"), Intake::Paused).await.unwrap();
    submit(&one, vec![message("a"), on("gpu", message("b"))]).await;
    assert_eq!(bodies(&[fetch_one(&one).await]), ["b"]);
    assert_nothing_comes(&one).await;
    assert_eq!(info(&one, "default").await.intake, Intake::Paused);
    assert_eq!(info(&one, "gpu").await.intake, Intake::Open);
    // A fetch that waits hears of the resume.
    let other = dock.client("other", &[], LONG).await;
    let stop = CancelScope::new();
    let (fetched, ()) = tokio::join!(tokio::time::timeout(PROMPT, one.source.fetch(1, &stop)), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.admin.set_intake(&queue("default"), Intake::Open).await.unwrap();
    });
    assert_eq!(bodies(&fetched.expect("the resume is heard at once").unwrap()), ["a"]);
}

pub(crate) async fn purging_leaves_what_is_leased(dock: &impl Dock) {
    let one = dock.client("one", &["default", "gpu"], LONG).await;
    submit(&one, vec![with_priority(9, message("leased"))]).await;
    let leased = fetch_one(&one).await;
    let not_before = Some(Timestamp::now() + Duration::from_secs(3_600));
    let later = Submission { not_before, ..message("later") };
    submit(&one, vec![message("a"), message("b"), later, on("gpu", message("c"))]).await;
    assert_eq!(one.admin.purge(&queue("default")).await.unwrap(), 3);
    let info = info(&one, "default").await;
    assert_eq!((info.ready, info.leased, info.delayed), (0, 1, 0));
    settle(leased, Settlement::Release { after: Duration::ZERO }).await;
    let mut left = [fetch_one(&one).await, fetch_one(&one).await].map(|d| bodies(&[d]).remove(0));
    left.sort();
    assert_eq!(left, ["c", "leased"]);
    assert_nothing_comes(&one).await;
}

pub(crate) async fn queues_are_counted_by_state(dock: &impl Dock) {
    let one = dock.one().await;
    assert!(one.admin.queues().await.unwrap().iter().all(|info| info.ready == 0));
    let before = Timestamp::now() - Duration::from_secs(1);
    submit(&one, vec![message("dead"), message("leased"), message("a"), message("b")]).await;
    settle(fetch_one(&one).await, Settlement::DeadLetter { reason: "bad".to_owned() }).await;
    let _leased = fetch_one(&one).await;
    let not_before = Some(Timestamp::now() + Duration::from_secs(3_600));
    submit(&one, vec![Submission { not_before, ..message("later") }, on("zzz", message("z"))]).await;
    let found = info(&one, "default").await;
    assert_eq!((found.ready, found.leased, found.delayed, found.dead), (2, 1, 1, 1));
    assert_eq!(found.intake, Intake::Open);
    assert!(found.oldest.is_none_or(|at| at > before && at <= Timestamp::now()));
    let names: Vec<String> =
        one.admin.queues().await.unwrap().into_iter().map(|info| info.name.to_string()).collect();
    assert_eq!(names, ["default", "zzz"]);
}

pub(crate) async fn waiting_messages_know_how_many_stand_before_them(dock: &impl Dock) {
    let one = dock.one().await;
    if refuses_to_list(&one).await {
        return;
    }
    submit(&one, vec![message("leased")]).await;
    let _leased = fetch_one(&one).await;
    submit(&one, (0..5).map(|n| message(&format!("m{n}"))).collect()).await;
    submit(&one, vec![with_priority(9, message("urgent")), on("gpu", message("g"))]).await;
    let not_before = Some(Timestamp::now() + Duration::from_secs(3_600));
    submit(&one, vec![Submission { not_before, ..message("later") }]).await;

    let of_queue = WaitingQuery { queue: Some(queue("default")), ..WaitingQuery::default() };
    let listed = one.admin.waiting(&of_queue).await.unwrap();
    let names: Vec<&str> = listed.iter().map(|waiting| waiting.task.as_str()).collect();
    assert_eq!(names, ["leased", "urgent", "m0", "m1", "m2", "m3", "m4", "later"]);
    let (until, owner) = listed[0].lease.clone().unwrap();
    assert!(until > Timestamp::now() && until <= Timestamp::now() + LONG + Duration::from_secs(1));
    assert!(owner.contains("one"), "the owner {owner:?} is not the worker");
    assert!(listed[7].not_before.is_some_and(|at| at > Timestamp::now()));
    assert!(listed[1..7].iter().all(|waiting| waiting.lease.is_none() && waiting.not_before.is_none()));
    assert_eq!(listed[1].priority.get(), 9);
    let ahead: Vec<Option<u64>> = listed[1..7].iter().map(|waiting| waiting.ahead).collect();
    if ahead[0].is_some() {
        assert_eq!(ahead, [0, 1, 2, 3, 4, 5].map(Some));
    }

    let of_task = WaitingQuery { task: Some(task("m3")), ..WaitingQuery::default() };
    let listed = one.admin.waiting(&of_task).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].ahead.is_none_or(|ahead| ahead == 4));
    let few = WaitingQuery { limit: 2, ..WaitingQuery::default() };
    assert_eq!(one.admin.waiting(&few).await.unwrap().len(), 2);
    assert_eq!(one.admin.waiting(&WaitingQuery::default()).await.unwrap().len(), 9);
}

pub(crate) async fn waiting_messages_come_with_their_contents_when_asked_for(dock: &impl Dock) {
    let one = dock.one().await;
    if refuses_to_list(&one).await {
        return;
    }
    let headers = [("note".to_owned(), serde_json::json!({ "k": [1, "x"] }))].into();
    submit(&one, vec![message("plain"), Submission { headers, ..message("headed") }]).await;
    let not_before = Some(Timestamp::now() + Duration::from_secs(3_600));
    submit(&one, vec![Submission { not_before, ..message("later") }]).await;
    assert!(one.admin.waiting(&WaitingQuery::default()).await.unwrap().iter().all(|it| it.raw.is_none()));

    let query = WaitingQuery { contents: Contents::Given, ..WaitingQuery::default() };
    let listed = one.admin.waiting(&query).await.unwrap();
    assert_eq!(listed.len(), 3);
    for waiting in listed {
        let raw = waiting.raw.expect("the message came along");
        assert_eq!(raw.body, waiting.task.as_str());
        assert_eq!(raw.content_type.as_deref(), Some("application/json"));
        assert_eq!(raw.queue.as_deref(), Some("default"));
        let note = raw.header("note").and_then(|note| note.get("k")).is_some();
        assert_eq!(note, waiting.task.as_str() == "headed", "the headers of {}", waiting.task);
    }
}
