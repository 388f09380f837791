//! Messages as fields of a stream's entry, there and back.
//!
//! Only `body` must be there, so that a plain `XADD` by any producer is a valid submission.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use redis::Value;
use serde_json::Value as Json;

use crate::broker::{MessageId, Submission};
use crate::redis::{LinkError, value};
use crate::task::message::{PriorityOrder, Properties};
use crate::task::{Priority, PriorityClass as Class, QueueName, RawMessage};

/// The one field that must be there.
const BODY: &str = "body";

/// The fields and values of `submission`, in turns.
pub(super) fn fields(submission: &Submission) -> Vec<Bytes> {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let mut fields = vec![
        text("task"),
        text(submission.task.as_str()),
        text("priority"),
        text(&submission.priority.get().to_string()),
        text("type"),
        text(&submission.content_type),
    ];
    if let Some(encoding) = &submission.content_encoding {
        fields.extend([text("encoding"), text(encoding)]);
    }
    if !submission.headers.is_empty() {
        let headers = serde_json::to_vec(&submission.headers).expect("invariant: headers have text keys");
        fields.extend([text("headers"), headers.into()]);
    }
    fields.extend([text(BODY), submission.body.clone()]);
    fields
}

/// An entry as it is read.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) task: Option<String>,
    pub(super) priority: Option<Priority>,
    pub(super) content_type: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) headers: BTreeMap<String, Json>,
    pub(super) body: Bytes,
    /// Given when the message waited outside of the stream.
    pub(super) id: Option<String>,
    pub(super) submitted: Option<Timestamp>,
    pub(super) dead_reason: Option<String>,
    /// Of a dead letter that came from Celery.
    pub(super) properties: Properties,
}

impl Entry {
    /// Reads fields and values in turns. What is unknown is left out; headers that are no JSON object are, too.
    pub(super) fn read(fields: Value) -> Result<Self, LinkError> {
        let mut entry = Self::default();
        let mut values = value::list(fields)?.into_iter();
        while let (Some(name), Some(found)) = (values.next(), values.next()) {
            match &value::bytes(name)?[..] {
                b"body" => entry.body = value::bytes(found)?.into(),
                b"task" => entry.task = Some(value::text(found)?),
                b"priority" => {
                    entry.priority = number(&found).and_then(|number| Priority::new(number).ok());
                }
                b"type" => entry.content_type = Some(value::text(found)?),
                b"encoding" => entry.encoding = Some(value::text(found)?),
                b"headers" => {
                    entry.headers = serde_json::from_slice(&value::bytes(found)?).unwrap_or_default();
                }
                b"id" => entry.id = Some(value::text(found)?),
                b"submitted" => entry.submitted = number(&found).and_then(of_millis),
                b"correlation_id" => entry.properties.correlation_id = Some(value::text(found)?),
                b"reply_to" => entry.properties.reply_to = Some(value::text(found)?),
                b"celery_priority" => {
                    entry.properties.priority = number(&found).and_then(|number| u8::try_from(number).ok());
                    entry.properties.priority_order = PriorityOrder::LowestFirst;
                }
                b"dead_reason" => entry.dead_reason = Some(value::text(found)?),
                _ => {}
            }
        }
        Ok(entry)
    }

    /// When it was submitted: its own word, or the time in the stream's id.
    pub(super) fn submitted(&self, id: &str) -> Option<Timestamp> {
        self.submitted.or_else(|| time_of(id))
    }

    /// The message as the decoders read it.
    pub(super) fn raw(self, queue: &QueueName) -> RawMessage {
        RawMessage {
            content_type: self.content_type,
            content_encoding: self.encoding,
            queue: Some(queue.to_string()),
            ..RawMessage::new(self.body).with_headers(&self.headers)
        }
    }

    /// The same however often it is handed over.
    pub(super) fn message(&self, queue: &QueueName, class: Class, id: &str) -> MessageId {
        MessageId(match &self.id {
            Some(own) => format!("{queue}/{own}"),
            None => format!("{queue}/{}/{id}", class.as_str()),
        })
    }
}

fn number(value: &Value) -> Option<u64> {
    value::int(value).ok().and_then(|number| u64::try_from(number).ok())
}

/// The time in a stream's id, `MILLISECONDS-NUMBER`.
pub(super) fn time_of(id: &str) -> Option<Timestamp> {
    of_millis(id.split('-').next()?.parse().ok()?)
}

/// A time from the milliseconds since 1970.
pub(super) fn of_millis(millis: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(millis).ok()?).ok()
}
