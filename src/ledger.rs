//! The attempts that live in this process, as others may see them, and the commands that they may send.
//!
//! The executor writes it; control channels, the dashboard and the reaper read it. It holds no task bodies and no secrets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::cancel::{CancelReason, CancelScope};
use crate::task::{Fence, Generation, QueueName, TaskId};

/// The live attempts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Ledger {
    entries: Arc<Mutex<HashMap<TaskId, Entry>>>,
}

struct Entry {
    live: Live,
    scope: CancelScope,
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
        entries.insert(live.task.clone(), Entry { live, scope });
        true
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
