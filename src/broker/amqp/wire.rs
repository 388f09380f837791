//! Between AMQP's basic properties and what the rest of the house knows: headers, identity, copies byte for byte.
//!
//! Our own headers begin with `x-longshore-`. They, and those that RabbitMQ adds when it moves a message, never reach a
//! task and are left out of copies: RabbitMQ drops a message that it expired into one queue twice, by `x-death`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use crate::broker::Submission;
use crate::task::message::{PriorityOrder, Properties};

/// What our own headers begin with.
const OURS: &str = "x-longshore-";
/// Not before this time, in milliseconds since 1970.
pub(super) const DUE: &str = "x-longshore-due";
/// Which message this is, through all its copies.
pub(super) const MESSAGE: &str = "x-longshore-message";
/// When it was submitted, in milliseconds since 1970.
pub(super) const SUBMITTED: &str = "x-longshore-submitted";
/// The task of a submission.
pub(super) const TASK: &str = "x-longshore-task";
/// It was handed over before.
pub(super) const HANDED: &str = "x-longshore-handed";
/// Counts the copies in custody.
pub(super) const RENEWAL: &str = "x-longshore-renewal";
/// A dead letter's own facts: identity, reason, queue, time.
pub(super) const DEAD_ID: &str = "x-longshore-dead-id";
pub(super) const DEAD_REASON: &str = "x-longshore-dead-reason";
pub(super) const DEAD_QUEUE: &str = "x-longshore-dead-queue";
pub(super) const DEAD_AT: &str = "x-longshore-dead-at";

/// Longest text that AMQP's short strings hold.
const SHORT: usize = 255;

/// A message as it was sent.
#[derive(Clone, Debug)]
pub(super) struct Original {
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Original {
    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    /// A number among our own headers.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        match self.header(name)? {
            AMQPValue::LongLongInt(number) => Some(*number),
            AMQPValue::LongInt(number) => Some(i64::from(*number)),
            _ => None,
        }
    }

    /// A text among the headers.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        text(self.header(name)?)
    }

    /// Whether RabbitMQ or we handed it to somebody before.
    pub(super) fn was_handed(&self) -> bool {
        self.header(HANDED).is_some()
    }

    /// How often a quorum queue counted it as given back.
    pub(super) fn delivery_count(&self) -> i64 {
        self.number("x-delivery-count").unwrap_or(0)
    }

    /// Who it is: through copies the same, for two messages with equal content different where their senders named them.
    pub(super) fn identity(&self) -> String {
        if let Some(named) = self.text(MESSAGE) {
            return named;
        }
        if let Some(id) = self.properties.message_id() {
            return id.to_string();
        }
        if self.header("task").is_some()
            && let Some(id) = self.text("id")
        {
            return format!("{id}.{}", self.number("retries").unwrap_or(0));
        }
        digest(&self.body)
    }

    /// When it was submitted, where that is known.
    pub(super) fn submitted(&self) -> Option<Timestamp> {
        if let Some(millis) = self.number(SUBMITTED) {
            return Timestamp::from_millisecond(millis).ok();
        }
        let seconds = i64::try_from((*self.properties.timestamp())?).ok()?;
        Timestamp::from_second(seconds).ok()
    }

    /// Its headers without those that brokers add on the way.
    pub(super) fn headers(&self) -> BTreeMap<String, Value> {
        let Some(table) = self.properties.headers() else { return BTreeMap::new() };
        let sent = table.inner().iter().filter(|(name, _)| !is_added(name.as_str()));
        sent.map(|(name, value)| (name.to_string(), from_amqp(value))).collect()
    }

    /// What answers need.
    pub(super) fn answer(&self) -> Properties {
        let named = |field: &Option<ShortString>| {
            field.as_ref().map(ToString::to_string).filter(|text| !text.is_empty())
        };
        Properties {
            correlation_id: named(self.properties.correlation_id()),
            reply_to: named(self.properties.reply_to()),
            priority: *self.properties.priority(),
            priority_order: PriorityOrder::HighestFirst,
        }
    }

    /// The same message for another queue, with `added` headers of ours instead of what was added on the way.
    pub(super) fn copy(&self, added: Vec<(&'static str, AMQPValue)>) -> Self {
        let mut table = BTreeMap::new();
        if let Some(sent) = self.properties.headers() {
            table.extend(
                sent.inner()
                    .iter()
                    .filter(|(name, _)| !is_added(name.as_str()) || stays(name.as_str()))
                    .map(|(name, value)| (name.clone(), value.clone())),
            );
        }
        table.extend(added.into_iter().map(|(name, value)| (ShortString::from(name), value)));
        let old = &self.properties;
        let mut properties =
            BasicProperties::default().with_headers(FieldTable::from(table)).with_delivery_mode(2);
        // All but the expiration, which counts anew in every queue, and the user, whom the server would check.
        if let Some(value) = old.content_type() {
            properties = properties.with_content_type(value.clone());
        }
        if let Some(value) = old.content_encoding() {
            properties = properties.with_content_encoding(value.clone());
        }
        if let Some(value) = old.priority() {
            properties = properties.with_priority(*value);
        }
        if let Some(value) = old.correlation_id() {
            properties = properties.with_correlation_id(value.clone());
        }
        if let Some(value) = old.reply_to() {
            properties = properties.with_reply_to(value.clone());
        }
        if let Some(value) = old.message_id() {
            properties = properties.with_message_id(value.clone());
        }
        if let Some(value) = old.timestamp() {
            properties = properties.with_timestamp(*value);
        }
        if let Some(value) = old.kind() {
            properties = properties.with_type(value.clone());
        }
        if let Some(value) = old.app_id() {
            properties = properties.with_app_id(value.clone());
        }
        Self { properties, body: self.body.clone() }
    }

    /// A copy that stays the same message for whoever gets it next.
    pub(super) fn same(&self, identity: &str, mut added: Vec<(&'static str, AMQPValue)>) -> Self {
        added.push((MESSAGE, long(identity)));
        added.push((HANDED, AMQPValue::Boolean(true)));
        // Celery's messages do not say when they were sent: at the latest now.
        if self.submitted().is_none() {
            added.push((SUBMITTED, AMQPValue::LongLongInt(Timestamp::now().as_millisecond())));
        }
        self.copy(added)
    }
}

/// The message of a submission; its `due` time is left to the delay.
pub(super) fn original(submission: &Submission) -> Original {
    let mut table = BTreeMap::new();
    for (name, value) in &submission.headers {
        if let Ok(name) = ShortString::try_new(name.clone()) {
            table.insert(name, to_amqp(value));
        }
    }
    if let Some(correlation) = &submission.properties.correlation_id {
        return foreign(submission, table, correlation);
    }
    let now = Timestamp::now();
    table.insert(ShortString::from(SUBMITTED), AMQPValue::LongLongInt(now.as_millisecond()));
    table.insert(ShortString::from(TASK), long(submission.task.as_str()));
    let mut properties = BasicProperties::default()
        .with_headers(FieldTable::from(table))
        .with_delivery_mode(2)
        .with_content_type(short(&submission.content_type))
        .with_priority(submission.priority.get())
        .with_message_id(short(&uuid::Uuid::now_v7().to_string()))
        .with_timestamp(u64::try_from(now.as_second()).unwrap_or(0));
    if let Some(encoding) = &submission.content_encoding {
        properties = properties.with_content_encoding(short(encoding));
    }
    Original { properties, body: submission.body.clone() }
}

/// Another's message as Celery's producers send one; its headers tell who it is.
fn foreign(submission: &Submission, table: BTreeMap<ShortString, AMQPValue>, correlation: &str) -> Original {
    let asked = &submission.properties;
    let encoding = submission.content_encoding.as_deref().unwrap_or("utf-8");
    let properties = BasicProperties::default()
        .with_headers(FieldTable::from(table))
        .with_delivery_mode(2)
        .with_content_type(short(&submission.content_type))
        .with_content_encoding(short(encoding))
        .with_priority(asked.priority.unwrap_or(0))
        .with_correlation_id(short(correlation))
        .with_reply_to(short(asked.reply_to.as_deref().unwrap_or_default()));
    Original { properties, body: submission.body.clone() }
}

/// A text cut to what AMQP's short strings hold.
pub(super) fn short(text: &str) -> ShortString {
    let mut end = text.len().min(SHORT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::from(&text[..end])
}

/// A text as a header's value.
pub(super) fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

/// 16 hexadecimal digits that stand for `bytes`.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether one of our headers is the sender's word and stays with every copy.
fn stays(name: &str) -> bool {
    name == SUBMITTED || name == TASK
}

/// Whether a header was added on the way.
fn is_added(name: &str) -> bool {
    name.starts_with(OURS)
        || matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::ByteArray(bytes) => Some(String::from_utf8_lossy(bytes.as_slice()).into_owned()),
        _ => None,
    }
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(truth) => Value::Bool(*truth),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Float(number) => Value::from(f64::from(*number)),
        AMQPValue::Double(number) => Value::from(*number),
        AMQPValue::DecimalValue(decimal) => {
            Value::from(f64::from(decimal.value) / 10_f64.powi(i32::from(decimal.scale)))
        }
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) | AMQPValue::ByteArray(_) => {
            Value::String(text(value).unwrap_or_default())
        }
        AMQPValue::FieldArray(array) => Value::Array(array.as_slice().iter().map(from_amqp).collect()),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        AMQPValue::FieldTable(table) => Value::Object(
            table
                .inner()
                .iter()
                .map(|(name, value)| (name.to_string(), from_amqp(value)))
                .collect::<Map<_, _>>(),
        ),
        AMQPValue::Void => Value::Null,
    }
}

/// The value as AMQP's tables hold it.
pub(super) fn to_amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(truth) => AMQPValue::Boolean(*truth),
        Value::Number(number) => number_to_amqp(number),
        Value::String(text) => long(text),
        Value::Array(items) => AMQPValue::FieldArray(items.iter().map(to_amqp).collect::<Vec<_>>().into()),
        Value::Object(map) => {
            let entries = map.iter().filter_map(|(name, value)| {
                ShortString::try_new(name.clone()).ok().map(|name| (name, to_amqp(value)))
            });
            AMQPValue::FieldTable(FieldTable::from(entries.collect::<BTreeMap<_, _>>()))
        }
    }
}

fn number_to_amqp(number: &Number) -> AMQPValue {
    match number.as_i64() {
        Some(integer) => AMQPValue::LongLongInt(integer),
        None => AMQPValue::Double(number.as_f64().unwrap_or(f64::NAN)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn headers_come_back_and_what_was_added_on_the_way_does_not() {
        let sent = json!({"task": "t", "timelimit": [null, 2.5], "n": 7, "nested": {"ä": true}});
        let AMQPValue::FieldTable(table) = to_amqp(&sent) else { panic!() };
        let original =
            Original { properties: BasicProperties::default().with_headers(table), body: Bytes::new() };
        let copy = original.same("me", vec![(RENEWAL, AMQPValue::LongLongInt(3))]);
        assert_eq!(json!(copy.headers()), sent);
        assert_eq!((copy.identity().as_str(), copy.number(RENEWAL)), ("me", Some(3)));
        assert!(copy.was_handed() && !original.was_handed());
        assert_eq!(copy.copy(Vec::new()).number(RENEWAL), None);
        // When it was met first stays with every copy.
        let met = copy.submitted();
        assert!(met.is_some() && original.submitted().is_none());
        assert_eq!(copy.same("me", Vec::new()).submitted(), met);
    }

    #[test]
    fn a_celery_message_is_known_by_its_id_and_retry_and_another_by_its_bytes() {
        let AMQPValue::FieldTable(table) = to_amqp(&json!({"task": "t", "id": "a", "retries": 2})) else {
            panic!()
        };
        let with = |headers| Original { properties: headers, body: Bytes::from_static(b"x") };
        assert_eq!(with(BasicProperties::default().with_headers(table)).identity(), "a.2");
        assert_eq!(with(BasicProperties::default()).identity().len(), 16);
    }
}
