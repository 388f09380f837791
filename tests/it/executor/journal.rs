//! Ends of tasks while the store is away, also when the worker dies meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use longshore::cancel::{CancelReason, CancelScope};
use longshore::executor::Settings;
use longshore::executor::keeper::Keeper;
use longshore::lifecycle::LifePhase;
use longshore::store::journal::Journal;
use longshore::store::{
    Expected, Put, Record, RecordQuery, ResultStore, Retention, Status, StoreError, StoreInfo, Versioned,
};
use longshore::task::{Fence, TaskId};

use super::fences::{Leases, runs};
use super::rig::{LEASE, Rig, Running, Scripted, settings, task};

/// A store that a test takes away.
struct Tidal {
    inner: Arc<dyn ResultStore>,
    is_away: AtomicBool,
}

impl Tidal {
    fn reach(&self) -> Result<&dyn ResultStore, StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable {
                store: "tidal".to_owned(),
                reason: "low water".to_owned(),
            });
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl ResultStore for Tidal {
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        self.reach()?.load(id).await
    }
    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError> {
        self.reach()?.put(record, expected).await
    }
    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError> {
        self.reach()?.touch(id, fence, until).await
    }
    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError> {
        self.reach()?.fulfil(id, fence, sink).await
    }
    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
        self.reach()?.list(query).await
    }
    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError> {
        self.reach()?.sweep(retention).await
    }
    fn describe(&self) -> StoreInfo {
        self.inner.describe()
    }
}

/// A rig over a store that can go away, and the folder of a worker's journal.
struct Shore {
    rig: Rig,
    store: Arc<Tidal>,
    folder: tempfile::TempDir,
}

impl Shore {
    async fn new() -> Self {
        let mut rig = Rig::new().await;
        let store = Arc::new(Tidal { inner: rig.store.clone(), is_away: AtomicBool::new(false) });
        rig.store = store.clone();
        Self { rig, store, folder: tempfile::tempdir().unwrap() }
    }

    fn worker(&self, script: &Scripted) -> Running {
        let journal = Journal::at(self.folder.path().to_owned());
        self.rig.start("quay", script, Settings { journal, ..settings(1) })
    }

    fn away(&self, is_away: bool) {
        self.store.is_away.store(is_away, Ordering::Relaxed);
    }

    async fn until_kept(&self, count: usize) {
        for _ in 0..10_000 {
            if files(self.folder.path()) == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} ends are journaled, not {count}", files(self.folder.path()));
    }

    /// A task that ended while the store was away, and its worker's script.
    async fn ended_at_low_water(&self) -> (Running, Scripted, longshore::task::Task) {
        let script = Scripted::held();
        let worker = self.worker(&script);
        let task = task(&[]);
        self.rig.submit(&task).await;
        runs(&script, 1).await;
        self.away(true);
        script.may_end.add_permits(1);
        self.until_kept(1).await;
        (worker, script, task)
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test(start_paused = true)]
async fn an_end_waits_for_the_store_with_its_lease_and_is_told_only_then() {
    let shore = Shore::new().await;
    let (worker, script, task) = shore.ended_at_low_water().await;
    tokio::time::sleep(LEASE * 3).await;
    assert!(!shore.rig.told(&task).await.contains(&"succeeded"), "nothing is told before it is recorded");
    assert_eq!(shore.rig.messages().await, 1);
    shore.away(false);
    let record = shore.rig.finished(&task).await;
    assert_eq!((record.status, record.attempts, script.count("stage")), (Status::Succeeded, 1, 1));
    shore.until_kept(0).await;
    assert!(worker.drained().await);
    assert_eq!(shore.rig.messages().await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_its_worker_could_not_record_is_recorded_by_the_next_process_and_not_done_again() {
    let shore = Shore::new().await;
    let (worker, _, task) = shore.ended_at_low_water().await;
    worker.lifecycle.advance(LifePhase::Killed);
    worker.executor.ended().await;
    let again = Scripted::free();
    let next = shore.worker(&again);
    tokio::time::sleep(LEASE / 2).await;
    shore.away(false);
    let record = shore.rig.finished(&task).await;
    assert_eq!((record.status, record.attempts), (Status::Succeeded, 1));
    shore.until_kept(0).await;
    // Its message comes again when the dead process's lease lapses.
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!((shore.rig.messages().await, again.count("stage")), (0, 0));
    let told = shore.rig.told(&task).await;
    assert_eq!(told.iter().filter(|event| **event == "succeeded").count(), 1, "{told:?}");
    assert!(next.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_journaled_end_that_was_overtaken_is_dropped() {
    let shore = Shore::new().await;
    let (worker, _, task) = shore.ended_at_low_water().await;
    worker.lifecycle.advance(LifePhase::Killed);
    worker.executor.ended().await;
    shore.away(false);
    // Another worker took the task over meanwhile.
    let found = shore.store.load(&task.id).await.unwrap().unwrap();
    let taken = Record { fence: Fence(found.record.fence.0 + 1_000_000), ..found.record };
    shore.store.put(&taken, Expected::At(found.revision)).await.unwrap();
    let next = shore.worker(&Scripted::held());
    shore.until_kept(0).await;
    let record = shore.store.load(&task.id).await.unwrap().unwrap().record;
    assert_eq!((record.status, record.fence), (taken.status, taken.fence));
    assert!(next.drained().await);
}

#[tokio::test(start_paused = true)]
async fn an_effect_waits_until_the_store_says_whose_the_task_is() {
    let shore = Shore::new().await;
    let task = task(&[]);
    let record = Record { fence: Fence(7), status: Status::Running, ..Record::empty(&task) };
    shore.rig.store.put(&record, Expected::Absent).await.unwrap();
    let (keeper, scope) = (Keeper::new(shore.rig.store.clone()), CancelScope::new());
    let hold = keeper.hold(task.id.clone(), Fence(7), scope.clone(), Leases::Kept.lease());
    let gate = keeper.gate(&hold);
    // Nobody prolongs it here.
    tokio::time::sleep(LEASE).await;
    shore.away(true);
    let mut effect = gate.check();
    assert!(tokio::time::timeout(LEASE, &mut effect).await.is_err(), "it waits");
    shore.away(false);
    effect.await.unwrap();
    shore.away(true);
    scope.cancel(CancelReason::Interrupted);
    assert_eq!(gate.check().await.unwrap_err().code, "store_away", "an end of the attempt is not waited out");
}

#[tokio::test(start_paused = true)]
async fn when_the_store_has_lost_the_record_the_brokers_lease_says_whose_the_task_is() {
    let shore = Shore::new().await;
    for (leases, ours) in [(Leases::Kept, true), (Leases::Gone, false)] {
        let (keeper, scope) = (Keeper::new(shore.rig.store.clone()), CancelScope::new());
        let hold = keeper.hold(task(&[]).id, Fence(7), scope.clone(), leases.lease());
        let stop = CancelScope::new();
        let running = tokio::spawn(keeper.clone().run(stop.clone()));
        tokio::time::sleep(LEASE * 2).await;
        assert_eq!(keeper.gate(&hold).check().await.is_ok(), ours);
        assert_eq!(scope.reason(), (!ours).then_some(CancelReason::LeaseLost));
        stop.cancel(CancelReason::Interrupted);
        running.await.unwrap();
    }
}
