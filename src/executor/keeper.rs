//! Keeps the leases of live attempts until they are settled.
//!
//! Every lease is extended at the broker, and in the record, when a quarter of it has passed. A lease that is another's
//! ends its attempt at once. While broker or store do not answer, the attempt goes on: its effects ask the fence first.

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
use crate::broker::{Extended, Extender, Settler};
use crate::cancel::{CancelReason, CancelScope};
use crate::error::TaskError;
use crate::handler::FenceGate;
use crate::store::ResultStore;
use crate::task::{Fence, TaskId};

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
    /// Until when the record says that it is ours.
    recorded_until: Instant,
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
            recorded_until: Instant::now() + lease.duration,
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
            held.until = held.until.max(Instant::now() + held.duration * 7 / 8);
            (held.extender.clone(), held.duration)
        };
        let asked = Instant::now();
        let record = self.inner.store.touch(&hold.inner.task, hold.inner.fence, Timestamp::now() + duration);
        match tokio::join!(extender.extend(duration), record) {
            (Ok(Extended::Lost), _) | (_, Ok(false)) => {
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
                    Ok(_) => held.recorded_until = asked + duration,
                    Err(error) => {
                        tracing::warn!(task = %hold.inner.task, %error, "the lease could not be recorded");
                    }
                }
            }
        }
    }
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

    /// How long its lease lasts from each extension on.
    pub fn duration(&self) -> Duration {
        self.lock().duration
    }

    /// The attempt's scope.
    pub fn scope(&self) -> &CancelScope {
        &self.inner.scope
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        lock(&self.inner.lease)
    }
}

impl Held {
    fn due(&self) -> Instant {
        self.until.checked_sub(self.duration * 3 / 4).unwrap_or(self.until)
    }
}

struct Gate {
    store: Arc<dyn ResultStore>,
    hold: Hold,
}

#[async_trait]
impl FenceGate for Gate {
    /// While the record said within the last half lease that the task is ours, nobody else can have begun: admission
    /// waits for the recorded lease to end. Only after that the store is asked.
    async fn check(&self) -> Result<(), TaskError> {
        let lost = || TaskError::retryable("lease_lost", "another worker has taken the task over");
        if self.hold.inner.scope.reason() == Some(CancelReason::LeaseLost) {
            return Err(lost());
        }
        let fresh = {
            let held = self.hold.lock();
            held.recorded_until > Instant::now() + held.duration / 2
        };
        if fresh {
            return Ok(());
        }
        let current = self.store.load(&self.hold.inner.task).await;
        let current = current.map_err(|error| TaskError::retryable("store_away", error.to_string()))?;
        let ours = current
            .is_some_and(|c| c.record.fence == self.hold.inner.fence && !c.record.status.is_finished());
        if ours {
            return Ok(());
        }
        self.hold.inner.scope.cancel(CancelReason::LeaseLost);
        Err(lost())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
