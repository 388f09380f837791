//! The attempts that live in this process, as others may see them, and the commands that they may send.
//!
//! The executor writes it; control channels, the dashboard and the reaper read it. It holds no task bodies and no secrets. Beside
//! what lives here it knows what came before its time and waits at the broker ([`Deferred`]), and which stamps Celery's senders
//! revoked ([`Stamps`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::cancel::{CancelReason, CancelScope};
use crate::task::{Fence, Generation, QueueName, TaskId};

/// The live attempts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Ledger {
    entries: Arc<Mutex<HashMap<TaskId, Entry>>>,
    deferred: Arc<Mutex<HashMap<TaskId, Deferred>>>,
    revoked: Arc<Mutex<Stamps>>,
}

struct Entry {
    live: Live,
    scope: CancelScope,
    stamps: Stamps,
}

/// What a sender stamped tasks with: values by header. Celery revokes by them.
pub type Stamps = BTreeMap<String, BTreeSet<String>>;

/// Values that are remembered as revoked; more are passed over.
const STAMPS: usize = 10_000;
/// Tasks before their time that are remembered; more wait all the same, and are not shown.
const DEFERRED: usize = 20_000;

/// A task that came before its time and waits at the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deferred {
    /// The task.
    pub task: TaskId,
    /// Its kind.
    pub kind: String,
    /// Where it came from.
    pub queue: QueueName,
    /// Its time.
    pub due: Timestamp,
}

/// A live attempt as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Live {
    /// The task.
    pub task: TaskId,
    /// Its kind.
    pub kind: String,
    /// Where it came from.
    pub queue: QueueName,
    /// Which life of the id.
    pub generation: Generation,
    /// Counts from 1.
    pub attempt: u32,
    /// Its fence.
    pub fence: Fence,
    /// The broker message that carries it.
    pub message: String,
    /// How far it is.
    pub phase: LivePhase,
    /// Since when it lives here.
    pub since: Timestamp,
}

/// How far a live attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LivePhase {
    /// Being prepared.
    Staging,
    /// Prepared, waiting for a lane.
    Staged,
    /// On a lane.
    Running,
    /// Ended but for its outputs, which wait until they can be brought away.
    Spooled,
    /// Such outputs are on their way.
    Uploading,
    /// Ended, being recorded and told.
    Settling,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an attempt. `false`: one of that task lives here already, and nothing was changed.
    pub fn enter(&self, live: Live, scope: CancelScope) -> bool {
        let mut entries = self.lock();
        if entries.contains_key(&live.task) {
            return false;
        }
        entries.insert(live.task.clone(), Entry { live, scope, stamps: Stamps::new() });
        true
    }

    /// Notes what the sender stamped a live attempt with.
    pub fn stamp(&self, task: &TaskId, stamps: Stamps) {
        if let Some(entry) = self.lock().get_mut(task) {
            entry.stamps = stamps;
        }
    }

    /// Remembers stamps as revoked: what carries one must not start any more.
    pub fn revoke_stamps(&self, stamps: &Stamps) {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = STAMPS.saturating_sub(revoked.values().map(BTreeSet::len).sum());
        for (header, values) in stamps {
            for value in values.iter().take(room) {
                if revoked.entry(header.clone()).or_default().insert(value.clone()) {
                    room -= 1;
                }
            }
        }
    }

    /// Those of `stamps` that were revoked.
    pub fn revoked_of(&self, stamps: &Stamps) -> Stamps {
        shared(&self.revoked.lock().unwrap_or_else(PoisonError::into_inner), stamps)
    }

    /// The live attempts that carry one of `stamps`, each with those that it carries.
    pub fn stamped(&self, stamps: &Stamps) -> Vec<(TaskId, Stamps)> {
        let entries = self.lock();
        let found = entries.values().map(|entry| (entry.live.task.clone(), shared(stamps, &entry.stamps)));
        found.filter(|(_, shared)| !shared.is_empty()).collect()
    }

    /// Notes that a task waits at the broker until its time.
    pub fn defer(&self, deferred: Deferred) {
        let mut all = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= DEFERRED {
            let now = Timestamp::now();
            all.retain(|_, other| other.due > now);
        }
        if all.len() < DEFERRED {
            all.insert(deferred.task.clone(), deferred);
        }
    }

    /// Strikes a task out that waits no more.
    pub fn undefer(&self, task: &TaskId) {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }

    /// What waits until a time that has not come, the soonest first.
    pub fn deferred(&self) -> Vec<Deferred> {
        let mut all = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        all.retain(|_, deferred| deferred.due > now);
        let mut found: Vec<Deferred> = all.values().cloned().collect();
        found.sort_by(|a, b| (a.due, &a.task).cmp(&(b.due, &b.task)));
        found
    }

    /// Notes how far an attempt is.
    pub fn advance(&self, task: &TaskId, phase: LivePhase) {
        if let Some(entry) = self.lock().get_mut(task) {
            entry.live.phase = phase;
        }
    }

    /// Strikes an attempt out.
    pub fn leave(&self, task: &TaskId, fence: Fence) {
        let mut entries = self.lock();
        if entries.get(task).is_some_and(|entry| entry.live.fence == fence) {
            entries.remove(task);
        }
    }

    /// The live attempt of `task`.
    pub fn find(&self, task: &TaskId) -> Option<Live> {
        self.lock().get(task).map(|entry| entry.live.clone())
    }

    /// Whether the attempt with this fence lives here.
    pub fn is_live(&self, task: &TaskId, fence: Fence) -> bool {
        self.lock().get(task).is_some_and(|entry| entry.live.fence == fence)
    }

    /// Cancels the live attempt of `task`. `false`: there is none here.
    pub fn cancel(&self, task: &TaskId, reason: CancelReason) -> bool {
        match self.lock().get(task) {
            Some(entry) => {
                entry.scope.cancel(reason);
                true
            }
            None => false,
        }
    }

    /// Everything that lives here, oldest first.
    pub fn all(&self) -> Vec<Live> {
        let mut all: Vec<Live> = self.lock().values().map(|entry| entry.live.clone()).collect();
        all.sort_by_key(|live| live.fence);
        all
    }

    /// How many live here.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none lives here.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Ends the scopes of those in one of `phases`.
    pub fn end(&self, phases: &[LivePhase], reason: &CancelReason) {
        for entry in self.lock().values().filter(|entry| phases.contains(&entry.live.phase)) {
            entry.scope.cancel(reason.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands in both.
fn shared(one: &Stamps, other: &Stamps) -> Stamps {
    let both = one.iter().filter_map(|(header, values)| {
        let both: BTreeSet<String> = values.intersection(other.get(header)?).cloned().collect();
        (!both.is_empty()).then(|| (header.clone(), both))
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(pairs: &[(&str, &str)]) -> Stamps {
        let mut stamps = Stamps::new();
        for (header, value) in pairs {
            stamps.entry((*header).to_owned()).or_default().insert((*value).to_owned());
        }
        stamps
    }

    #[test]
    fn what_carries_a_revoked_stamp_is_known_by_header_and_value() {
        let ledger = Ledger::new();
        ledger.revoke_stamps(&stamps(&[("batch", "1"), ("batch", "2")]));
        assert_eq!(ledger.revoked_of(&stamps(&[("batch", "2"), ("other", "1")])), stamps(&[("batch", "2")]));
        assert!(ledger.revoked_of(&stamps(&[("other", "1"), ("batch", "3")])).is_empty());
    }

    #[test]
    fn what_waits_for_its_time_is_told_until_then_and_the_soonest_first() {
        let ledger = Ledger::new();
        let wait = |id: &str, seconds: i64| Deferred {
            task: TaskId::new(id).unwrap(),
            kind: "docker_run".to_owned(),
            queue: QueueName::default(),
            due: Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
        };
        for deferred in [wait("late", 60), wait("soon", 30), wait("past", -1), wait("gone", 30)] {
            ledger.defer(deferred);
        }
        ledger.undefer(&TaskId::new("gone").unwrap());
        let told: Vec<String> =
            ledger.deferred().into_iter().map(|deferred| deferred.task.to_string()).collect();
        assert_eq!(told, ["soon", "late"]);
    }
}
