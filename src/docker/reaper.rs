//! Removes what our own instance left and no attempt stands behind: containers and workspaces of a killed worker, and what
//! a removal missed. What an attempt can go on with that is still the current one of its task is kept for its adoption.
//!
//! Containers by id, after a grace, and only by the labels that we gave: one of another instance, or without our labels,
//! is never touched whatever its name is. At the start there is no grace, since nothing of ours can be in the making.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::engine::{Engine, EngineError, Listed};
use super::run::Room;
use super::{book, labels};
use crate::cancel::CancelScope;
use crate::handler::Identity;
use crate::pipeline::{self, workspace};
use crate::store::{Expected, Record, ResultStore, Versioned};
use crate::task::{Fence, TaskId};

/// The attempts that are at work here.
pub type Lives = dyn Fn() -> HashSet<(TaskId, Fence)> + Send + Sync;

/// Looks after what one instance left.
#[derive(Clone)]
pub struct Reaper {
    engine: Arc<dyn Engine>,
    store: Arc<dyn ResultStore>,
    identity: Identity,
    work_dir: PathBuf,
    spool: Option<PathBuf>,
    grace: Duration,
    every: Duration,
    adopt_window: Duration,
}

/// Whether something that no attempt here stands behind is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A message will come with which it is adopted; or that cannot be known now.
    Perhaps,
    /// By nobody.
    No,
}

impl Reaper {
    pub(super) fn new(
        room: &Room,
        identity: &Identity,
        store: Arc<dyn ResultStore>,
        adopt_window: Duration,
    ) -> Self {
        Self {
            engine: room.driver.engine.clone(),
            store,
            identity: identity.clone(),
            work_dir: room.pipeline.work_dir.clone(),
            spool: room.pipeline.spool.clone(),
            grace: room.settings.reap_grace.get(),
            every: room.settings.reap_every.get().max(Duration::from_secs(1)),
            adopt_window,
        }
    }

    /// Removes what an earlier process of this instance left and cannot be gone on with; returns the ids of containers.
    pub async fn clear(&self, lives: &Lives) -> Result<Vec<String>, EngineError> {
        self.sweep(Duration::ZERO, lives).await
    }

    /// Looks for orphans until the scope ends.
    pub async fn watch(&self, lives: &Lives, scope: &CancelScope) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                _ = scope.canceled() => return,
            }
            match self.sweep(self.grace, lives).await {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => tracing::warn!(?removed, "removed containers that no attempt stands behind"),
                Err(error) => tracing::debug!(%error, "looking for orphaned containers failed"),
            }
        }
    }

    async fn sweep(&self, grace: Duration, lives: &Lives) -> Result<Vec<String>, EngineError> {
        let label = format!("{}={}", labels::INSTANCE, self.identity.instance);
        let now = Timestamp::now().as_second();
        let mut removed = Vec::new();
        let workspaces = workspace::list(&self.work_dir, &self.identity.instance);
        let spooled = self.spool.as_deref().map(|spool| workspace::list(spool, &self.identity.instance));
        let listed = self.engine.list(&[label]).await;
        self.sweep_spool(spooled.unwrap_or_default(), lives).await;
        let containers = listed?;
        // Asked last: whatever was listed and is at work was entered before.
        let mut wanted = lives();
        for container in containers {
            let age = Duration::from_secs(u64::try_from(now - container.created).unwrap_or(0));
            let owner = labels::owner(&container);
            if owner.as_ref().is_some_and(|owner| wanted.contains(owner)) {
                continue;
            }
            if let Some(owner) = owner
                && self.wanted(&container, &owner).await == Wanted::Perhaps
            {
                wanted.insert(owner);
                continue;
            }
            let kept = container.labels.contains_key(labels::KEEP) && !container.running;
            if kept || age < grace {
                continue;
            }
            match self.engine.remove(&container.id).await {
                Ok(()) => removed.push(container.id),
                Err(error) if error.is_away() => return Err(error),
                Err(error) => tracing::warn!(container = container.id, %error, "an orphan was not removed"),
            }
        }
        self.sweep_workspaces(workspaces, &wanted);
        Ok(removed)
    }

    /// Whether the attempt that `container` was made for can be adopted: its book is there, and the record says that it is
    /// still the current one and ours.
    async fn wanted(&self, container: &Listed, (task, fence): &(TaskId, Fence)) -> Wanted {
        let folder = workspace::place(&self.work_dir, &self.identity.instance, (task, *fence));
        if container.labels.contains_key(labels::CLEANER) || book::begun(&folder, task, *fence).is_none() {
            return Wanted::No;
        }
        match self.store.load(task).await {
            Ok(Some(current)) if self.awaits(&current.record, *fence) => {
                if !self.has_begun(&current.record) {
                    self.claim(current).await;
                }
                Wanted::Perhaps
            }
            Ok(_) => Wanted::No,
            Err(error) => {
                tracing::debug!(%task, %error, "whether its container is still wanted cannot be known now");
                Wanted::Perhaps
            }
        }
    }

    fn awaits(&self, record: &Record, fence: Fence) -> bool {
        let Some(owner) = &record.owner else { return false };
        let adopts = if self.has_begun(record) { Duration::ZERO } else { self.adopt_window };
        let longest = record.lease_until.map(|until| until + adopts);
        record.fence == fence
            && !record.status.is_finished()
            && *owner.instance == *self.identity.instance
            && longest.is_some_and(|longest| longest > Timestamp::now())
    }

    /// Whether it is this very process that is at it. It may have been adopted since the lives were looked at, and its lease is
    /// kept as long as it is at work: only one that has lapsed shows that it has ended.
    fn has_begun(&self, record: &Record) -> bool {
        let owner = record.owner.as_ref();
        owner.is_some_and(|owner| *owner.incarnation == *self.identity.incarnation) && record.left.is_none()
    }

    /// Says in the record that what a killed process was at waits for us, as if it had been left: its message may reach
    /// another worker first, which then gives it back.
    async fn claim(&self, current: Versioned) {
        let Versioned { record, revision } = current;
        if record.left.is_some() {
            return;
        }
        let now = Timestamp::now();
        let claimed = Record { left: Some(now), lease_until: Some(now + self.adopt_window), ..record };
        // In a conflict somebody else was faster, and what that one says counts.
        if let Err(error) = self.store.put(&claimed, Expected::At(revision)).await {
            tracing::debug!(task = %claimed.id, %error, "a container that runs on could not be claimed");
        }
    }

    /// Removes outputs that wait for an attempt which is not the current one of its task any more.
    async fn sweep_spool(&self, found: Vec<String>, lives: &Lives) {
        let Some(spool) = &self.spool else { return };
        let alive: HashSet<String> =
            lives().iter().map(|(task, fence)| workspace::attempt_name(task, *fence)).collect();
        for name in found.into_iter().filter(|name| !alive.contains(name)) {
            let folder = spool.join(workspace::parent_name(&self.identity.instance)).join(&name);
            let wanted = match pipeline::spool::whose(&folder) {
                Some((task, fence)) => match self.store.load(&task).await {
                    Ok(current) => current.is_some_and(|Versioned { record, .. }| {
                        record.fence == fence && !record.status.is_finished()
                    }),
                    Err(_) => true,
                },
                None => false,
            };
            if !wanted && let Err(error) = workspace::remove(spool, &self.identity.instance, &name) {
                tracing::debug!(name, %error, "outputs that nobody waits for were not removed");
            }
        }
    }

    fn sweep_workspaces(&self, found: Vec<String>, wanted: &HashSet<(TaskId, Fence)>) {
        let wanted: HashSet<String> =
            wanted.iter().map(|(task, fence)| workspace::attempt_name(task, *fence)).collect();
        for name in found.into_iter().filter(|name| !wanted.contains(name)) {
            if let Err(error) = workspace::remove(&self.work_dir, &self.identity.instance, &name) {
                tracing::debug!(name, %error, "an orphaned workspace was not removed");
            }
        }
    }
}
