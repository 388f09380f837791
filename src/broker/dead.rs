//! Dead letters: messages parked with their original bytes because nobody can run them.
//!
//! The bytes may hold tokens: whoever shows them redacts.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BrokerError;
use crate::task::message::Properties;
use crate::task::{QueueName, TaskId};

/// A parked message without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadSummary {
    /// Its identity among the dead letters.
    pub id: String,
    /// The task, when it could be told.
    pub task: Option<TaskId>,
    /// Where it came from.
    pub queue: QueueName,
    /// Why it is here.
    pub reason: String,
    /// Since when.
    pub parked: Timestamp,
    /// Size of its body.
    pub bytes: u64,
}

/// A parked message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// All but the bytes.
    pub summary: DeadSummary,
    /// The original body.
    pub body: Bytes,
    /// As it was sent.
    pub content_type: Option<String>,
    /// As it was sent.
    pub content_encoding: Option<String>,
    /// As they were sent.
    pub headers: BTreeMap<String, Value>,
    /// Where an answer goes and what it repeats, where its sender waits for one.
    pub properties: Properties,
}

/// The parked messages of a broker.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// The newest first, at most `limit`, of one queue when named.
    async fn list(&self, queue: Option<&QueueName>, limit: usize) -> Result<Vec<DeadSummary>, BrokerError>;
    /// One, with its bytes.
    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError>;
    /// Removes one for good. Says whether it was there.
    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError>;
}
