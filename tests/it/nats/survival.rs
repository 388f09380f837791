//! Servers that come back, messages that nobody fetches, readers that are too slow.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use longshore::broker::{Settlement, Submission, Submitted};
use longshore::cancel::CancelScope;
use longshore::events::{Event, EventData, EventFilter, EventStart};
use longshore::task::Fence;

use crate::contract::dock::{
    Dock, LONG, PROMPT, assert_nothing_comes, fetch_all, fetch_one, fetch_within, message, queue, settle,
    submit, task,
};
use crate::support::nats::Nats;
use crate::support::poll::eventually;

#[tokio::test]
async fn a_server_that_was_killed_under_load_has_lost_nothing_that_it_took() {
    let mut nats = Nats::start().await;
    let one = nats.one().await;
    let mut taken = BTreeSet::new();
    for batch in 0..40 {
        if batch == 20 {
            nats.server().kill();
            nats.server().start_again().await;
        }
        let name = |n: usize| format!("m{}", batch * 5 + n);
        // What was not confirmed is sent again: its dedup id makes it one.
        let results = eventually(Duration::from_secs(40), "the server takes it", async || {
            one.submit.submit((0..5).map(|n| message(&name(n))).collect()).await.ok()
        });
        assert_eq!(results.await.len(), 5);
        taken.extend((0..5).map(name));
    }
    let mut seen = BTreeSet::new();
    while seen.len() < taken.len() {
        let fetched = fetch_within(&one, 50, PROMPT).await;
        assert!(!fetched.is_empty(), "{} of {} came back", seen.len(), taken.len());
        for delivery in fetched {
            seen.insert(String::from_utf8(delivery.body.to_vec()).unwrap());
            settle(delivery, Settlement::Ack).await;
        }
    }
    assert_eq!(seen, taken);
}

#[tokio::test]
async fn a_waiting_fetch_goes_on_after_the_server_came_back() {
    let mut nats = Nats::start().await;
    let one = nats.one().await;
    let stop = CancelScope::new();
    let (fetched, ()) = tokio::join!(one.source.fetch(1, &stop), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        nats.server().kill();
        nats.server().start_again().await;
        eventually(Duration::from_secs(40), "it takes work again", async || {
            (one.submit.submit(vec![message("a")]).await.ok()? == [Submitted::Queued]).then_some(())
        })
        .await;
    });
    match fetched {
        Ok(fetched) => assert_eq!(fetched.len(), 1),
        // It may have looked in the very moment.
        Err(_) => assert_eq!(fetch_within(&one, 1, PROMPT).await.len(), 1),
    }
}

#[tokio::test]
async fn what_comes_when_nobody_fetches_any_more_is_given_to_others_at_once() {
    let nats = Nats::start().await;
    let one = nats.one().await;
    let other = nats.client("other", &["default"], LONG).await;
    // Leaves requests that wait behind.
    assert_nothing_comes(&one).await;
    submit(&one, vec![message("a")]).await;
    let delivery = fetch_one(&other).await;
    assert_eq!(delivery.body, "a");
}

#[tokio::test]
async fn what_waits_for_its_time_survives_the_server_and_its_movers() {
    let mut nats = Nats::start().await;
    let gone = nats.client("gone", &["default"], LONG).await;
    let due = Timestamp::now() + Duration::from_secs(2);
    submit(&gone, vec![Submission { not_before: Some(due), ..message("later") }]).await;
    assert_nothing_comes(&gone).await;
    nats.server().kill();
    nats.server().start_again().await;
    drop(gone);
    let one = eventually(Duration::from_secs(20), "a client", async || {
        let options = nats.options("one", &["default"], LONG);
        longshore::broker::open(&Dock::url(&nats), &options).await.ok()
    })
    .await;
    let fetched = fetch_within(&one, 1, Duration::from_secs(40)).await;
    assert_eq!(fetched.len(), 1);
    assert!(Timestamp::now() >= due);
}

fn event(number: u64) -> Event {
    Event {
        task: task("a"),
        queue: queue("default"),
        fence: Fence(7),
        number,
        time: Timestamp::now(),
        data: EventData::Succeeded { exit_code: Some(0) },
    }
}

#[tokio::test]
async fn a_follower_misses_nothing_while_the_server_is_away() {
    let mut nats = Nats::start().await;
    let one = nats.one().await;
    let mut stream = one.topic.follow(EventFilter::default(), EventStart::Oldest).await.unwrap();
    one.topic.publish(&[event(0)]).await.unwrap();
    nats.server().kill();
    nats.server().start_again().await;
    for number in 1..20 {
        eventually(Duration::from_secs(40), "it is told", async || {
            one.topic.publish(&[event(number)]).await.ok()
        })
        .await;
    }
    let mut numbers = BTreeSet::new();
    while numbers.len() < 20 {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        numbers.insert(next.expect("it comes").expect("the stream goes on").unwrap().number);
    }
    assert_eq!(numbers, (0..20).collect());
}

#[tokio::test]
async fn many_messages_keep_their_order() {
    let nats = Nats::start().await;
    let one = nats.one().await;
    let names: Vec<String> = (0..1_500).map(|n| format!("m{n:04}")).collect();
    submit(&one, names.iter().map(|name| message(name)).collect()).await;
    let fetched = fetch_all(&one, 1_500, 64).await;
    let bodies: Vec<String> =
        fetched.iter().map(|delivery| String::from_utf8(delivery.body.to_vec()).unwrap()).collect();
    assert_eq!(bodies, names);
}
