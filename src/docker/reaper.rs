//! Removes containers of our own instance that no attempt stands behind: what a killed worker left, what a removal missed.
//!
//! By id, after a grace, and only by the labels that we gave: a container of another instance, or one without our labels,
//! is never touched whatever its name is. At the start there is no grace, since nothing of ours can be in the making.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::engine::{Engine, EngineError, Listed};
use super::labels;
use crate::cancel::CancelScope;
use crate::task::{Fence, TaskId};

/// Whether an attempt with this fence is at work here.
pub type IsLive = dyn Fn(&TaskId, Fence) -> bool + Send + Sync;

/// Looks after the containers of one instance.
#[derive(Clone)]
pub struct Reaper {
    engine: Arc<dyn Engine>,
    instance: String,
    grace: Duration,
    every: Duration,
}

impl Reaper {
    pub(super) fn new(engine: Arc<dyn Engine>, instance: &str, (grace, every): (Duration, Duration)) -> Self {
        Self { engine, instance: instance.to_owned(), grace, every: every.max(Duration::from_secs(1)) }
    }

    /// Removes what an earlier process of this instance left, once, before the first attempt; returns the ids.
    pub async fn clear(&self, is_live: &IsLive) -> Result<Vec<String>, EngineError> {
        self.sweep(Duration::ZERO, is_live).await
    }

    /// Looks for orphans until the scope ends.
    pub async fn watch(&self, is_live: &IsLive, scope: &CancelScope) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                _ = scope.canceled() => return,
            }
            match self.sweep(self.grace, is_live).await {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => tracing::warn!(?removed, "removed containers that no attempt stands behind"),
                Err(error) => tracing::debug!(%error, "looking for orphaned containers failed"),
            }
        }
    }

    async fn sweep(&self, grace: Duration, is_live: &IsLive) -> Result<Vec<String>, EngineError> {
        let label = format!("{}={}", labels::INSTANCE, self.instance);
        let now = Timestamp::now().as_second();
        let mut removed = Vec::new();
        for container in self.engine.list(&[label]).await? {
            let age = Duration::from_secs(u64::try_from(now - container.created).unwrap_or(0));
            if !is_orphan(&container, is_live) || age < grace {
                continue;
            }
            match self.engine.remove(&container.id).await {
                Ok(()) => removed.push(container.id),
                Err(error) if error.is_away() => return Err(error),
                Err(error) => tracing::warn!(container = container.id, %error, "an orphan was not removed"),
            }
        }
        Ok(removed)
    }
}

fn is_orphan(container: &Listed, is_live: &IsLive) -> bool {
    let kept = container.labels.contains_key(labels::KEEP) && !container.running;
    // One that says nothing of its attempt cannot have one.
    !kept && !labels::owner(container).is_some_and(|(task, fence)| is_live(&task, fence))
}
