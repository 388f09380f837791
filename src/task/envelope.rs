//! The native envelope: a [`Task`] as JSON or MessagePack.
//!
//! Decoding is strict where a mistake would run something else than was meant, and keeps unknown top-level fields.
//! Every refusal names the field, its value and the remedy.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::arg::{Arg, shown, transform_from_value};
use super::transform::TransformSpec;
pub use super::value::Limits;
use super::{ArgMap, Generation, Task, TaskId, value};

/// How an envelope is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`
    Json,
    /// `application/msgpack`, named fields
    MessagePack,
}

impl ContentType {
    /// The MIME type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MessagePack => "application/msgpack",
        }
    }

    /// Reads a header's text; none means JSON, unless the body's first byte can only be MessagePack's map.
    pub fn detect(header: Option<&str>, body: &[u8]) -> Result<Self, DecodeError> {
        let essence =
            header.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        match essence.as_deref() {
            Some("application/json" | "text/json") => Ok(Self::Json),
            Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => {
                Ok(Self::MessagePack)
            }
            None | Some("") => match body.first() {
                Some(0x80..=0x8f | 0xde | 0xdf) => Ok(Self::MessagePack),
                _ => Ok(Self::Json),
            },
            Some(other) => Err(DecodeError::ContentType(other.to_owned())),
        }
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a message is no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is larger than allowed.
    #[error(
        "the message has {bytes} bytes, the most is {most}: send large inputs as files, or raise message.max_bytes"
    )]
    Large {
        /// Bytes seen.
        bytes: usize,
        /// Bytes allowed.
        most: usize,
    },
    /// A content type that is not decoded.
    #[error("content type {0:?} is not decoded: send application/json or application/msgpack")]
    ContentType(String),
    /// Not JSON or MessagePack, or beyond the limits.
    #[error("the body is no valid {format}: {reason}")]
    Malformed {
        /// The format tried.
        format: ContentType,
        /// What the parser said.
        reason: String,
    },
    /// The envelope's version is later than this build's: another worker may know it.
    #[error(
        "envelope version {0} is not known here (this build knows 1): upgrade this worker or send \"v\": 1"
    )]
    Version(u64),
    /// A field is missing, of the wrong type or out of bounds.
    #[error("field {path}: {reason}{}", got(.value))]
    Field {
        /// Where, such as `args.volumes[0].mode`.
        path: String,
        /// The value, shortened; empty when it is missing.
        value: String,
        /// What is wrong and what to send instead.
        reason: String,
    },
    /// A `$` that names no transform.
    #[error("field {path}: no transform is called {name:?}{}", did_you_mean(.nearest.as_deref()))]
    UnknownTransform {
        /// Where.
        path: String,
        /// The name.
        name: String,
        /// The most similar known name.
        nearest: Option<String>,
    },
    /// A serializer whose decoding would run code of the sender.
    #[error(
        "content type {content_type:?} is never decoded, because reading {serializer} runs code of its sender: set task_serializer = \"json\" in the producer"
    )]
    Executable {
        /// What the header says.
        content_type: String,
        /// Its common name.
        serializer: &'static str,
    },
    /// A Python class or function that is not known, where it would be used. Never loaded, made or called.
    #[error("field {path}: {name} is not known here{}: send a transform that docker_run takes, or plain values", did_you_mean(.nearest.as_deref()))]
    Class {
        /// Where.
        path: String,
        /// Its full name.
        name: String,
        /// The most similar known name.
        nearest: Option<String>,
    },
    /// The message is understood, and what it asks for cannot be done.
    #[error("field {path}: {reason}{}", got(.value))]
    Unusable {
        /// Where.
        path: String,
        /// The value, shortened; empty when it is missing or may hold a secret.
        value: String,
        /// What is wrong and what to send instead.
        reason: String,
    },
    /// A transform with a wrong field.
    #[error("field {path}: {name}: {reason}")]
    Transform {
        /// Where.
        path: String,
        /// The transform.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// What a refused message deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody can read it: its bytes go to the dead letters.
    Poison,
    /// A worker of a later version may read it.
    Later,
    /// It was read, and its task can only fail: its sender is told so.
    Unusable,
}

impl DecodeError {
    /// What the message deserves.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Version(_) => Refusal::Later,
            Self::Unusable { .. } => Refusal::Unusable,
            Self::Large { .. }
            | Self::ContentType(_)
            | Self::Malformed { .. }
            | Self::Field { .. }
            | Self::UnknownTransform { .. }
            | Self::Executable { .. }
            | Self::Class { .. }
            | Self::Transform { .. } => Refusal::Poison,
        }
    }
}

fn got(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" (got {value})") }
}

pub(super) fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name:?}?"))
}

/// Reads a task from `body`.
pub fn decode(body: &[u8], content_type: ContentType, limits: &Limits) -> Result<Task, DecodeError> {
    match parse(body, content_type, limits)? {
        Value::Object(map) => from_map(map),
        other => Err(DecodeError::Field {
            path: "(top level)".to_owned(),
            value: shown(&other),
            reason: "a task is a map with at least \"v\": 1 and \"task\"".to_owned(),
        }),
    }
}

/// Reads a body into a plain value under `limits`.
pub fn parse(body: &[u8], content_type: ContentType, limits: &Limits) -> Result<Value, DecodeError> {
    if body.len() > limits.max_bytes {
        return Err(DecodeError::Large { bytes: body.len(), most: limits.max_bytes });
    }
    let malformed = |reason: String| DecodeError::Malformed { format: content_type, reason };
    match content_type {
        ContentType::Json => {
            let mut reader = serde_json::Deserializer::from_slice(body);
            let read = value::read(&mut reader, limits).map_err(|error| malformed(error.to_string()))?;
            reader.end().map_err(|error| malformed(error.to_string()))?;
            Ok(read)
        }
        ContentType::MessagePack => {
            let mut reader = rmp_serde::Deserializer::from_read_ref(body);
            // One level beyond ours, so that our own limit speaks first.
            reader.set_max_depth(limits.max_depth + 8);
            value::read(&mut reader, limits).map_err(|error| malformed(error.to_string()))
        }
    }
}

/// Writes `task`. The inverse of [`decode`].
pub fn encode(task: &Task, content_type: ContentType) -> Vec<u8> {
    let written = match content_type {
        ContentType::Json => serde_json::to_vec(task).map_err(|error| error.to_string()),
        ContentType::MessagePack => {
            let mut out = Vec::with_capacity(512);
            let mut writer = rmp_serde::Serializer::new(&mut out).with_struct_map();
            task.serialize(&mut writer).map(|()| out).map_err(|error| error.to_string())
        }
    };
    written.expect("invariant: a task has text keys and finite numbers only")
}

/// Reads a task from an already parsed map.
pub fn from_map(mut map: Map<String, Value>) -> Result<Task, DecodeError> {
    let version = match map.remove("v") {
        Some(Value::Number(number)) if number.as_u64().is_some_and(|n| n >= 1) => {
            number.as_u64().unwrap_or(1)
        }
        other => {
            return Err(DecodeError::Field {
                path: "v".to_owned(),
                value: other.as_ref().map_or_else(String::new, shown),
                reason: "the envelope's version must stand here: send \"v\": 1".to_owned(),
            });
        }
    };
    if version != u64::from(Task::VERSION) {
        return Err(DecodeError::Version(version));
    }
    let mut fields = Fields(map);
    let kind: String = fields.required("task", "name the task kind, such as \"docker_run\"")?;
    let task = Task {
        version: Task::VERSION,
        id: fields.or_else("id", TaskId::fresh)?,
        kind,
        queue: fields.or_default("queue")?,
        priority: fields.or_default("priority")?,
        generation: fields.or_else("generation", Generation::default)?,
        args: fields.args()?,
        result_hooks: fields.hooks()?,
        girder: fields.optional("girder")?,
        not_before: fields.optional("not_before")?,
        expires: fields.optional("expires")?,
        timeout: fields.optional("timeout")?,
        retry: fields.optional("retry")?,
        resources: fields.or_default("resources")?,
        labels: fields.or_default("labels")?,
        dedup_key: fields.optional("dedup_key")?,
        traceparent: fields.optional("traceparent")?,
        extra: fields.0,
    };
    check(&task)?;
    Ok(task)
}

/// Bounds that no single field's type can state.
fn check(task: &Task) -> Result<(), DecodeError> {
    let refuse = |path: &str, value: String, reason: &str| {
        Err(DecodeError::Field { path: path.to_owned(), value, reason: reason.to_owned() })
    };
    if let Some(policy) = &task.retry
        && policy.max_attempts == 0
    {
        return refuse(
            "retry.max_attempts",
            "0".to_owned(),
            "must be at least 1 (1 means no second attempt)",
        );
    }
    if let Some(cpus) = task.resources.cpus
        && !(cpus.is_finite() && cpus >= 0.0)
    {
        return refuse("resources.cpus", cpus.to_string(), "must be zero or more");
    }
    if task.dedup_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 255) {
        return refuse("dedup_key", String::new(), "must have 1 to 255 bytes");
    }
    Ok(())
}

/// The fields not yet taken.
struct Fields(Map<String, Value>);

impl Fields {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, DecodeError> {
        match self.0.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                // The value may hold a token; the parser's reason names the place, so only plain values are shown.
                let plain = matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_));
                let text = if plain { shown(&value) } else { String::new() };
                serde_json::from_value(value).map(Some).map_err(|error| DecodeError::Field {
                    path: name.to_owned(),
                    value: text,
                    reason: error.to_string(),
                })
            }
        }
    }
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, DecodeError> {
        self.take(name)
    }
    fn or_default<T: DeserializeOwned + Default>(&mut self, name: &str) -> Result<T, DecodeError> {
        Ok(self.take(name)?.unwrap_or_default())
    }
    fn or_else<T: DeserializeOwned>(
        &mut self,
        name: &str,
        other: impl FnOnce() -> T,
    ) -> Result<T, DecodeError> {
        Ok(self.take(name)?.unwrap_or_else(other))
    }
    fn required<T: DeserializeOwned>(&mut self, name: &str, remedy: &str) -> Result<T, DecodeError> {
        self.take(name)?.ok_or_else(|| DecodeError::Field {
            path: name.to_owned(),
            value: String::new(),
            reason: format!("is missing: {remedy}"),
        })
    }
    fn args(&mut self) -> Result<ArgMap, DecodeError> {
        match self.0.shift_remove("args") {
            None | Some(Value::Null) => Ok(ArgMap::new()),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(name, value)| {
                    let arg = Arg::from_value(value, &format!("args.{name}"))?;
                    Ok((name, arg))
                })
                .collect(),
            Some(other) => Err(DecodeError::Field {
                path: "args".to_owned(),
                value: shown(&other),
                reason: "must be a map of named arguments".to_owned(),
            }),
        }
    }
    fn hooks(&mut self) -> Result<Vec<TransformSpec>, DecodeError> {
        match self.0.shift_remove("result_hooks") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(n, item)| transform_from_value(item, &format!("result_hooks[{n}]")))
                .collect(),
            Some(other) => Err(DecodeError::Field {
                path: "result_hooks".to_owned(),
                value: shown(&other),
                reason: "must be a list of transforms".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
