//! Scripts that are forgotten, servers that come back, reads that are ended, workers that die between two steps.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore::broker::{Settlement, Submitted};
use longshore::cancel::{CancelReason, CancelScope};
use redis::AsyncCommands;
use tokio::time::Instant;

use crate::contract::dock::{
    Dock, LONG, PROMPT, assert_nothing_comes, fetch_all, fetch_one, fetch_within, message, settle, submit,
};
use crate::support::poll::eventually;
use crate::support::redis::Redis;

#[tokio::test]
async fn scripts_that_the_server_forgot_are_loaded_again() {
    let redis = Redis::start().await;
    let one = redis.one().await;
    let mut operator = redis.connection().await;
    for round in 0..5 {
        submit(&one, vec![message(&format!("m{round}"))]).await;
        let delivery = fetch_one(&one).await;
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut operator).await.unwrap();
        delivery.lease.extender.extend(LONG).await.unwrap();
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut operator).await.unwrap();
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&one).await;
}

#[tokio::test]
async fn a_server_that_was_killed_under_load_has_lost_nothing_that_it_took() {
    let mut redis = Redis::start().await;
    let one = redis.one().await;
    let mut taken = BTreeSet::new();
    for batch in 0..40 {
        if batch == 20 {
            redis.server().kill();
            redis.server().start_again().await;
        }
        let name = |n: usize| format!("m{}", batch * 5 + n);
        // What was not confirmed is sent again: its dedup id makes it one.
        let results = eventually(Duration::from_secs(20), "the server takes it", async || {
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
    let mut redis = Redis::start().await;
    let one = redis.one().await;
    assert_nothing_comes(&one).await;
    redis.server().kill();
    redis.server().start_again().await;
    eventually(Duration::from_secs(20), "it takes work again", async || {
        (one.submit.submit(vec![message("a")]).await.ok()? == [Submitted::Queued]).then_some(())
    })
    .await;
    let stop = CancelScope::new();
    let fetched = eventually(Duration::from_secs(20), "it hands work out again", async || {
        one.source.fetch(1, &stop).await.ok()
    });
    assert_eq!(fetched.await.len(), 1);
}

#[tokio::test]
async fn a_blocked_read_ends_at_once_with_its_stop() {
    let redis = Redis::start().await;
    let one = redis.one().await;
    assert_nothing_comes(&one).await;
    let stop = CancelScope::new();
    let start = Instant::now();
    let (fetched, ()) = tokio::join!(one.source.fetch(1, &stop), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.cancel(CancelReason::Interrupted);
    });
    assert!(fetched.unwrap().is_empty());
    assert!(start.elapsed() < PROMPT, "it ended after {:?}", start.elapsed());
}

#[tokio::test]
async fn what_was_read_by_one_who_died_before_noting_its_lease_comes_again() {
    let redis = Redis::start().await;
    let lease = Duration::from_millis(500);
    let one = redis.client("one", &["default"], lease).await;
    assert_nothing_comes(&one).await;
    submit(&one, vec![message("a")]).await;
    let mut dead = redis.connection().await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP")
        .arg("longshore")
        .arg("dies/1")
        .arg("STREAMS")
        .arg("longshore:queue:{default}:normal")
        .arg(">");
    let _: redis::Value = read.query_async(&mut dead).await.unwrap();
    let fetched = fetch_within(&one, 1, Duration::from_secs(15)).await;
    assert_eq!(fetched.len(), 1, "the message is stranded");
}

#[tokio::test]
async fn a_consumer_that_holds_something_is_never_deleted() {
    let redis = Redis::start().await;
    let dies = redis.client("dies", &["default"], LONG).await;
    submit(&dies, vec![message("a")]).await;
    let _held = fetch_one(&dies).await;
    // Each opening looks for what was left behind.
    let other = redis.client("other", &["default"], LONG).await;
    assert_nothing_comes(&other).await;
    let mut operator = redis.connection().await;
    let pending: redis::Value = redis::cmd("XPENDING")
        .arg("longshore:queue:{default}:normal")
        .arg("longshore")
        .query_async(&mut operator)
        .await
        .unwrap();
    assert!(format!("{pending:?}").contains("dies/1"), "{pending:?}");
}

#[tokio::test]
async fn an_emptied_server_takes_work_again() {
    let redis = Redis::start().await;
    let one = redis.one().await;
    assert_nothing_comes(&one).await;
    let mut operator = redis.connection().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut operator).await.unwrap();
    submit(&one, vec![message("a"), message("b")]).await;
    fetch_all(&one, 2, 1).await;
}

#[tokio::test]
async fn two_prefixes_on_one_server_know_nothing_of_each_other() {
    let redis = Redis::start().await;
    let lab = super::opened(&redis, &format!("{}?prefix=lab", redis.url())).await.unwrap();
    submit(&lab, vec![message("a")]).await;
    assert_nothing_comes(&redis.one().await).await;
    let mut operator = redis.connection().await;
    let keys: Vec<String> = operator.keys("*").await.unwrap();
    assert!(keys.iter().any(|key| key.starts_with("lab:")), "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("lab:") || key.starts_with("longshore:")), "{keys:?}");
    settle(fetch_one(&lab).await, Settlement::Ack).await;
}
