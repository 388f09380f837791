//! The sink that publishes a task's events on its own broker.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Event, EventSink, Notice, SinkError};
use crate::broker::{BrokerError, Ending, Place, Topic};

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
        self.topic.publish(&events).await.map_err(|error| not_taken(&error))
    }
    fn place(&self) -> Option<Place> {
        self.topic.place()
    }
    async fn end(&self, notices: &[Notice], endings: Vec<(usize, Ending)>) -> Result<Vec<usize>, SinkError> {
        let events: Vec<Event> = notices.iter().map(|notice| (*notice.event).clone()).collect();
        self.topic.end(&events, endings).await.map_err(|error| not_taken(&error))
    }
}

fn not_taken(error: &BrokerError) -> SinkError {
    SinkError { sink: Subject::NAME, reason: error.to_string() }
}
