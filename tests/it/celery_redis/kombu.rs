//! What a real kombu channel and longshore find of each other.

use std::time::Duration;

use longshore::broker::{self, Broker, BrokerUrl, Extended, Settled, Settlement};
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::dock::CeleryRedis;
use super::peer::peer;
use crate::contract::dock::{
    Dock, LONG, PROMPT, assert_nothing_comes, fetch_all, fetch_one, fetch_within, message, queue, settle,
    submit,
};
use crate::support::poll::eventually;

const LEASE: Duration = Duration::from_secs(2);

/// A client that restores what kombu channels left behind a second ago.
async fn hasty(dock: &CeleryRedis) -> Broker {
    let url = BrokerUrl::parse(&format!("{}?visibility_timeout=1", dock.url().expose())).unwrap();
    broker::open(&url, &dock.options("hasty", &["celery"], LEASE)).await.unwrap()
}

#[tokio::test]
async fn all_priorities_of_celery_come_in_its_order_and_leave_nothing_behind() {
    let dock = CeleryRedis::start().await;
    let one = dock.client("one", &["celery"], LONG).await;
    let ids = peer(&dock.redis.url(), &["send", "celery", "9", "6", "5", "3", "1", "0", "7", "2"]).await;
    let mut came = Vec::new();
    for delivery in fetch_all(&one, 8, 1).await {
        came.push(delivery.headers["id"].clone());
        assert!(!delivery.redelivered && delivery.properties.reply_to.is_some());
        settle(delivery, Settlement::Ack).await;
    }
    // By kombu's steps 0, 3, 6, 9; within one by age.
    let expected: Vec<Value> = [4, 5, 7, 2, 3, 1, 6, 0].map(|n: usize| ids[n].clone()).to_vec();
    assert_eq!(came, expected);
    let mut operator = dock.redis.connection().await;
    let left: Vec<String> = operator.keys("*").await.unwrap();
    let is_work = |key: &&String| {
        key.starts_with("unacked")
            || key.starts_with("celery")
            || key.ends_with(":owners")
            || key.contains(":leased")
    };
    assert_eq!(left.iter().filter(is_work).count(), 0, "{left:?}");
    assert!(left.iter().any(|key| key == "_kombu.binding.celery"), "{left:?}");
}

#[tokio::test]
async fn what_is_held_is_never_restored_by_kombu_and_what_a_dead_worker_held_is() {
    let dock = CeleryRedis::start().await;
    let one = dock.client("one", &["celery"], LEASE).await;
    let ids = peer(&dock.redis.url(), &["send", "celery", "6"]).await;
    let delivery = fetch_one(&one).await;
    let held = async {
        // Over several visibility timeouts.
        let end = Instant::now() + LEASE * 3;
        while Instant::now() < end {
            assert!(matches!(delivery.lease.extender.extend(LEASE).await.unwrap(), Extended::Until(_)));
            tokio::time::sleep(LEASE / 4).await;
        }
        jiff::Timestamp::now()
    };
    let url = dock.redis.url();
    let args = ["take", "celery", "1", "1"];
    let (let_go, came) = tokio::join!(held, peer(&url, &args));
    assert_eq!((&came[0]["id"], &came[0]["redelivered"]), (&ids[0], &json!([true, true])), "{came}");
    let at = came[0]["at"].as_f64().unwrap();
    assert!(at > let_go.as_duration().as_secs_f64(), "kombu took it while it was held");
    // It went under our hands.
    assert_eq!(delivery.lease.extender.extend(LEASE).await.unwrap(), Extended::Lost);
    assert_eq!(delivery.lease.settler.settle(Settlement::Ack).await, Settled::Lost);
}

#[tokio::test]
async fn what_waits_for_a_retry_is_not_restored_by_kombu_before_its_time() {
    let dock = CeleryRedis::start().await;
    let one = dock.client("one", &["celery"], LEASE).await;
    peer(&dock.redis.url(), &["send", "celery", "0"]).await;
    let delay = Duration::from_secs(4);
    let due = jiff::Timestamp::now() + delay;
    settle(fetch_one(&one).await, Settlement::Retry { after: delay }).await;
    // No worker of longshore fetches any more: kombu restores it, but later.
    let came = peer(&dock.redis.url(), &["take", "celery", "1", "1"]).await;
    assert!(came[0]["at"].as_f64().unwrap() > due.as_duration().as_secs_f64(), "{came}");
    assert_nothing_comes(&one).await;
}

#[tokio::test]
async fn what_a_celery_worker_took_and_died_over_is_restored_with_its_flags() {
    let dock = CeleryRedis::start().await;
    let ids = peer(&dock.redis.url(), &["send", "celery", "7", "0"]).await;
    let held = peer(&dock.redis.url(), &["hold", "celery"]).await;
    assert_eq!(held, ids[1], "kombu serves 0 first");
    let patient = dock.client("patient", &["celery"], LONG).await;
    let mut came = fetch_all(&patient, 1, 5).await;
    assert_eq!(came.remove(0).headers["id"], ids[0], "what is within kombu's usual hour stays kombu's");
    let hasty = hasty(&dock).await;
    let restored = fetch_within(&hasty, 1, Duration::from_secs(20)).await;
    assert_eq!(restored.len(), 1);
    assert_eq!(restored[0].headers["id"], held);
    assert!(restored[0].redelivered && !restored[0].headers.contains_key("redelivered"));
    let mut operator = dock.redis.connection().await;
    let locked: bool = operator.exists("unacked_mutex").await.unwrap();
    assert!(!locked, "kombu's lock stays behind");
}

#[tokio::test]
async fn a_stale_owner_takes_nothing_from_a_kombu_channel_that_holds_it_now() {
    let dock = CeleryRedis::start().await;
    let stale = dock.client("stale", &["celery"], Duration::from_millis(300)).await;
    peer(&dock.redis.url(), &["send", "celery", "0"]).await;
    let delivery = fetch_one(&stale).await;
    // As a channel does that restored it and waits for its eta: the tag is there again, with a score of the channel's own.
    let mut operator = dock.redis.connection().await;
    let tag = delivery.message.to_string();
    let now = jiff::Timestamp::now().as_duration().as_secs_f64();
    let _: i64 = operator.zadd("unacked_index", &tag, now).await.unwrap();
    assert_eq!(delivery.lease.extender.extend(LONG).await.unwrap(), Extended::Lost);
    assert_eq!(delivery.lease.settler.settle(Settlement::Ack).await, Settled::Lost);
    let still: bool = operator.hexists("unacked", &tag).await.unwrap();
    assert!(still, "another's message was removed");
    assert!(
        fetch_within(&stale, 1, Duration::from_secs(1)).await.is_empty(),
        "another's message was put back"
    );
}

#[tokio::test]
async fn a_forwarded_message_keeps_every_byte() {
    let dock = CeleryRedis::start().await;
    let one = dock.client("one", &["celery"], LONG).await;
    peer(&dock.redis.url(), &["send", "celery", "3"]).await;
    let mut operator = dock.redis.connection().await;
    let sent: Vec<u8> = operator.lindex("celery\u{6}\u{16}3", 0).await.unwrap();
    let delivery = fetch_one(&one).await;
    assert!(delivery.lease.settler.forwards());
    assert_eq!(delivery.lease.settler.forward(&queue("python")).await, Settled::Settled);
    let passed_on: Vec<u8> = operator.lindex("python\u{6}\u{16}3", 0).await.unwrap();
    assert_eq!(passed_on, sent);
    let came = peer(&dock.redis.url(), &["take", "python", "60", "1"]).await;
    assert_eq!(came[0]["redelivered"], json!([null, null]));
}

#[tokio::test]
async fn a_prefix_of_kombus_keys_is_kept_to() {
    let dock = CeleryRedis::start().await;
    let url = BrokerUrl::parse(&format!("{}?global_keyprefix=site-", dock.url().expose())).unwrap();
    let one = broker::open(&url, &dock.options("one", &["celery"], LONG)).await.unwrap();
    let theirs = format!("{}?global_keyprefix=site-", dock.redis.url());
    let ids = peer(&theirs, &["send", "celery", "0"]).await;
    let delivery = fetch_one(&one).await;
    assert_eq!(delivery.headers["id"], ids[0]);
    let mut operator = dock.redis.connection().await;
    let held: i64 = operator.hlen("site-unacked").await.unwrap();
    assert_eq!(held, 1);
    settle(delivery, Settlement::Release { after: Duration::ZERO }).await;
    let came = peer(&theirs, &["take", "celery", "60", "1"]).await;
    assert_eq!(came[0]["redelivered"], json!([true, true]));
    assert_nothing_comes(&dock.client("other", &["celery"], LONG).await).await;
}

#[tokio::test]
async fn a_message_that_was_sent_twice_is_two_and_neither_is_lost() {
    let dock = CeleryRedis::start().await;
    peer(&dock.redis.url(), &["send", "celery", "0"]).await;
    let mut operator = dock.redis.connection().await;
    let sent: Vec<u8> = operator.lindex("celery", 0).await.unwrap();
    let _: i64 = operator.lpush("celery", sent).await.unwrap();
    let one = dock.client("one", &["celery"], LONG).await;
    let came = fetch_all(&one, 2, 2).await;
    assert_eq!(came[0].message, came[1].message);
    for delivery in came {
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&one).await;
    let left: i64 = operator.hlen("unacked").await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_server_that_was_killed_while_messages_were_held_hands_them_over_again() {
    let mut dock = CeleryRedis::start().await;
    let one = dock.client("one", &["default"], LEASE).await;
    submit(&one, vec![message("a"), message("b")]).await;
    let held = fetch_one(&one).await;
    dock.redis.server().kill();
    dock.redis.server().start_again().await;
    let again = eventually(Duration::from_secs(20), "both come", async || {
        let stop = longshore::cancel::CancelScope::new();
        tokio::time::timeout(PROMPT, one.source.fetch(2, &stop)).await.ok()?.ok()
    });
    let mut bodies: Vec<String> =
        again.await.iter().map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned()).collect();
    if bodies.len() == 1 {
        let more = fetch_within(&one, 1, LEASE + PROMPT).await;
        bodies.extend(more.iter().map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned()));
    }
    bodies.sort();
    assert_eq!(bodies, ["a", "b"]);
    drop(held);
}
