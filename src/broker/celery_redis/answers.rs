//! Answers to callers that read them from a queue of their own (`rpc://`), whether they are still there or not.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::envelope;
use super::side::Side;
use crate::broker::{BrokerError, BrokerUrl, celery};

/// How long an answer waits for a caller, as Celery has it for results.
const UNREAD_SECONDS: u32 = 86_400;

/// Puts answers into lists.
pub struct Answers {
    side: Side,
}

impl Answers {
    /// Answers on the broker at `url`; each has `timeout` to be taken.
    pub fn new(url: &BrokerUrl, timeout: Duration) -> Result<Self, BrokerError> {
        Ok(Self { side: Side::new(url, timeout)? })
    }
}

#[async_trait]
impl celery::Answers for Answers {
    async fn send(&self, queue: &str, correlation: &str, body: Vec<u8>) -> Result<(), BrokerError> {
        let message = envelope::of_document(("", queue), &json!({}), Some(correlation), &body);
        let left = self.side.leave(&self.side.kombu.list(queue, 0), &message, UNREAD_SECONDS).await;
        left.map_err(self.side.cannot("take an answer"))
    }
}
