//! `queue move` between brokers of every kind: one rule per function, one macro line per pair.
//!
//! What is tried through the traits is in this file; `moving/load.rs` tries the command beside workers at both ends.

mod load;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore::broker::{
    Broker, BrokerError, Command, Delivery, Settled, Settlement, Settler, Source, Submission, WaitingQuery,
};
use longshore::cancel::{CancelReason, CancelScope};
use longshore::error::TaskError;
use longshore::store::{Expected, Record, Spooled, Status};
use longshore::task::{ArgMap, Fence, Limits, Task};
use longshore::transfer::{Tally, Transfer, TransferError};
use serde_json::{Value, json};

use crate::contract::dock::{
    Dock, LONG, assert_nothing_comes, bodies, fetch_all, fetch_one, message, queue, settle, submit, task,
    with_priority,
};
use crate::support::poll::eventually;

/// The tests of one pair.
macro_rules! pair {
    ($pair:ident, $from:ty, $to:ty) => {
        pair!(@rules $pair, $from, $to;
            what_waits_arrives_with_its_bytes_headers_and_priority_and_what_is_leased_stays,
            what_was_cut_off_before_it_was_taken_off_is_found_by_its_dedup_id,
            what_comes_back_is_no_duplicate_of_its_first_visit,
            what_is_delayed_keeps_its_time_and_what_is_canceled_stays_so,
            what_a_worker_is_at_or_has_ended_stays,
            a_limit_is_kept_and_a_stop_ends_it_with_nothing_held,
        );
    };
    (@rules $pair:ident, $from:ty, $to:ty; $($rule:ident,)+) => {
        mod $pair {
            $(
                #[tokio::test]
                async fn $rule() {
                    let from = <$from as crate::contract::dock::Dock>::start().await;
                    let to = <$to as crate::contract::dock::Dock>::start().await;
                    super::$rule(&from, &to).await;
                }
            )+
        }
    };
}

pair!(sqlite_to_redis, crate::contract::dock::Sqlite, crate::support::redis::Redis);
pair!(redis_to_sqlite, crate::support::redis::Redis, crate::contract::dock::Sqlite);
pair!(redis_to_redis, crate::support::redis::Redis, crate::support::redis::Redis);
pair!(nats_to_redis, crate::support::nats::Nats, crate::support::redis::Redis);
pair!(redis_to_nats, crate::support::redis::Redis, crate::support::nats::Nats);
pair!(sqlite_to_nats, crate::contract::dock::Sqlite, crate::support::nats::Nats);
pair!(nats_to_nats, crate::support::nats::Nats, crate::support::nats::Nats);
pair!(memory_to_redis, crate::contract::dock::Memory, crate::support::redis::Redis);

/// A move of the queue `default`.
async fn transfer(from: &impl Dock, to: &impl Dock) -> Transfer {
    leased(from, to, LONG).await
}

/// The same with another lease.
async fn leased(from: &impl Dock, to: &impl Dock, lease: Duration) -> Transfer {
    Transfer {
        from: from.client("mover", &["default"], lease).await,
        to: to.client("mover", &[], LONG).await,
        away: queue("default"),
        queue: queue("default"),
        records: from.store().await,
        limit: None,
        limits: Limits::default(),
    }
}

async fn run(transfer: &Transfer) -> Tally {
    let mut tally = Tally::default();
    transfer.run(&CancelScope::new(), &mut tally, |_| {}).await.unwrap();
    tally
}

fn moved(count: u64) -> Tally {
    Tally { moved: count, ..Tally::default() }
}

/// A native task of that name.
fn native(name: &str) -> Submission {
    let mut native = Task::new("longshore.ping", ArgMap::new());
    native.id = task(name);
    Submission::of(&native, longshore::task::ContentType::Json, 0)
}

pub(crate) async fn what_waits_arrives_with_its_bytes_headers_and_priority_and_what_is_leased_stays(
    from: &impl Dock,
    to: &impl Dock,
) {
    let (here, there) = (from.one().await, to.one().await);
    let celery = BTreeMap::from([
        ("task".to_owned(), json!("somebody.elses")),
        ("id".to_owned(), json!("c")),
        ("meth".to_owned(), json!({"b": 1, "a": [null, 2.5, "ä"]})),
    ]);
    let sent = vec![
        with_priority(9, native("first")),
        native("a"),
        Submission { body: b"\x00\xff no task".to_vec().into(), ..with_priority(0, message("raw")) },
        Submission { body: br#"{"v": 7, "id": "later", "task": "x"}"#.to_vec().into(), ..message("later") },
        Submission { headers: celery.clone(), content_encoding: Some("utf-8".to_owned()), ..message("c") },
    ];
    submit(&here, sent.clone()).await;
    let leased = fetch_one(&here).await;
    assert_eq!(leased.body, sent[0].body);
    assert_eq!(run(&transfer(from, to).await).await, moved(4));
    assert_nothing_comes(&here).await;
    settle(leased, Settlement::Ack).await;
    let mut came = fetch_all(&there, 4, 10).await;
    assert_eq!(came.last().unwrap().body, sent[2].body, "the lowest priority comes last");
    assert_eq!(came.last().unwrap().priority.map(longshore::task::Priority::get), Some(0));
    came.sort_by_key(|delivery| sent.iter().position(|one| one.body == delivery.body));
    let other = came.iter().position(|delivery| delivery.headers.contains_key("task")).unwrap();
    let mut headers = came[other].headers.clone();
    assert_eq!(headers.remove("longshore-hop"), Some(json!(1)));
    assert_eq!((headers, came[other].content_encoding.as_deref()), (celery, Some("utf-8")));
    for delivery in came {
        assert_eq!(delivery.hop(), 1);
        settle(delivery, Settlement::Ack).await;
    }
    // Nothing of it comes a second time, and a second move has nothing to do.
    assert_eq!(run(&transfer(from, to).await).await, moved(0));
    assert_nothing_comes(&there).await;
}

/// A source whose settlements never reach the broker, as if its process died after it had submitted.
struct Dying(std::sync::Arc<dyn Source>);
struct Dead;

#[async_trait]
impl Source for Dying {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        let mut deliveries = self.0.fetch(credit, stop).await?;
        for delivery in &mut deliveries {
            delivery.lease.settler = Box::new(Dead);
        }
        Ok(deliveries)
    }
    fn lease(&self) -> Duration {
        self.0.lease()
    }
}

#[async_trait]
impl Settler for Dead {
    async fn settle(self: Box<Self>, _settlement: Settlement) -> Settled {
        Settled::Unknown
    }
}

pub(crate) async fn what_was_cut_off_before_it_was_taken_off_is_found_by_its_dedup_id(
    from: &impl Dock,
    to: &impl Dock,
) {
    let here = from.client("one", &["default"], from.short_lease()).await;
    let there = to.one().await;
    submit(&here, vec![native("a"), native("b"), message("raw")]).await;
    let mut dying = leased(from, to, from.short_lease()).await;
    dying.from.source = std::sync::Arc::new(Dying(dying.from.source));
    assert_eq!(run(&dying).await, Tally { unsettled: 3, ..Tally::default() });
    // Their leases end, and the next mover meets them.
    let next = leased(from, to, from.short_lease()).await;
    let (mut moved, mut duplicates) = (0, 0);
    eventually(Duration::from_secs(20), "all are taken off", async || {
        let tally = run(&next).await;
        moved += tally.moved;
        duplicates += tally.duplicates;
        (moved >= 3).then_some(())
    })
    .await;
    assert_eq!((moved, duplicates), (3, 3));
    assert_nothing_comes(&here).await;
    let came = fetch_all(&there, 3, 10).await;
    let mut names = bodies(&came);
    names.sort();
    assert_eq!(names.len(), 3);
    for delivery in came {
        settle(delivery, Settlement::Ack).await;
    }
    assert_nothing_comes(&there).await;
}

pub(crate) async fn what_comes_back_is_no_duplicate_of_its_first_visit(from: &impl Dock, to: &impl Dock) {
    let (here, there) = (from.one().await, to.one().await);
    submit(&here, vec![native("a"), message("raw")]).await;
    for hop in 1..=4 {
        let back = hop % 2 == 0;
        let tally =
            if back { run(&transfer(to, from).await).await } else { run(&transfer(from, to).await).await };
        assert_eq!(tally, moved(2), "hop {hop}");
        let (gone, is) = if back { (&there, &here) } else { (&here, &there) };
        assert_nothing_comes(gone).await;
        for delivery in fetch_all(is, 2, 10).await {
            assert_eq!(delivery.hop(), hop);
            settle(delivery, Settlement::Release { after: Duration::ZERO }).await;
        }
    }
}

pub(crate) async fn what_is_delayed_keeps_its_time_and_what_is_canceled_stays_so(
    from: &impl Dock,
    to: &impl Dock,
) {
    let (here, there) = (from.one().await, to.one().await);
    let due = Timestamp::now() + Duration::from_secs(3_600);
    let later = Submission { not_before: Some(due), ..with_priority(8, native("later")) };
    submit(&here, vec![later, native("retried"), native("unwanted")]).await;
    // Given back with a delay, as after a failure.
    for delivery in fetch_all(&here, 2, 2).await {
        let after = Duration::from_secs(1_800);
        settle(delivery, Settlement::Retry { after }).await;
    }
    here.topic
        .command(Command::Cancel { task: task("unwanted"), reason: "not today".to_owned() })
        .await
        .unwrap();
    assert_eq!(run(&transfer(from, to).await).await, moved(3));
    let waiting = there.admin.waiting(&WaitingQuery::default()).await.unwrap();
    let time = |name: &str| {
        let found = waiting.iter().find(|one| one.task == task(name));
        let found = found.unwrap_or_else(|| panic!("{name} is not in {waiting:?}"));
        (found.not_before.unwrap(), found.priority.get())
    };
    let (later, priority) = time("later");
    // Brokers reckon in microseconds or milliseconds.
    let rounded = later + Duration::from_millis(1);
    assert!(rounded >= due && later < due + Duration::from_secs(5), "{later} instead of {due}");
    assert_eq!(priority, 8);
    let half_an_hour = Timestamp::now() + Duration::from_secs(1_800);
    let (retried, _) = time("retried");
    assert!(retried > half_an_hour - Duration::from_secs(60) && retried <= half_an_hour, "{retried}");
    assert_eq!(there.topic.cancel_requested(&task("unwanted")).await.unwrap().as_deref(), Some("not today"));
    assert!(here.admin.waiting(&WaitingQuery::default()).await.unwrap().is_empty());
    assert_nothing_comes(&there).await;
}

pub(crate) async fn what_a_worker_is_at_or_has_ended_stays(from: &impl Dock, to: &impl Dock) {
    let (here, there) = (from.one().await, to.one().await);
    let store = from.store().await;
    for (name, status) in
        [("ended", Status::Succeeded), ("lives", Status::Running), ("died", Status::Running)]
    {
        submit(&here, vec![native(name)]).await;
        let mut of = Task::new("longshore.ping", ArgMap::new());
        of.id = task(name);
        let ahead = if name == "lives" { 60 } else { -60 };
        let lease_until = Some(Timestamp::now() + jiff::SignedDuration::from_secs(ahead));
        let record = Record { status, fence: Fence(1), lease_until, ..Record::empty(&of) };
        store.put(&record, Expected::Absent).await.unwrap();
    }
    // Its worker died, and keeps its outputs until somebody takes them.
    submit(&here, vec![native("spooled")]).await;
    let mut of = Task::new("longshore.ping", ArgMap::new());
    of.id = task("spooled");
    let now = Timestamp::now();
    let until = now + Duration::from_secs(3_600);
    let error = TaskError::retryable("girder", "nobody takes them");
    let spooled = Some(Spooled { since: now, until, tries: 1, next: None, error });
    let (status, lease_until) = (Status::Uploading, Some(now - jiff::SignedDuration::from_secs(60)));
    let record = Record { status, fence: Fence(1), lease_until, spooled, ..Record::empty(&of) };
    store.put(&record, Expected::Absent).await.unwrap();
    assert_eq!(run(&transfer(from, to).await).await, Tally { moved: 1, left: 3, ..Tally::default() });
    let came = fetch_all(&there, 1, 10).await;
    assert!(bodies(&came)[0].contains("died"));
    // Also what waits for its time, which it keeps.
    let due = Timestamp::now() + Duration::from_secs(3_600);
    let mut of = Task::new("longshore.ping", ArgMap::new());
    of.id = task("later");
    let record = Record { status: Status::Succeeded, fence: Fence(1), ..Record::empty(&of) };
    store.put(&record, Expected::Absent).await.unwrap();
    submit(&here, vec![Submission { not_before: Some(due), ..native("later") }]).await;
    assert_eq!(run(&transfer(from, to).await).await, Tally { left: 4, ..Tally::default() });
    let query = WaitingQuery { task: Some(task("later")), ..WaitingQuery::default() };
    let waiting = here.admin.waiting(&query).await.unwrap();
    let kept = waiting[0].not_before.unwrap();
    assert!(kept > due - Duration::from_secs(5) && kept < due + Duration::from_secs(5), "{kept}");
    let mut stayed = bodies(&fetch_all(&here, 3, 10).await);
    stayed.sort();
    assert!(
        stayed[0].contains("ended") && stayed[1].contains("lives") && stayed[2].contains("spooled"),
        "{stayed:?}"
    );
}

pub(crate) async fn a_limit_is_kept_and_a_stop_ends_it_with_nothing_held(from: &impl Dock, to: &impl Dock) {
    let here = from.one().await;
    submit(&here, (0..7).map(|n| native(&format!("t{n}"))).collect()).await;
    let limited = Transfer { limit: Some(5), ..transfer(from, to).await };
    assert_eq!(run(&limited).await, moved(5));
    let stop = CancelScope::new();
    stop.cancel(CancelReason::Interrupted);
    let mut tally = Tally::default();
    transfer(from, to).await.run(&stop, &mut tally, |_| {}).await.unwrap();
    assert_eq!(tally, moved(0));
    // They are there for others at once.
    fetch_all(&here, 2, 10).await;
}

#[tokio::test]
async fn what_is_delayed_among_celerys_queues_in_redis_keeps_its_time_and_outlives_its_mover() {
    let from = crate::celery_redis::dock::CeleryRedis::start().await;
    let to = crate::support::redis::Redis::start().await;
    let (here, there) = (from.client("one", &["default"], from.short_lease()).await, to.one().await);
    let due = Timestamp::now() + Duration::from_secs(3_600);
    submit(&here, vec![Submission { not_before: Some(due), ..native("later") }, native("retried")]).await;
    let after = Duration::from_secs(1_800);
    settle(fetch_one(&here).await, Settlement::Retry { after }).await;
    // A mover that dies leaves what it took to whoever comes next.
    let taken = here.source.fetch_delayed(10).await.unwrap().expect("it can hand them out");
    assert_eq!(taken.len(), 2);
    assert!(taken[0].0 < taken[1].0 && (taken[1].0.duration_since(due)).abs() < SECOND, "{:?}", taken[1].0);
    assert_eq!(here.source.fetch_delayed(10).await.unwrap().map(|again| again.len()), Some(0));
    for (at, delivery) in taken {
        let after = Duration::try_from(at.duration_since(Timestamp::now())).unwrap();
        settle(delivery, Settlement::Release { after }).await;
    }
    assert_eq!(here.source.fetch_delayed(10).await.unwrap().map(|leased| leased.len()), Some(2));
    eventually(Duration::from_secs(20), "their leases end", async || {
        let queues = here.admin.queues().await.unwrap();
        queues.iter().any(|queue| queue.ready + queue.leased == 2).then_some(())
    })
    .await;
    for delivery in fetch_all(&here, 2, 10).await {
        settle(delivery, Settlement::Retry { after }).await;
    }
    assert_eq!(run(&transfer(&from, &to).await).await, moved(2));
    let waiting = there.admin.waiting(&WaitingQuery::default()).await.unwrap();
    assert!(waiting.len() == 2 && waiting.iter().all(|one| one.not_before.is_some()), "{waiting:?}");
    assert!(here.admin.waiting(&WaitingQuery::default()).await.unwrap().is_empty());
    assert_nothing_comes(&there).await;
}

const SECOND: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);

/// A broker that refuses what it is given.
struct Refusing;

#[async_trait]
impl longshore::broker::Submit for Refusing {
    async fn submit(
        &self,
        _submissions: Vec<Submission>,
    ) -> Result<Vec<longshore::broker::Submitted>, BrokerError> {
        let (broker, reason) = ("full".to_owned(), "no room".to_owned());
        Err(BrokerError::Refused { broker, action: "take the submission", reason })
    }
}

#[tokio::test]
async fn what_is_refused_there_is_given_back_here_at_once() {
    let (from, to) =
        (crate::contract::dock::Sqlite::start().await, crate::contract::dock::Memory::start().await);
    let here: Broker = from.one().await;
    submit(&here, vec![native("a")]).await;
    let mut transfer = transfer(&from, &to).await;
    transfer.to.submit = std::sync::Arc::new(Refusing);
    let mut tally = Tally::default();
    let ended = transfer.run(&CancelScope::new(), &mut tally, |_| {}).await;
    let Err(TransferError::Broker(BrokerError::Refused { .. })) = ended else { panic!("{ended:?}") };
    assert_eq!(tally, moved(0));
    let delivery = fetch_one(&here).await;
    let body: Value = serde_json::from_slice(&delivery.body).unwrap();
    assert_eq!(body["id"], "a");
}
