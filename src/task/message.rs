//! A message as a broker handed it over, before anything was decoded, and the one entry that decodes it.
//!
//! Owns [`RawMessage`], the reader of files that hold one (`longshore decode FILE`), and [`decode`], which tells a native
//! envelope from a Celery message by what stands in it. Brokers fill a `RawMessage`; intake and the command line call
//! [`decode`].

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::envelope::{self, ContentType, DecodeError, Limits};
use super::json::{self, Json};
use super::jsonpickle::KeyOrder;
use super::{Task, celery};

/// A message before decoding. Its `Debug` leaves out what may hold tokens.
#[derive(Clone, PartialEq)]
pub struct RawMessage {
    /// Headers by name; a Celery message keeps nested tables in them.
    pub headers: Vec<(String, Json)>,
    /// Whether nested tables kept their order. A client that sorts them (lapin does) says [`KeyOrder::Lost`].
    pub header_order: KeyOrder,
    /// AMQP's basic properties, or what Celery on Redis writes in their place.
    pub properties: Properties,
    /// MIME type of the body.
    pub content_type: Option<String>,
    /// Character encoding of the body.
    pub content_encoding: Option<String>,
    /// The queue it was taken from.
    pub queue: Option<String>,
    /// The bytes.
    pub body: Bytes,
}

/// The properties that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// What an answer must repeat.
    pub correlation_id: Option<String>,
    /// Where an answer goes.
    pub reply_to: Option<String>,
    /// As the sender gave it.
    pub priority: Option<u8>,
    /// Which end of the numbers is first.
    pub priority_order: PriorityOrder,
}

/// Which priority a broker serves first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PriorityOrder {
    /// 9, as RabbitMQ does.
    #[default]
    HighestFirst,
    /// 0, as Celery does on Redis.
    LowestFirst,
}

/// What a message turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A task of this worker's kinds, or a native one of any kind.
    Task(Task),
    /// A Celery task of a name that is not ours: to be passed on byte for byte, or parked.
    Unknown(UnknownTask),
}

/// A Celery task of a name that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTask {
    /// Its task name.
    pub name: String,
    /// Its id, where it has one.
    pub id: Option<String>,
}

/// Decodes `message`: Celery's when its headers name a `task` or its body is a map that names one without a version,
/// native when its body is a map with `"v"`.
pub fn decode(message: &RawMessage, limits: &Limits) -> Result<Decoded, DecodeError> {
    if message.body.len() > limits.max_bytes {
        return Err(DecodeError::Large { bytes: message.body.len(), most: limits.max_bytes });
    }
    if message.header("task").is_some() {
        return celery::decode(message, limits);
    }
    celery::refuse_executable(message.content_type.as_deref())?;
    let content_type = ContentType::detect(message.content_type.as_deref(), &message.body)?;
    if content_type == ContentType::Json {
        // Celery's bodies may hold what strict JSON does not; the tolerant reader only looks for the kind of message.
        let body = json::parse(&message.body, limits).map_err(|error| DecodeError::Malformed {
            format: ContentType::Json,
            reason: error.to_string(),
        })?;
        if body.get("v").is_none() && body.get("task").is_some_and(|task| task.text().is_some()) {
            return celery::decode(message, limits);
        }
        if body.get("v").is_none() {
            return Err(DecodeError::Field {
                path: "(top level)".to_owned(),
                value: String::new(),
                reason: "this is no task: a native envelope is a map with \"v\": 1 and \"task\", a Celery message has the header `task`, or names it in its body"
                    .to_owned(),
            });
        }
    }
    envelope::decode(&message.body, content_type, limits).map(Decoded::Task)
}

impl fmt::Debug for RawMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMessage")
            .field("content_type", &self.content_type)
            .field("queue", &self.queue)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl RawMessage {
    /// A message with a body and nothing else.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self {
            headers: Vec::new(),
            header_order: KeyOrder::Kept,
            properties: Properties::default(),
            content_type: None,
            content_encoding: None,
            queue: None,
            body: body.into(),
        }
    }

    /// The message with these headers.
    #[must_use]
    pub fn with_headers(mut self, headers: &BTreeMap<String, Value>) -> Self {
        self.headers = headers.iter().map(|(name, value)| (name.clone(), Json::from(value))).collect();
        self
    }

    /// The header called `name`; null counts as none.
    pub fn header(&self, name: &str) -> Option<&Json> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
            .filter(|json| !json.is_null())
    }

    /// Reads a file for `longshore decode`: a captured message (`properties`, `headers`, `content_type`,
    /// `content_encoding`, `body_base64`), what Celery keeps in Redis (`body`, `headers`, `properties`,
    /// `content-type`), or, for anything else, a bare body.
    pub fn from_file(bytes: &[u8], limits: &Limits) -> Result<Self, DecodeError> {
        // Base64 and the headers beside it take more room than the body that is limited.
        let outer = Limits { max_bytes: limits.max_bytes.saturating_mul(3), ..*limits };
        match json::parse(bytes, &outer) {
            Ok(file) if file.get("body_base64").is_some() => Self::from_capture(&file),
            Ok(file) if file.get("body").is_some() && file.get("properties").is_some() => {
                Self::from_kombu(&file)
            }
            Ok(_) | Err(_) => Ok(Self::new(bytes.to_vec())),
        }
    }

    fn from_capture(file: &Json) -> Result<Self, DecodeError> {
        let order = match file.get("transport").and_then(Json::text) {
            Some("redis") => PriorityOrder::LowestFirst,
            _ => PriorityOrder::HighestFirst,
        };
        Ok(Self {
            headers: table(file, "headers")?,
            header_order: KeyOrder::Kept,
            properties: properties(file, order)?,
            content_type: text(file, "content_type")?,
            content_encoding: text(file, "content_encoding")?,
            queue: text(file, "queue")?
                .or(text(file, "routing_key")?.map(|key| undelayed(&key).to_owned()))
                .filter(|queue| !queue.is_empty()),
            body: unpacked(file, "body_base64")?,
        })
    }

    /// Reads the map that Celery keeps in a Redis list.
    pub fn from_kombu(message: &Json) -> Result<Self, DecodeError> {
        let nested = message.get("properties").unwrap_or(&Json::Null);
        let body = match nested.get("body_encoding").and_then(Json::text) {
            Some("base64") => unpacked(message, "body")?,
            _ => text(message, "body")?.unwrap_or_default().into(),
        };
        let info = nested.get("delivery_info").unwrap_or(&Json::Null);
        Ok(Self {
            headers: table(message, "headers")?,
            header_order: KeyOrder::Kept,
            properties: properties(message, PriorityOrder::LowestFirst)?,
            content_type: text(message, "content-type")?,
            content_encoding: text(message, "content-encoding")?,
            queue: text(info, "routing_key")?.filter(|queue| !queue.is_empty()),
            body,
        })
    }
}

/// A routing key without the 28 binary digits that Celery's native delayed delivery puts in front of it.
pub fn undelayed(routing_key: &str) -> &str {
    const DIGITS: usize = 28;
    let digits = routing_key.split('.').take_while(|part| matches!(*part, "0" | "1")).count();
    if digits >= DIGITS { routing_key.get(2 * DIGITS..).unwrap_or(routing_key) } else { routing_key }
}

fn properties(message: &Json, priority_order: PriorityOrder) -> Result<Properties, DecodeError> {
    let nested = Json::Map(table(message, "properties")?);
    let priority = match nested.get("priority") {
        Some(Json::Number(number)) => number.as_u64().and_then(|number| u8::try_from(number).ok()),
        _ => None,
    };
    Ok(Properties {
        correlation_id: text(&nested, "correlation_id")?.filter(|text| !text.is_empty()),
        reply_to: text(&nested, "reply_to")?.filter(|text| !text.is_empty()),
        priority,
        priority_order,
    })
}

fn wrong(path: &str, reason: &str) -> DecodeError {
    DecodeError::Field { path: path.to_owned(), value: String::new(), reason: reason.to_owned() }
}

fn table(message: &Json, name: &str) -> Result<Vec<(String, Json)>, DecodeError> {
    match message.get(name) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Map(entries)) => Ok(entries.clone()),
        Some(_) => Err(wrong(name, "must be a map")),
    }
}

fn text(message: &Json, name: &str) -> Result<Option<String>, DecodeError> {
    match message.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.clone())),
        // A reader of AMQP may only be lossy, too.
        Some(Json::Surrogates(units)) => Ok(Some(String::from_utf16_lossy(units))),
        Some(_) => Err(wrong(name, "must be a text")),
    }
}

fn unpacked(message: &Json, name: &str) -> Result<Bytes, DecodeError> {
    let packed = text(message, name)?.unwrap_or_default();
    STANDARD
        .decode(packed.trim())
        .map(Bytes::from)
        .map_err(|error| wrong(name, &format!("must be the body's bytes in base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(message: &RawMessage) -> Result<Decoded, DecodeError> {
        decode(message, &Limits::default())
    }

    #[test]
    fn a_bare_native_envelope_is_a_task() {
        let message =
            RawMessage::from_file(br#"{"v": 1, "task": "x", "id": "a"}"#, &Limits::default()).unwrap();
        let Ok(Decoded::Task(task)) = decoded(&message) else { panic!("no task") };
        assert_eq!((task.kind.as_str(), task.id.as_str()), ("x", "a"));
        let packed = RawMessage::new(envelope::encode(&task, ContentType::MessagePack));
        assert_eq!(decoded(&packed), Ok(Decoded::Task(task)));
    }

    #[test]
    fn what_is_neither_is_told_what_it_lacks() {
        for body in [&b"[]"[..], b"{}", b"{\"task\": 7}", b"3"] {
            let error = decoded(&RawMessage::new(body.to_vec())).unwrap_err().to_string();
            assert!(error.contains("no task"), "{error}");
        }
        let error = decoded(&RawMessage::new(&b"\xc1"[..])).unwrap_err().to_string();
        assert!(error.contains("no valid application/json"), "{error}");
    }

    #[test]
    fn pickle_and_yaml_are_refused_by_name() {
        for (content_type, name) in
            [("application/x-python-serialize", "pickle"), ("application/x-yaml", "YAML")]
        {
            let mut message = RawMessage::new(&b"x"[..]);
            message.content_type = Some(content_type.to_owned());
            let error = decoded(&message).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("task_serializer"), "{error}");
        }
    }

    #[test]
    fn the_prefix_of_a_natively_delayed_message_is_no_part_of_its_queue() {
        let digits = ["0"; 27].join(".") + ".1";
        assert_eq!(undelayed(&format!("{digits}.celery")), "celery");
        assert_eq!(undelayed(&format!("{digits}.1.0")), "1.0");
        assert_eq!(undelayed("0.1.celery"), "0.1.celery");
    }
}
