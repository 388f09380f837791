//! Keeps the leases of live attempts until they are settled.
//!
//! Every lease is extended at the broker, and in the record, when a quarter of it has passed, or shortly before its half where
//! that is traffic ([`Renewal`]). A lease that is another's ends its attempt at once. While broker or store do not answer, the attempt goes on: its effects ask the fence first,
//! and wait until that can be answered.
//!
//! # Decisions
//! - A record that is not there is nobody's: the store lost its data. Then the broker's lease says alone whose the task is.
//! - What was recorded counts as fresh by two clocks. The one that no adjustment moves stands still while the machine
//!   sleeps; the wall's does not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::message::Lease;
use crate::broker::{Extended, Extender, Part, Settler};
use crate::cancel::{CancelReason, CancelScope};
use crate::error::TaskError;
use crate::handler::FenceGate;
use crate::store::{ResultStore, StoreError};
use crate::task::{Fence, TaskId};

/// Between two questions whose a task is, while nobody answers.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Keeps leases. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ResultStore>,
    holds: Mutex<HashMap<u64, Hold>>,
    next_key: AtomicU64,
    wake: Notify,
    /// When the loop looks next; a hold due earlier wakes it.
    looks_at: Mutex<Option<Instant>>,
}

/// The lease of one live attempt. Cheap to clone.
#[derive(Clone)]
pub struct Hold {
    inner: Arc<HoldInner>,
}

struct HoldInner {
    key: u64,
    task: TaskId,
    fence: Fence,
    scope: CancelScope,
    lease: Mutex<Held>,
}

struct Held {
    extender: Arc<dyn Extender>,
    settler: Option<Box<dyn Settler>>,
    duration: Duration,
    /// Until when the broker keeps it for us.
    until: Instant,
    /// Until when the record says that it is ours, by both clocks.
    recorded_until: (Instant, Timestamp),
}

impl Keeper {
    /// A keeper that records leases in `store`.
    pub fn new(store: Arc<dyn ResultStore>) -> Self {
        let inner = Inner {
            store,
            holds: Mutex::default(),
            next_key: AtomicU64::new(0),
            wake: Notify::new(),
            looks_at: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Keeps `lease`, whose record was stored just now, until it is settled or dropped.
    pub fn hold(&self, task: TaskId, fence: Fence, scope: CancelScope, lease: Lease) -> Hold {
        let key = self.inner.next_key.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            extender: Arc::from(lease.extender),
            settler: Some(lease.settler),
            duration: lease.duration,
            until: lease.until,
            recorded_until: (Instant::now() + lease.duration, Timestamp::now() + lease.duration),
        };
        let due = held.due();
        let hold = Hold { inner: Arc::new(HoldInner { key, task, fence, scope, lease: Mutex::new(held) }) };
        lock(&self.inner.holds).insert(key, hold.clone());
        if lock(&self.inner.looks_at).is_none_or(|at| due < at) {
            self.inner.wake.notify_one();
        }
        hold
    }

    /// The hold of a live attempt of `task`.
    pub fn find(&self, task: &TaskId) -> Option<Hold> {
        lock(&self.inner.holds).values().find(|hold| hold.inner.task == *task).cloned()
    }

    /// Lets go: the lease is extended no more. The settler, unless somebody took it.
    pub fn release(&self, hold: &Hold) -> Option<Box<dyn Settler>> {
        lock(&self.inner.holds).remove(&hold.inner.key);
        hold.lock().settler.take()
    }

    /// A gate that asks whether `hold`'s attempt is still the current one.
    pub fn gate(&self, hold: &Hold) -> Box<dyn FenceGate> {
        Box::new(Gate { store: self.inner.store.clone(), hold: hold.clone() })
    }

    /// Extends leases until `stop` ends. Sleeps while there are none.
    pub async fn run(self, stop: CancelScope) {
        loop {
            let next = lock(&self.inner.holds).values().map(|hold| hold.lock().due()).min();
            *lock(&self.inner.looks_at) = next;
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => self.extend_due().await,
                () = self.inner.wake.notified() => {}
                _ = stop.canceled() => return,
            }
        }
    }

    async fn extend_due(&self) {
        let now = Instant::now();
        // Those due soon go along, so that leases of about the same age cost one wake-up.
        let due: Vec<Hold> = lock(&self.inner.holds)
            .values()
            .filter(|hold| {
                let held = hold.lock();
                held.due() <= now + held.duration / 16
            })
            .cloned()
            .collect();
        let mut extending: FuturesUnordered<_> = due.iter().map(|hold| self.extend(hold)).collect();
        while extending.next().await.is_some() {}
    }

    async fn extend(&self, hold: &Hold) {
        let (extender, duration) = {
            let mut held = hold.lock();
            // Due again after an eighth even when nobody answers.
            let left = held.extender.renewal().left(held.duration);
            held.until = held.until.max(Instant::now() + left + held.duration / 8);
            (held.extender.clone(), held.duration)
        };
        let recorded_until = (Instant::now() + duration, Timestamp::now() + duration);
        match tokio::join!(extender.extend(duration), self.touch(hold, recorded_until.1)) {
            (Ok(Extended::Lost), _) | (_, Ok(Touched::Overtaken)) => {
                tracing::warn!(task = %hold.inner.task, "the lease is another's now");
                hold.inner.scope.cancel(CancelReason::LeaseLost);
                lock(&self.inner.holds).remove(&hold.inner.key);
            }
            (broker, store) => {
                let mut held = hold.lock();
                match broker {
                    Ok(Extended::Until(until)) => held.until = until,
                    Ok(Extended::Lost) => {}
                    Err(error) => {
                        tracing::warn!(task = %hold.inner.task, %error, "the lease could not be extended");
                    }
                }
                match store {
                    Ok(Touched::Ours) => held.recorded_until = recorded_until,
                    Ok(Touched::Overtaken | Touched::Gone) => {}
                    Err(error) => {
                        tracing::warn!(task = %hold.inner.task, %error, "the lease could not be recorded");
                    }
                }
            }
        }
    }
}

impl Keeper {
    /// A store that does not answer must not hold up the next extension, of this lease and of the others.
    async fn touch(&self, hold: &Hold, until: Timestamp) -> Result<Touched, StoreError> {
        let patience = hold.duration() / 4;
        let asked = tokio::time::timeout(patience, self.ask_store(hold, until)).await;
        asked.unwrap_or_else(|_| {
            let store = self.inner.store.describe().name;
            Err(StoreError::Unavailable { store, reason: format!("no answer within {patience:?}") })
        })
    }

    async fn ask_store(&self, hold: &Hold, until: Timestamp) -> Result<Touched, StoreError> {
        let HoldInner { task, fence, .. } = &*hold.inner;
        if self.inner.store.touch(task, *fence, until).await? {
            return Ok(Touched::Ours);
        }
        Ok(match self.inner.store.load(task).await? {
            Some(_) => Touched::Overtaken,
            None => Touched::Gone,
        })
    }
}

/// Whose the record is.
enum Touched {
    Ours,
    Overtaken,
    /// There is none.
    Gone,
}

impl Hold {
    /// Goes on with `lease`, the same message handed over again: the older right to it has lapsed.
    pub fn rebind(&self, lease: Lease) {
        let mut held = self.lock();
        held.extender = Arc::from(lease.extender);
        held.settler = Some(lease.settler);
        held.duration = lease.duration;
        held.until = lease.until;
    }

    /// What takes its message off the queue within a step of another adapter, where that is possible.
    pub fn acknowledgement(&self) -> Option<Part> {
        self.lock().settler.as_ref()?.acknowledgement()
    }

    /// How long its lease lasts from each extension on.
    pub fn duration(&self) -> Duration {
        self.lock().duration
    }

    /// The attempt's scope.
    pub fn scope(&self) -> &CancelScope {
        &self.inner.scope
    }

    fn extender(&self) -> (Arc<dyn Extender>, Duration) {
        let held = self.lock();
        (held.extender.clone(), held.duration)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        lock(&self.inner.lease)
    }
}

impl Held {
    fn due(&self) -> Instant {
        self.until.checked_sub(self.extender.renewal().left(self.duration)).unwrap_or(self.until)
    }

    /// Whether the record said within the last half lease that the task is ours.
    fn is_fresh(&self) -> bool {
        let (by_instant, by_wall) = self.recorded_until;
        by_instant > Instant::now() + self.duration / 2 && by_wall > Timestamp::now() + self.duration / 2
    }
}

struct Gate {
    store: Arc<dyn ResultStore>,
    hold: Hold,
}

#[async_trait]
impl FenceGate for Gate {
    /// While the record said within the last half lease that the task is ours, nobody else can have begun: admission
    /// waits for the recorded lease to end. Only after that the store is asked, until it answers or the attempt must end.
    async fn check(&self) -> Result<(), TaskError> {
        let HoldInner { scope, task, .. } = &*self.hold.inner;
        let lost = || TaskError::retryable("lease_lost", "another worker has taken the task over");
        loop {
            if scope.reason() == Some(CancelReason::LeaseLost) {
                return Err(lost());
            }
            if self.hold.lock().is_fresh() {
                return Ok(());
            }
            match self.is_ours().await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    scope.cancel(CancelReason::LeaseLost);
                    return Err(lost());
                }
                // What was done is not thrown away because nobody can say now whether it counts.
                Err(reason) => {
                    tracing::warn!(%task, reason, "an effect waits until it is known whose the task is");
                    tokio::select! {
                        () = tokio::time::sleep(ASK_AGAIN) => {}
                        _ = scope.canceled() => {
                            return Err(TaskError::retryable("store_away", reason));
                        }
                    }
                }
            }
        }
    }
}

impl Gate {
    async fn is_ours(&self) -> Result<bool, String> {
        let HoldInner { task, fence, .. } = &*self.hold.inner;
        if let Some(current) = self.store.load(task).await.map_err(|error| error.to_string())? {
            return Ok(current.record.fence == *fence && !current.record.status.is_finished());
        }
        let (extender, duration) = self.hold.extender();
        let extended = extender.extend(duration).await.map_err(|error| error.to_string())?;
        Ok(extended != Extended::Lost)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
