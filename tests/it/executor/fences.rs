//! Two workers that believe they own one task, workers that die, tasks that kill.

use std::time::Duration;

use async_trait::async_trait;
use longshore::broker::message::Lease;
use longshore::broker::{BrokerError, Extended, Extender, Settled, Settlement, Settler, WaitingQuery};
use longshore::executor::keeper::Keeper;
use longshore::store::{Expected, Put, Status};
use longshore::task::{Fence, Task};

use super::rig::{LEASE, Rig, Scripted, settings, task};

/// Waits until the worker has the task on a lane.
pub(super) async fn runs(script: &Scripted, count: usize) {
    for _ in 0..1_000 {
        if script.count("run") >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never ran: {:?}", script.steps.lock().unwrap());
}

#[tokio::test(start_paused = true)]
async fn leases_are_kept_however_long_a_task_runs() {
    let rig = Rig::new().await;
    let (first, second) = (Scripted::held(), Scripted::free());
    let worker = rig.start("a", &first, settings(1));
    let task = task(&[]);
    rig.submit(&task).await;
    runs(&first, 1).await;
    let other = rig.start("b", &second, settings(1));
    tokio::time::sleep(LEASE * 20).await;
    assert_eq!(second.count("stage"), 0);
    first.may_end.add_permits(1);
    assert_eq!(rig.finished(&task).await.attempts, 1);
    assert!(worker.drained().await && other.drained().await);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_overtaken_publishes_and_settles_nothing() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[]);
    rig.submit(&task).await;
    runs(&script, 1).await;
    // Another worker takes the record over, as it would after a lapsed lease.
    let found = rig.store.load(&task.id).await.unwrap().unwrap();
    let mut taken = found.record.clone();
    taken.fence = Fence(taken.fence.0 + 1_000_000);
    assert!(matches!(rig.store.put(&taken, Expected::At(found.revision)).await.unwrap(), Put::Stored(_)));
    tokio::time::sleep(LEASE).await;
    assert_eq!(script.count("lost"), 1, "its next extension finds the larger fence");
    let record = rig.store.load(&task.id).await.unwrap().unwrap().record;
    assert_eq!((record.status, record.fence), (taken.status, taken.fence), "the record is the other's");
    assert_eq!(rig.told(&task).await, ["staging", "running"]);
    assert_eq!(rig.messages().await, 1, "the message is left to the other");
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_stale_end_is_refused_by_the_record() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[]);
    rig.submit(&task).await;
    runs(&script, 1).await;
    let found = rig.store.load(&task.id).await.unwrap().unwrap();
    let mut taken = found.record.clone();
    taken.fence = Fence(taken.fence.0 + 1_000_000);
    rig.store.put(&taken, Expected::At(found.revision)).await.unwrap();
    // It ends before the keeper could notice.
    script.may_end.add_permits(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.count("end"), 1);
    let record = rig.store.load(&task.id).await.unwrap().unwrap().record;
    assert_eq!((record.status, record.fence), (Status::Running.min(taken.status), taken.fence));
    assert!(!rig.told(&task).await.contains(&"succeeded"));
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_tasks_only_message_is_kept_while_an_overtaken_attempt_of_it_winds_down() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[("lingers", "")]);
    rig.submit(&task).await;
    runs(&script, 1).await;
    // Overtaken by one that died at once, so that the message comes again.
    let found = rig.store.load(&task.id).await.unwrap().unwrap();
    let mut taken = found.record.clone();
    taken.fence = Fence(taken.fence.0 + 1_000_000);
    taken.owner = None;
    taken.lease_until = None;
    rig.store.put(&taken, Expected::At(found.revision)).await.unwrap();
    tokio::time::sleep(LEASE * 3).await;
    assert_eq!((script.count("lost"), script.count("run")), (1, 1), "it winds down");
    assert_eq!(rig.messages().await, 1, "the message is all that there is of the task");
    script.may_end.add_permits(2);
    assert_eq!(rig.finished(&task).await.status, Status::Succeeded);
    assert!(worker.drained().await);
}

/// Takes a task's message and admits it like a worker that dies at once: the record says so and nobody extends.
async fn die_with(rig: &Rig, task: &Task, starts: u32) {
    use longshore::cancel::CancelScope;
    use longshore::store::{Owner, Record};
    let delivery = rig.broker.source.fetch(1, &CancelScope::new()).await.unwrap().pop().unwrap();
    let fence =
        rig.store.load(&task.id).await.unwrap().map_or(Fence(1), |found| Fence(found.record.fence.0 + 1));
    let record = Record {
        status: Status::Running,
        fence,
        attempts: starts,
        unfinished_starts: starts,
        message: Some(delivery.message.0.clone()),
        source: Some(rig.broker.name.clone()),
        owner: Some(Owner {
            worker: "dead".to_owned(),
            incarnation: "0".to_owned(),
            instance: "i".to_owned(),
            host: "h".to_owned(),
        }),
        lease_until: Some(jiff::Timestamp::now() + Duration::from_millis(1)),
        ..Record::empty(task)
    };
    rig.store.put(&record, Expected::Absent).await.unwrap();
    drop(delivery);
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_a_dead_worker_come_back_after_its_lease() {
    let rig = Rig::new().await;
    let task = task(&[]);
    rig.submit(&task).await;
    die_with(&rig, &task, 1).await;
    let script = Scripted::free();
    let worker = rig.start("b", &script, settings(1));
    let record = rig.finished(&task).await;
    assert_eq!((record.status, record.attempts, record.unfinished_starts), (Status::Succeeded, 2, 0));
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_kills_its_workers_is_parked_at_the_limit() {
    let rig = Rig::new().await;
    let task = task(&[]);
    rig.submit(&task).await;
    die_with(&rig, &task, 3).await;
    let script = Scripted::free();
    let worker = rig.start("b", &script, settings(1));
    let record = rig.finished(&task).await;
    assert_eq!(record.status, Status::Dead);
    assert_eq!(script.count("stage"), 0);
    assert!(worker.drained().await);
    let dead = rig.broker.dead.list(None, 10).await.unwrap();
    assert!(dead[0].reason.contains("started 3 times"), "{}", dead[0].reason);
    assert_eq!(rig.broker.admin.waiting(&WaitingQuery::default()).await.unwrap().len(), 0);
}

/// A broker that keeps every lease, or has given every one away.
#[derive(Clone, Copy)]
pub(super) enum Leases {
    Kept,
    Gone,
}

impl Leases {
    /// One that begins now.
    pub(super) fn lease(self) -> Lease {
        let until = tokio::time::Instant::now() + LEASE;
        Lease { until, duration: LEASE, extender: Box::new(self), settler: Box::new(self) }
    }
}

#[async_trait]
impl Extender for Leases {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        Ok(match self {
            Self::Kept => Extended::Until(tokio::time::Instant::now() + by),
            Self::Gone => Extended::Lost,
        })
    }
}

#[async_trait]
impl Settler for Leases {
    async fn settle(self: Box<Self>, _: Settlement) -> Settled {
        unreachable!("nothing is settled here")
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_broker_gave_to_another_ends_the_attempt() {
    use longshore::cancel::{CancelReason, CancelScope};
    let rig = Rig::new().await;
    let keeper = Keeper::new(rig.store.clone());
    let (scope, stop) = (CancelScope::new(), CancelScope::new());
    let running = tokio::spawn(keeper.clone().run(stop.clone()));
    let _hold = keeper.hold(task(&[]).id, Fence(1), scope.clone(), Leases::Gone.lease());
    let began = tokio::time::Instant::now();
    assert_eq!(scope.canceled().await, CancelReason::LeaseLost);
    assert_eq!(began.elapsed(), LEASE / 4, "a lease is extended when a quarter of it has passed");
    stop.cancel(CancelReason::Interrupted);
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_worker_still_owed_is_told_by_the_next() {
    use longshore::store::{Outcome, Record};
    let rig = Rig::new().await;
    let task = task(&[]);
    let record = Record {
        status: Status::Succeeded,
        outcome: Some(Outcome::Succeeded),
        fence: Fence(7),
        attempts: 1,
        source: Some(rig.broker.name.clone()),
        owed: ["broker".to_owned(), "moody".to_owned()].into(),
        last_event: 2,
        lease_until: Some(jiff::Timestamp::now() - Duration::from_secs(1)),
        envelope: serde_json::to_value(&task).ok(),
        ..Record::empty(&task)
    };
    rig.store.put(&record, Expected::Absent).await.unwrap();
    let worker = rig.start("b", &Scripted::free(), settings(1));
    rig.until(&task, "told everywhere", |record| record.owed.is_empty()).await;
    assert_eq!(rig.told(&task).await, ["succeeded"]);
    let told = rig.moody.told.lock().unwrap().clone();
    assert_eq!(
        (told.len(), told[0].fence, told[0].number),
        (1, Fence(7), 2),
        "the same event, not another one"
    );
    let known = rig.moody.tasks.lock().unwrap()[0].as_ref().map(|task| task.id.clone());
    assert_eq!(known, Some(task.id.clone()), "whom to tell stands in the task, which the record kept");
    assert!(worker.drained().await);
}
