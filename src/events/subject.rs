//! The sink that publishes a task's events on its own broker.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Event, EventSink, Notice, SinkError};
use crate::broker::Topic;

/// Publishes on a broker's topic.
pub struct Subject {
    topic: Arc<dyn Topic>,
}

impl Subject {
    /// The name in outboxes.
    pub const NAME: &'static str = "broker";

    /// Publishes on `topic`.
    pub fn new(topic: Arc<dyn Topic>) -> Self {
        Self { topic }
    }
}

#[async_trait]
impl EventSink for Subject {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        let events: Vec<Event> = notices.iter().map(|notice| (*notice.event).clone()).collect();
        let published = self.topic.publish(&events).await;
        published.map_err(|error| SinkError { sink: Self::NAME, reason: error.to_string() })
    }
}
