//! Celery's own facts of a task: what its answers, events and successors need.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::jsonpickle::{Document, Node, Object};
use super::{Request, compression, wrong};
use crate::task::Task;
use crate::task::envelope::{DecodeError, Limits};
use crate::task::json::{Json, NonFinite};
use crate::task::jsonpickle;
use crate::task::message::RawMessage;

/// Stands in a task's `extra["celery"]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CeleryContext {
    /// 2 or 1.
    pub protocol: u8,
    /// The task's name.
    pub task: String,
    /// Its id.
    pub id: String,
    /// The queue for its result; none is wanted when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// What the result must repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The first task of its canvas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_id: Option<String>,
    /// The task that called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// The group it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its place in the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_index: Option<u64>,
    /// How often its sender retried it.
    #[serde(default)]
    pub retries: u32,
    /// Whether no result is stored: true only when the sender said so.
    #[serde(default)]
    pub ignore_result: bool,
    /// Seconds it may run.
    #[serde(default)]
    pub timelimit: TimeLimit,
    /// As the broker had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Its name in events, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// Positional arguments as Python prints them: for events only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argsrepr: Option<String>,
    /// Named arguments as Python prints them: for events only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kwargsrepr: Option<String>,
    /// Called with the result on success.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callbacks: Vec<Signature>,
    /// Called on failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errbacks: Vec<Signature>,
    /// What follows on success, in Celery's order: the last one is next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Signature>,
    /// Called with the results of the whole group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chord: Option<Signature>,
    /// Names of the headers by which stamped tasks are revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stamped_headers: Vec<String>,
    /// The stamps.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub stamps: Map<String, Value>,
    /// The sender's own headers: kept, never read.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub headers: Map<String, Value>,
    /// Attributes asked for on the HTTP session of job updates that are not honoured here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_ignored: Vec<String>,
}

/// Seconds a task may run; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeLimit {
    /// It is ended at this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<f64>,
    /// It is told at this, and docker_run ends at that, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<f64>,
}

/// A call that is to follow this task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The task's name.
    pub task: String,
    /// Whether it gets no result of ours in front of its arguments.
    pub immutable: bool,
    /// The whole signature (`task`, `args`, `kwargs`, `options`, `subtask_type`, `immutable`) as a jsonpickle document
    /// of its own, in Python's JSON.
    pub document: String,
}

impl Signature {
    /// The signature as a document, to be taken apart.
    pub fn read(&self, limits: &Limits) -> Result<Document, DecodeError> {
        let json = crate::task::json::parse(self.document.as_bytes(), limits)
            .map_err(|error| wrong("signature", &error.to_string()))?;
        jsonpickle::decode(&json, jsonpickle::Rules::default(), "signature", limits)
    }
}

/// Fields that are read elsewhere or mean nothing here; every other header is the sender's own.
const KNOWN_HEADERS: &[&str] = &[
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",
    "jobInfoSpec",
    "girder_api_url",
    "apiUrl",
    "girder_client_token",
    "girder_result_hooks",
    "girder_client_session_kwargs",
    "traceparent",
    "redelivered",
];

impl CeleryContext {
    /// The key of a task's `extra` that holds it.
    pub const KEY: &str = "celery";

    /// The context of a task that came as a Celery message.
    pub fn of(task: &Task) -> Option<Self> {
        task.extra.get(Self::KEY).and_then(|value| serde_json::from_value(value.clone()).ok())
    }

    /// As it stands in `extra`.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("invariant: text keys and numbers that were read from JSON")
    }

    pub(super) fn read(
        request: &Request,
        message: &RawMessage,
        limits: &Limits,
    ) -> Result<Self, DecodeError> {
        let required = |name: &str| {
            required_text(request.field(name))
                .ok_or_else(|| wrong(name, "is missing: Celery gives every message one"))
        };
        let part = |name: &str| request.document.get(&request.embed, name).unwrap_or(&Node::Null);
        // Each signature is written out in full, so what they share counts once for each.
        let mut room = limits.max_bytes;
        let mut signatures =
            |name: &str| signatures(&request.document, part(name), &format!("embed.{name}"), &mut room);
        let chord = signatures("chord")?;
        if chord.len() > 1 {
            return Err(wrong("embed.chord", "must be one signature"));
        }
        Ok(Self {
            task: required("task")?,
            id: required("id")?,
            retries: retries(request.field("retries"))?,
            timelimit: time_limit(request.field("timelimit"))?,
            callbacks: signatures("callbacks")?,
            errbacks: signatures("errbacks")?,
            chain: signatures("chain")?,
            chord: chord.into_iter().next(),
            ..Self::facts(message, request.protocol, &|name| request.field(name), request.has("taskset"))
        })
    }

    /// What can be read of a message that is refused, for its answer.
    pub(super) fn sketch(message: &RawMessage, limits: &Limits) -> Option<Self> {
        if message.header("task").is_some() {
            return Some(Self::facts(message, 2, &|name| message.header(name), false));
        }
        let bytes = compression::expand(&message.body, message.header("compression"), limits).ok()?;
        let body = crate::task::json::parse(&bytes, limits).ok()?;
        body.get("task").and_then(Json::text)?;
        let field = |name: &str| body.get(name).filter(|json| !json.is_null());
        Some(Self::facts(message, 1, &field, body.get("taskset").is_some()))
    }

    /// The fields that a message may lack or garble without harm.
    fn facts<'a>(
        message: &RawMessage,
        protocol: u8,
        field: &dyn Fn(&str) -> Option<&'a Json>,
        has_taskset: bool,
    ) -> Self {
        let text = |name: &str| required_text(field(name));
        let mut context = Self {
            protocol,
            task: text("task").unwrap_or_default(),
            id: text("id").unwrap_or_default(),
            reply_to: message.properties.reply_to.clone(),
            correlation_id: message.properties.correlation_id.clone(),
            root_id: text("root_id"),
            parent_id: text("parent_id"),
            group: if has_taskset { text("taskset") } else { text("group") },
            group_index: match field("group_index") {
                Some(Json::Number(number)) => number.as_u64(),
                _ => None,
            },
            ignore_result: matches!(field("ignore_result"), Some(Json::Bool(true))),
            priority: message.properties.priority,
            shadow: text("shadow"),
            argsrepr: text("argsrepr"),
            kwargsrepr: text("kwargsrepr"),
            session_ignored: super::girder::session_ignored(message),
            ..Self::default()
        };
        if let Some(names) = field("stamped_headers").and_then(Json::items) {
            context.stamped_headers = names.iter().filter_map(Json::text).map(str::to_owned).collect();
        }
        if let Some(Value::Object(stamps)) = field("stamps").map(Json::to_value) {
            context.stamps = stamps;
        }
        let own = message.headers.iter().filter(|(name, _)| !KNOWN_HEADERS.contains(&name.as_str()));
        context.headers = own.map(|(name, value)| (name.clone(), value.to_value())).collect();
        context
    }
}

/// A text that is not empty; lone surrogates in it are replaced, as AMQP clients do.
fn required_text(json: Option<&Json>) -> Option<String> {
    match json? {
        Json::Text(text) if !text.is_empty() => Some(text.clone()),
        Json::Surrogates(units) => Some(String::from_utf16_lossy(units)),
        _ => None,
    }
}

fn retries(json: Option<&Json>) -> Result<u32, DecodeError> {
    match json {
        None => Ok(0),
        Some(Json::Number(number)) => number
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| wrong("retries", "must be a count")),
        Some(_) => Err(wrong("retries", "must be a count")),
    }
}

/// Seconds that nobody waits for: a thousand years are no limit.
const FOREVER: f64 = 3.2e10;

/// `[hard, soft]`, each null or a number of seconds; 0 is no limit.
fn time_limit(json: Option<&Json>) -> Result<TimeLimit, DecodeError> {
    let refused = || wrong("timelimit", "must be [hard, soft], each null or seconds, zero or more");
    let seconds = |json: &Json| match json {
        Json::Null | Json::NonFinite(NonFinite::Infinity) => Ok(None),
        Json::Number(number) => match number.as_f64() {
            Some(seconds) if seconds >= FOREVER => Ok(None),
            Some(seconds) if seconds >= 0.0 => Ok(Some(seconds).filter(|seconds| *seconds > 0.0)),
            _ => Err(refused()),
        },
        Json::BigInteger(digits) if !digits.starts_with('-') => Ok(None),
        _ => Err(refused()),
    };
    match json.map(Json::items) {
        None => Ok(TimeLimit::default()),
        Some(Some([hard, soft])) => Ok(TimeLimit { hard: seconds(hard)?, soft: seconds(soft)? }),
        Some(_) => Err(refused()),
    }
}

/// Null, one signature or a list of them. Each is a map, or a map's subclass under girder_io.
fn signatures(
    document: &Document,
    node: &Node,
    path: &str,
    room: &mut usize,
) -> Result<Vec<Signature>, DecodeError> {
    let items = match document.items(node) {
        Some(items) => items,
        None if node.is_null() => &[],
        None => std::slice::from_ref(node),
    };
    let mut signatures = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let read = signature(document, item, &path)?;
        *room = room.checked_sub(read.document.len()).ok_or_else(|| DecodeError::Unusable {
            path,
            value: String::new(),
            reason: "the signatures are together larger than a message may be".to_owned(),
        })?;
        signatures.push(read);
    }
    Ok(signatures)
}

fn signature(document: &Document, node: &Node, path: &str) -> Result<Signature, DecodeError> {
    let is_signature = match document.shared(node) {
        Some(Object::Dict(_)) => true,
        Some(Object::Instance(instance)) if instance.class.starts_with("celery.canvas.") => true,
        Some(Object::Instance(instance)) => {
            return Err(DecodeError::Class {
                path: path.to_owned(),
                name: instance.class.clone(),
                nearest: None,
            });
        }
        _ => false,
    };
    let task = document.get(node, "task").and_then(Node::text).filter(|_| is_signature);
    let task = task.ok_or_else(|| wrong(path, "must be a signature: a map with \"task\""))?.to_owned();
    let immutable = matches!(document.get(node, "immutable"), Some(Node::Bool(true)));
    let written = jsonpickle::encode(document, node).map_err(|error| DecodeError::Unusable {
        path: path.to_owned(),
        value: String::new(),
        reason: format!("the signature cannot be passed on: {error}"),
    })?;
    Ok(Signature { task, immutable, document: written.to_string() })
}
