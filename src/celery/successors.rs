//! Calls what follows a Celery task: its chain and callbacks after success, its errbacks after failure.
//!
//! A sink of the outbox like any other: a record owes its successors until they stand in their queues, and whoever meets
//! the record next sends what a dead worker did not. What is sent twice has the same ids.

use async_trait::async_trait;

use crate::broker::{Broker, Submission};
use crate::events::{Event, EventData, EventSink, Notice, SinkError};
use crate::task::celery::CeleryContext;
use crate::task::celery::canvas::{self, Ended, Successor};
use crate::task::{ContentType, Limits, Priority, QueueName, Task};

/// Publishes what follows tasks to the broker that they came from.
#[derive(Debug)]
pub struct Successors {
    broker: Broker,
    default_queue: QueueName,
    limits: Limits,
}

impl Successors {
    /// The name in outboxes.
    pub const NAME: &'static str = "successors";

    /// Publishes to `broker`; what names no queue goes to `default_queue`.
    pub fn new(broker: Broker, default_queue: QueueName, limits: Limits) -> Self {
        Self { broker, default_queue, limits }
    }

    fn submission(&self, successor: Successor) -> Submission {
        let priority = successor.properties.priority.map_or(0, |given| given.min(9));
        Submission {
            dedup_id: format!("{}.0.0", successor.id),
            task: successor.id,
            queue: successor.queue.unwrap_or_else(|| self.default_queue.clone()),
            priority: Priority::new(priority.into()).unwrap_or_default(),
            body: successor.body.into(),
            content_type: ContentType::Json.as_str().to_owned(),
            content_encoding: Some("utf-8".to_owned()),
            headers: successor.headers,
            properties: successor.properties,
            // Whoever runs them reads both times in their headers, as Celery's workers do.
            not_before: None,
            expires: None,
        }
    }

    async fn call(&self, event: &Event, ended: Ended, task: &Task) -> Result<(), SinkError> {
        let refused = |reason: String| SinkError { sink: Self::NAME, reason };
        let Some(context) = CeleryContext::of(task) else { return Ok(()) };
        let following = canvas::successors(task, &context, (ended, event.time), &self.limits)
            .map_err(|error| refused(error.to_string()))?;
        if following.is_empty() {
            return Ok(());
        }
        tracing::debug!(task = %task.id, count = following.len(), ?ended, "calls what follows");
        let submissions = following.into_iter().map(|successor| self.submission(successor)).collect();
        let sent = self.broker.submit.submit(submissions).await;
        sent.map(drop).map_err(|error| refused(error.to_string()))
    }
}

#[async_trait]
impl EventSink for Successors {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn wants(&self, task: &Task) -> bool {
        // Asked for each event of each task: most have none.
        task.extra.get(CeleryContext::KEY).is_some_and(|context| {
            ["chain", "callbacks", "errbacks"].iter().any(|part| context.get(part).is_some())
        })
    }

    fn knows_by_event(&self) -> bool {
        false
    }

    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        for notice in notices {
            let (Some(ended), Some(task)) = (ended(&notice.event.data), notice.task.as_deref()) else {
                continue;
            };
            // What cannot be called was refused before it ran, and a refused one has nothing to follow it.
            if ended == Ended::Badly && canvas::unsupported(task, &self.limits).is_some() {
                continue;
            }
            self.call(&notice.event, ended, task).await?;
        }
        Ok(())
    }
}

/// How a task ended for what follows it; none while it has not, and for one that was canceled: nothing follows that.
fn ended(data: &EventData) -> Option<Ended> {
    match data {
        EventData::Succeeded { .. } => Some(Ended::Well),
        EventData::Failed { .. } | EventData::Dead { .. } => Some(Ended::Badly),
        EventData::Canceled { .. }
        | EventData::Queued
        | EventData::Staging { .. }
        | EventData::Running { .. }
        | EventData::Progress(_)
        | EventData::Log { .. }
        | EventData::Retrying { .. } => None,
    }
}
