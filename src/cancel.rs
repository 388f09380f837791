//! Cancellation with a reason. The first reason wins, because settlement depends on it.

use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Why an attempt must end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "why", content = "detail")]
pub enum CancelReason {
    /// A person or producer canceled the task; the text says who or why.
    Canceled(String),
    /// The task ran longer than it may.
    TimedOut(String),
    /// The worker stops; the task is given back uncharged.
    Interrupted,
    /// The worker stops and what can run on without it does, to be adopted by its next process; what cannot is given back
    /// as if it were interrupted.
    Left,
    /// The lease is another's now: no effect of this attempt may reach anybody.
    LeaseLost,
}

/// A cancellation token that remembers why. Clones share one fate; a child also ends with its parent.
#[derive(Clone, Debug, Default)]
pub struct CancelScope {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
    parent: Option<Arc<CancelScope>>,
}

impl CancelScope {
    /// A scope of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope that also ends with this one, with this one's reason unless it had its own before.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), reason: Arc::default(), parent: Some(Arc::new(self.clone())) }
    }

    /// Ends the scope. Says whether this was the first reason.
    pub fn cancel(&self, reason: CancelReason) -> bool {
        let first = self.reason().is_none() && self.reason.set(reason).is_ok();
        self.token.cancel();
        first
    }

    /// Whether it ended.
    pub fn is_canceled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The first reason, once it ended.
    pub fn reason(&self) -> Option<CancelReason> {
        self.reason.get().cloned().or_else(|| self.parent.as_ref().and_then(|parent| parent.reason()))
    }

    /// Waits for the end. Cancel-safe.
    pub async fn canceled(&self) -> CancelReason {
        self.token.cancelled().await;
        self.reason().unwrap_or(CancelReason::Interrupted)
    }

    /// The plain token, for libraries.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let scope = CancelScope::new();
        assert!(scope.cancel(CancelReason::LeaseLost));
        assert!(!scope.cancel(CancelReason::Interrupted));
        assert_eq!(scope.reason(), Some(CancelReason::LeaseLost));
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent_and_for_its_reason() {
        let parent = CancelScope::new();
        let child = parent.child();
        let other = parent.child();
        assert!(other.cancel(CancelReason::TimedOut("1s".to_owned())));
        assert!(!parent.is_canceled() && !child.is_canceled());
        parent.cancel(CancelReason::Interrupted);
        assert_eq!(child.canceled().await, CancelReason::Interrupted);
        assert_eq!(other.reason(), Some(CancelReason::TimedOut("1s".to_owned())));
    }
}
