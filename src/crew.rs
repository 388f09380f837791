//! Every spawned task belongs to a crew, so that nothing outlives the worker unseen.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The spawned tasks of one owner.
#[derive(Clone, Debug, Default)]
pub struct Crew {
    tracker: TaskTracker,
}

impl Crew {
    /// A crew without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` on the runtime under the current span; `name` tells people what it is.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = tracing::debug_span!("crew", name);
        span.follows_from(tracing::Span::current());
        self.tracker.spawn(work.instrument(span))
    }

    /// Runs blocking `work` on the blocking pool.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// How many members are still at work.
    pub fn at_work(&self) -> usize {
        self.tracker.len()
    }

    /// Takes no new members and waits for all to end, at most `deadline`. Says whether all did.
    pub async fn dismissed(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}
