//! The line to one job: what waits for it, and who waits until it was told. [`teller`](super::teller) tells it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::Steering;
use super::waiting::Waiting;
use crate::events::Event;
use crate::task::{Secret, TaskId};

/// The line to one job.
pub(super) struct Line {
    task: TaskId,
    look_every: Duration,
    waiting: Mutex<Waiting>,
    more: Notify,
    end: watch::Sender<End>,
}

/// How far the telling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// There is more to come.
    Open,
    /// Its end was told, or there is nobody to tell.
    Told,
}

impl Line {
    /// The line to the job of `task`, which looks `look_every` so often whether a quiet job was canceled.
    pub(super) fn new(task: TaskId, waiting: Waiting, look_every: Duration) -> Self {
        let end = watch::Sender::new(End::Open);
        Self { task, look_every, waiting: Mutex::new(waiting), more: Notify::new(), end }
    }

    /// Takes an event; what was taken before is left out.
    pub(super) fn push(&self, event: &Event) {
        self.waiting().push(event);
        self.more.notify_one();
    }

    /// A new token for the Girder at `api_url`, for when it does not take the job's own any more.
    pub(super) fn renew(&self, api_url: &str, token: &Secret) {
        self.waiting().renew(api_url, token);
        self.more.notify_one();
    }

    /// Waits until the job knows the end. `false`: not within `limit`.
    pub(super) async fn told(&self, limit: Duration) -> bool {
        let mut end = self.end.subscribe();
        timeout(limit, end.wait_for(|end| *end == End::Told)).await.is_ok_and(|told| told.is_ok())
    }

    /// Waits until nothing lives here any more that could tell something.
    pub(super) async fn outlive(&self, steering: &dyn Steering) {
        loop {
            tokio::time::sleep(self.look_every).await;
            let fence = self.waiting().fence();
            if !steering.is_live(&self.task, fence) {
                return;
            }
        }
    }

    /// Whether something waits to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    /// From now on nothing waits for it any more, and nothing of it is kept for a later process.
    pub(super) fn close(&self) {
        self.waiting().end();
        self.end.send_replace(End::Told);
    }

    pub(super) fn task(&self) -> &TaskId {
        &self.task
    }

    pub(super) fn look_every(&self) -> Duration {
        self.look_every
    }

    /// Resolves when something came. Cancel-safe; one waiter.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }

    /// What waits; never to be held across an await.
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
