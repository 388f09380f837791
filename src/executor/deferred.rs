//! Tasks that came before their time and wait at the broker: known here, so that one that is canceled meanwhile ends now and not
//! at its time.
//!
//! Celery's producers queue a task at once and write its time beside it; whoever takes it gives it back until then. Its sender, its
//! Girder job and whoever waits for its result need not wait so long for the end of what was canceled. The message itself stays
//! where it is and finds the task finished when it comes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Context, SourceRuntime, intake};
use crate::broker::message::{Delivery, Lease, MessageId};
use crate::broker::{BrokerError, Command, Extended, Extender, Settled, Settlement, Settler};
use crate::ledger::Deferred;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;
use crate::task::{Task, TaskId};

/// Tasks that are kept; a cancel of others takes effect at their time.
const KEPT: usize = 10_000;

/// What waits, by task.
#[derive(Default)]
pub(crate) struct Deferrals {
    all: Mutex<HashMap<TaskId, Deferral>>,
}

/// A task that waits at the broker.
struct Deferral {
    task: Arc<Task>,
    source: Arc<SourceRuntime>,
    message: MessageId,
    submitted: Option<Timestamp>,
    due: Timestamp,
}

impl Deferrals {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Deferral>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of `tasks` that wait.
    pub(super) fn among(&self, tasks: Vec<TaskId>) -> Vec<TaskId> {
        let all = self.lock();
        tasks.into_iter().filter(|task| all.contains_key(task)).collect()
    }

    /// Takes a task whose time has not come. One whose time is near is met by its message, which may be another worker's.
    fn take(&self, task: &TaskId) -> Option<Deferral> {
        self.lock().remove(task).filter(|deferral| deferral.due > Timestamp::now())
    }
}

/// Notes that `delivery` of `task` goes back to `source` until `due`.
pub(super) fn note(
    context: &Context,
    source: &Arc<SourceRuntime>,
    task: &Arc<Task>,
    (delivery, due): (&Delivery, Timestamp),
) {
    context.ledger.defer(Deferred {
        task: task.id.clone(),
        kind: task.kind.clone(),
        queue: task.queue.clone(),
        due,
    });
    let mut all = context.deferrals.lock();
    if all.len() >= KEPT {
        let now = Timestamp::now();
        all.retain(|_, other| other.due > now);
    }
    if all.len() < KEPT {
        let (message, submitted) = (delivery.message.clone(), delivery.submitted);
        let (task, source) = (task.clone(), source.clone());
        all.insert(task.id.clone(), Deferral { task, source, message, submitted, due });
    }
}

/// Forgets a task that waits no more.
pub(super) fn forget(context: &Context, task: &TaskId) {
    context.ledger.undefer(task);
    context.deferrals.lock().remove(task);
}

/// Ends a canceled task that waits for its time, if it is known here.
pub(super) async fn cancel(context: &Arc<Context>, id: &TaskId, reason: String) {
    let Some(deferral) = context.deferrals.take(id) else { return };
    context.ledger.undefer(id);
    let source = &deferral.source;
    let Some(handler) = context.handlers.get(deferral.task.kind.as_str()).cloned() else { return };
    let duration = source.broker.source.lease();
    let delivery = Delivery {
        message: deferral.message,
        queue: deferral.task.queue.clone(),
        body: Bytes::new(),
        content_type: None,
        content_encoding: None,
        headers: std::collections::BTreeMap::new(),
        header_order: KeyOrder::Kept,
        properties: Properties::default(),
        priority: None,
        submitted: deferral.submitted,
        redelivered: false,
        lease: Lease {
            until: Instant::now() + duration,
            duration,
            extender: Box::new(Elsewhere),
            settler: Box::new(Elsewhere),
        },
    };
    tracing::info!(task = %id, "canceled before its time");
    intake::cancel_unstarted(context, source, (&deferral.task, &*handler), delivery, reason.clone()).await;
    // Its message comes at its time, perhaps when the record is gone: the request outlasts both.
    let again = Command::Cancel { task: id.clone(), reason };
    if let Err(error) = source.broker.topic.command(again).await {
        tracing::warn!(task = %id, %error, "that it was canceled could not be noted for its message");
    }
}

/// Stands for a message that lies at the broker and is nobody's.
struct Elsewhere;

#[async_trait]
impl Extender for Elsewhere {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        Ok(Extended::Until(Instant::now() + by))
    }
}

#[async_trait]
impl Settler for Elsewhere {
    async fn settle(self: Box<Self>, _: Settlement) -> Settled {
        Settled::Settled
    }
}
