//! Messages on their way in ([`Submission`]) and out ([`Delivery`]).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::{Extender, Settler};
use crate::task::json::Json;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;
use crate::task::{ContentType, Priority, QueueName, RawMessage, Task, TaskId, envelope};

/// A message's identity at its broker; stays the same when the message is handed over again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MessageId(pub String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One message as handed over.
pub struct Delivery {
    /// Who the message is, at its broker.
    pub message: MessageId,
    /// The queue it came from.
    pub queue: QueueName,
    /// What it holds.
    pub body: Bytes,
    /// `application/json` and the like.
    pub content_type: Option<String>,
    /// Character set or compression, as Celery uses it.
    pub content_encoding: Option<String>,
    /// Headers, as the broker has them.
    pub headers: BTreeMap<String, Value>,
    /// Whether nested tables in the headers kept the order in which they were sent.
    pub header_order: KeyOrder,
    /// Where an answer goes and what it repeats, where the broker carries that.
    pub properties: Properties,
    /// The priority that it has here, where the broker knows that apart from the body.
    pub priority: Option<Priority>,
    /// When it was submitted, where the broker knows.
    pub submitted: Option<Timestamp>,
    /// Whether it was handed over before.
    pub redelivered: bool,
    /// The timed right to it.
    pub lease: Lease,
}

impl Delivery {
    /// The message as the decoders of other producers' messages read it.
    pub fn raw(&self) -> RawMessage {
        RawMessage {
            headers: self.headers.iter().map(|(name, value)| (name.clone(), Json::from(value))).collect(),
            header_order: self.header_order(),
            properties: self.properties.clone(),
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            queue: Some(self.queue.to_string()),
            body: self.body.clone(),
        }
    }
}

impl Delivery {
    /// How often it was moved from one broker to another.
    pub fn hop(&self) -> u32 {
        let hop = self.headers.get(HOP).and_then(Value::as_u64);
        hop.and_then(|hop| u32::try_from(hop).ok()).unwrap_or(0)
    }

    /// Also of what lost its order at an earlier broker.
    fn header_order(&self) -> KeyOrder {
        if self.headers.get(ORDER).and_then(Value::as_str) == Some(ORDER_LOST) {
            KeyOrder::Lost
        } else {
            self.header_order
        }
    }

    /// Its headers for the next broker.
    pub fn headers_for_next_hop(&self) -> BTreeMap<String, Value> {
        let mut headers = self.headers.clone();
        headers.insert(HOP.to_owned(), Value::from(self.hop().saturating_add(1)));
        if self.header_order() == KeyOrder::Lost && !self.headers.is_empty() {
            headers.insert(ORDER.to_owned(), Value::from(ORDER_LOST));
        }
        headers
    }
}

/// The header that counts moves.
const HOP: &str = "longshore-hop";
/// The header that says whether nested tables in the others kept their order.
const ORDER: &str = "longshore-header-order";
const ORDER_LOST: &str = "lost";

impl fmt::Debug for Delivery {
    /// Without body and headers: they may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("queue", &self.queue)
            .field("bytes", &self.body.len())
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

/// The timed right to a delivery.
pub struct Lease {
    /// When it lapses unless extended.
    pub until: Instant,
    /// How long each extension is for.
    pub duration: Duration,
    /// Prolongs it.
    pub extender: Box<dyn Extender>,
    /// Ends it.
    pub settler: Box<dyn Settler>,
}

/// A message to be queued.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The task, for dedup, cancel and listing.
    pub task: TaskId,
    /// Where to.
    pub queue: QueueName,
    /// 0-9.
    pub priority: Priority,
    /// What it holds.
    pub body: Bytes,
    /// How it is written.
    pub content_type: String,
    /// Compression or character set, if any.
    pub content_encoding: Option<String>,
    /// Headers to carry along.
    pub headers: BTreeMap<String, Value>,
    /// What another's message says beside its headers, in its own words: with a correlation id it is sent as it is, with
    /// nothing of ours added, where the broker carries such messages; elsewhere this is passed over.
    pub properties: Properties,
    /// Two submissions with one dedup id are one.
    pub dedup_id: String,
    /// Not handed out before.
    pub not_before: Option<Timestamp>,
    /// May be dropped by the broker after; the worker checks it in any case.
    pub expires: Option<Timestamp>,
}

impl Submission {
    /// The native envelope of `task` on its `hop`-th broker.
    pub fn of(task: &Task, content_type: ContentType, hop: u32) -> Self {
        Self {
            task: task.id.clone(),
            queue: task.queue.clone(),
            priority: task.priority,
            body: envelope::encode(task, content_type).into(),
            content_type: content_type.as_str().to_owned(),
            content_encoding: None,
            headers: BTreeMap::new(),
            properties: Properties::default(),
            dedup_id: task.dedup_id(hop),
            not_before: task.not_before,
            expires: task.expires,
        }
    }

    /// The message as the decoders read it.
    pub fn raw(&self) -> RawMessage {
        RawMessage {
            content_type: Some(self.content_type.clone()),
            content_encoding: self.content_encoding.clone(),
            queue: Some(self.queue.to_string()),
            ..RawMessage::new(self.body.clone()).with_headers(&self.headers)
        }
    }
}
