//! The life of a lease.

use std::time::Duration;

use longshore::broker::{Extended, Settled, Settlement};
use longshore::cancel::{CancelReason, CancelScope};
use tokio::time::Instant;

use super::dock::{
    Dock, LONG, PROMPT, assert_nothing_comes, fetch_one, fetch_within, message, settle, submit,
};

pub(crate) async fn an_acknowledged_message_is_gone(dock: &impl Dock) {
    let lease = dock.short_lease();
    let one = dock.client("one", &["default"], lease).await;
    submit(&one, vec![message("a")]).await;
    settle(fetch_one(&one).await, Settlement::Ack).await;
    assert!(fetch_within(&one, 1, lease * 2).await.is_empty());
}

pub(crate) async fn a_lapsed_lease_hands_the_same_message_over_again(dock: &impl Dock) {
    let lease = dock.short_lease();
    let dies = dock.client("dies", &["default"], lease).await;
    let other = dock.client("other", &["default"], LONG).await;
    submit(&dies, vec![message("a")]).await;
    let first = fetch_one(&dies).await;
    assert!(!first.redelivered);
    let start = Instant::now();
    let second = fetch_one(&other).await;
    assert!(start.elapsed() + Duration::from_millis(100) > lease, "it came before the lease had lapsed");
    assert_eq!(second.message, first.message);
    assert_eq!(second.body, first.body);
    assert!(second.redelivered);
}

pub(crate) async fn an_extended_lease_keeps_the_message(dock: &impl Dock) {
    let lease = dock.short_lease();
    let one = dock.client("one", &["default"], lease).await;
    let other = dock.client("other", &["default"], lease).await;
    submit(&one, vec![message("a")]).await;
    let delivery = fetch_one(&one).await;
    let before = Instant::now();
    match delivery.lease.extender.extend(LONG).await.unwrap() {
        Extended::Until(until) => assert!(until >= before + LONG, "the new end is too early"),
        Extended::Lost => panic!("a lease that lasts was lost"),
    }
    assert!(fetch_within(&other, 1, lease * 3).await.is_empty(), "an extended lease has lapsed");
    settle(delivery, Settlement::Ack).await;
}

pub(crate) async fn a_stale_owner_is_told_that_he_lost(dock: &impl Dock) {
    let lease = dock.short_lease();
    let stalls = dock.client("stalls", &["default"], lease).await;
    let other = dock.client("other", &["default"], LONG).await;
    for (name, settlement) in [
        ("a", Settlement::Ack),
        ("b", Settlement::Retry { after: Duration::ZERO }),
        ("c", Settlement::Release { after: Duration::ZERO }),
        ("d", Settlement::DeadLetter { reason: "stale".to_owned() }),
    ] {
        submit(&stalls, vec![message(name)]).await;
        let stale = fetch_one(&stalls).await;
        let current = fetch_one(&other).await;
        assert_eq!(stale.lease.extender.extend(LONG).await.unwrap(), Extended::Lost);
        assert_eq!(stale.lease.settler.settle(settlement).await, Settled::Lost);
        // Nothing changed: it is still the other's, and nobody else's.
        assert_nothing_comes(&other).await;
        assert!(other.dead.list(None, 10).await.unwrap().is_empty());
        settle(current, Settlement::Ack).await;
    }
}

pub(crate) async fn a_settled_lease_cannot_be_extended(dock: &impl Dock) {
    let one = dock.one().await;
    submit(&one, vec![message("a")]).await;
    for settlement in [
        Settlement::Release { after: Duration::ZERO },
        Settlement::Retry { after: Duration::from_millis(10) },
        Settlement::Ack,
    ] {
        let delivery = fetch_one(&one).await;
        let extender = delivery.lease.extender;
        assert_eq!(delivery.lease.settler.settle(settlement).await, Settled::Settled);
        assert_eq!(extender.extend(LONG).await.unwrap(), Extended::Lost);
    }
}

pub(crate) async fn a_retry_waits_for_its_delay(dock: &impl Dock) {
    waits(dock, |after| Settlement::Retry { after }).await;
}

pub(crate) async fn a_damped_release_waits_for_its_delay(dock: &impl Dock) {
    waits(dock, |after| Settlement::Release { after }).await;
}

async fn waits(dock: &impl Dock, settlement: impl Fn(Duration) -> Settlement) {
    let one = dock.one().await;
    submit(&one, vec![message("a")]).await;
    let first = fetch_one(&one).await;
    let id = first.message.clone();
    let delay = Duration::from_millis(400);
    let start = Instant::now();
    settle(first, settlement(delay)).await;
    let again = fetch_one(&one).await;
    assert!(start.elapsed() >= delay, "it came after {:?}", start.elapsed());
    assert_eq!(again.message, id);
    assert!(again.redelivered);
}

pub(crate) async fn a_release_never_counts(dock: &impl Dock) {
    let one = dock.one().await;
    submit(&one, vec![message("a")]).await;
    for _ in 0..30 {
        settle(fetch_one(&one).await, Settlement::Release { after: Duration::ZERO }).await;
    }
    settle(fetch_one(&one).await, Settlement::Ack).await;
    assert!(one.dead.list(None, 10).await.unwrap().is_empty());
}

pub(crate) async fn a_fetch_that_is_stopped_is_empty_and_loses_nothing(dock: &impl Dock) {
    let one = dock.one().await;
    let stopped = CancelScope::new();
    stopped.cancel(CancelReason::Interrupted);
    submit(&one, vec![message("a")]).await;
    assert!(one.source.fetch(1, &stopped).await.unwrap().is_empty());
    settle(fetch_one(&one).await, Settlement::Ack).await;
    // Stopped at about the time at which a message comes: it is either handed over or still there.
    for round in 0..20 {
        let name = format!("b{round}");
        let stop = CancelScope::new();
        let (fetched, ()) = tokio::join!(one.source.fetch(1, &stop), async {
            submit(&one, vec![message(&name)]).await;
            stop.cancel(CancelReason::Interrupted);
        });
        let delivery = match fetched.unwrap().pop() {
            Some(delivery) => delivery,
            None => fetch_one(&one).await,
        };
        assert_eq!(delivery.body, name.as_bytes());
        settle(delivery, Settlement::Ack).await;
    }
}

pub(crate) async fn a_waiting_fetch_hears_a_submission_at_once(dock: &impl Dock) {
    let one = dock.one().await;
    let other = dock.client("other", &[], LONG).await;
    for round in 0..3 {
        let stop = CancelScope::new();
        let start = Instant::now();
        let (fetched, ()) = tokio::join!(one.source.fetch(1, &stop), async {
            // Long enough for the fetch to have looked and found nothing.
            tokio::time::sleep(Duration::from_millis(50)).await;
            submit(&other, vec![message(&format!("a{round}"))]).await;
        });
        assert_eq!(fetched.unwrap().len(), 1);
        assert!(start.elapsed() < PROMPT, "it was heard after {:?}", start.elapsed());
    }
}

pub(crate) async fn an_idle_fetch_looks_rarely(dock: &impl Dock) {
    let one = dock.one().await;
    assert_nothing_comes(&one).await;
    let before = dock.looks();
    assert!(fetch_within(&one, 1, Duration::from_secs(2)).await.is_empty());
    let looks = dock.looks() - before;
    assert!(looks <= 2, "an idle fetch looked {looks} times in 2 s");
    assert!(looks >= 1, "looks are not counted");
}
