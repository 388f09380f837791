//! One call as a message: Celery's protocol 2, or 1 where the task that is followed came in that one.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::plan::Call;
use super::{CanvasError, Successor};
use crate::task::celery::CeleryContext;
use crate::task::jsonpickle::{Document, Node, Object, encode};
use crate::task::message::Properties;
use crate::task::{QueueName, Task, TaskId};

/// Named arguments that girder_worker's tasks take for headers of their message.
const GIRDER_HEADERS: &[&str] =
    &["girder_client_token", "girder_api_url", "girder_result_hooks", "girder_client_session_kwargs"];
/// Those that it takes for the making of a job, and that never reach a message.
const GIRDER_OPTIONS: &[&str] = &[
    "girder_user",
    "girder_job_title",
    "girder_job_type",
    "girder_job_public",
    "girder_job_handler",
    "girder_job_other_fields",
    "girder_job_disable",
];
const HOOKS: &str = "girder_result_hooks";

/// Writes the messages that follow one task.
pub(super) struct Writer<'a> {
    pub(super) document: Document,
    pub(super) task: &'a Task,
    pub(super) context: &'a CeleryContext,
    /// When the task ended: counted from here are delays.
    pub(super) at: Timestamp,
}

/// An id that is the same each time: it comes of the followed task and the place behind it.
pub(super) fn derived(seed: &str) -> String {
    let digest = Sha256::digest(seed.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

impl Writer<'_> {
    pub(super) fn write(&mut self, call: &Call, seed: &str) -> Result<Successor, CanvasError> {
        let id = self.text(call, "task_id")?.unwrap_or_else(|| derived(seed));
        let (kwargs, mut own) = self.girder(call)?;
        own.extend(self.own_headers(call)?);
        let (callbacks, errbacks) =
            (self.listed(option(call, "link")), self.listed(option(call, "link_error")));
        let parts = Parts {
            callbacks,
            errbacks,
            chord: option(call, "chord").cloned().unwrap_or(Node::Null),
            kwargs,
        };
        let properties = Properties {
            correlation_id: Some(id.clone()),
            reply_to: self.text(call, "reply_to")?,
            priority: Some(self.priority(call)?),
            ..Properties::default()
        };
        let queue = self.queue(call)?;
        let facts = self.facts(call, &id)?;
        // Protocol 1 has no chain.
        let (headers, body) = if self.context.protocol == 1 && call.chain.is_empty() {
            (Map::new(), self.body_of_one(call, parts, facts)?)
        } else {
            (facts, self.body_of_two(call, parts)?)
        };
        let headers = headers.into_iter().chain(own).collect::<BTreeMap<_, _>>();
        Ok(Successor { id: TaskId::new(id)?, queue, headers, properties, body, called: call.called })
    }

    /// What Celery's headers say in protocol 2.
    fn facts(&self, call: &Call, id: &str) -> Result<Map<String, Value>, CanvasError> {
        let mut stamps = Map::new();
        let stamped = self.value(call, "stamped_headers")?;
        for name in stamped.as_array().into_iter().flatten().filter_map(Value::as_str) {
            stamps.insert(name.to_owned(), self.value(call, name)?);
        }
        let root = self.context.root_id.as_deref().unwrap_or(&self.context.id);
        let facts = json!({
            "lang": "py",
            "task": call.task,
            "id": id,
            "shadow": self.text(call, "shadow")?,
            "eta": self.eta(call)?,
            "expires": self.moment(call, "expires")?,
            "group": self.text(call, "group_id")?,
            "group_index": self.value(call, "group_index")?,
            "retries": self.number(call, "retries")?.unwrap_or_else(|| 0.into()),
            "timelimit": [self.number(call, "time_limit")?, self.number(call, "soft_time_limit")?],
            "root_id": root,
            "parent_id": self.context.id,
            // Both may hold tokens, and no worker needs them.
            "argsrepr": null,
            "kwargsrepr": null,
            "origin": "longshore",
            "ignore_result": self.value(call, "ignore_result")?.as_bool().unwrap_or(false),
            "replaced_task_nesting": self.number(call, "replaced_task_nesting")?.unwrap_or_else(|| 0.into()),
            "stamped_headers": stamped,
            "stamps": stamps,
        });
        match facts {
            Value::Object(facts) => Ok(facts),
            _ => Ok(Map::new()),
        }
    }

    fn body_of_two(&mut self, call: &Call, parts: Parts) -> Result<String, CanvasError> {
        let chain = if call.chain.is_empty() { Node::Null } else { self.list(call.chain.clone()) };
        let embed = self.dict(vec![
            ("callbacks", parts.callbacks),
            ("errbacks", parts.errbacks),
            ("chain", chain),
            ("chord", parts.chord),
        ]);
        let args = self.list(call.args.clone());
        let root = self.list(vec![args, parts.kwargs, embed]);
        Ok(encode(&self.document, &root)?.to_string())
    }

    fn body_of_one(
        &mut self,
        call: &Call,
        parts: Parts,
        mut facts: Map<String, Value>,
    ) -> Result<String, CanvasError> {
        let args = self.list(call.args.clone());
        let mut take = |name: &str| facts.remove(name).unwrap_or_default();
        let group = take("group");
        let limits: Vec<Node> = take("timelimit").as_array().into_iter().flatten().map(scalar).collect();
        let mut fields = vec![("task", scalar(&take("task"))), ("id", scalar(&take("id")))];
        fields.extend([
            ("args", args),
            ("kwargs", parts.kwargs),
            ("group", scalar(&group)),
            ("taskset", scalar(&group)),
        ]);
        fields.extend(["group_index", "retries", "eta", "expires"].map(|name| (name, scalar(&take(name)))));
        fields.extend([
            ("utc", Node::Bool(true)),
            ("callbacks", parts.callbacks),
            ("errbacks", parts.errbacks),
        ]);
        let limits = self.list(limits);
        fields.extend([("timelimit", limits), ("chord", parts.chord)]);
        let root = self.dict(fields);
        Ok(encode(&self.document, &root)?.to_string())
    }

    /// The named arguments without those that are girder_worker's own, and the headers that it makes of these.
    fn girder(&mut self, call: &Call) -> Result<(Node, Map<String, Value>), CanvasError> {
        let entries = self.document.entries(&call.kwargs).unwrap_or_default();
        let is_girders = |key: &Node| {
            key.text().is_some_and(|key| GIRDER_HEADERS.contains(&key) || GIRDER_OPTIONS.contains(&key))
        };
        let (girders, others): (Vec<_>, Vec<_>) =
            entries.iter().cloned().partition(|(key, _)| is_girders(key));
        let kwargs =
            if girders.is_empty() { call.kwargs.clone() } else { self.document.add(Object::Dict(others)) };
        let named = girders.iter().filter_map(|(key, value)| Some((key.text()?, value)));
        let optional = call.options.iter().map(|(name, value)| (name.as_str(), value));
        let mut headers = Map::new();
        for (name, value) in named.chain(optional).filter(|(name, _)| GIRDER_HEADERS.contains(name)) {
            let written = if name == HOOKS { self.hooks(value)? } else { self.written(value)? };
            headers.insert(name.to_owned(), written);
        }
        if let Some(girder) = &self.task.girder {
            headers.entry("girder_api_url").or_insert_with(|| girder.api_url.clone().into());
            if let Some(token) = &girder.client_token {
                headers.entry("girder_client_token").or_insert_with(|| token.expose().into());
            }
        }
        Ok((kwargs, headers))
    }

    /// Each hook is a document of its own. Tables of headers are sorted on their way, so they are numbered in that order.
    fn hooks(&self, hooks: &Node) -> Result<Value, CanvasError> {
        let sorted = self.document.sorted();
        let hooks = sorted.items(hooks).unwrap_or_default();
        let written = hooks.iter().map(|hook| Ok(encode(&sorted, hook)?.to_value()));
        written.collect::<Result<Vec<_>, CanvasError>>().map(Value::Array)
    }

    /// The sender's own headers.
    fn own_headers(&self, call: &Call) -> Result<Map<String, Value>, CanvasError> {
        match option(call, "headers").map(|headers| self.written(headers)).transpose()? {
            None => Ok(Map::new()),
            Some(Value::Object(mut headers)) => {
                headers.retain(|name, _| !GIRDER_OPTIONS.contains(&name.as_str()));
                if let Some(hooks) = option(call, "headers").and_then(|node| self.document.get(node, HOOKS)) {
                    headers.insert(HOOKS.to_owned(), self.hooks(hooks)?);
                }
                Ok(headers)
            }
            Some(_) => Err(refused(call, "headers", "they must be a map")),
        }
    }

    fn queue(&self, call: &Call) -> Result<Option<QueueName>, CanvasError> {
        let named = match option(call, "queue") {
            Some(Node::Text(name)) => Some(name.clone()),
            Some(_) => return Err(refused(call, "queue", "send the queue's name")),
            None if self.text(call, "exchange")?.is_some_and(|exchange| !exchange.is_empty()) => {
                return Err(refused(
                    call,
                    "exchange",
                    "this worker publishes to queues only: name the queue",
                ));
            }
            None => self.text(call, "routing_key")?,
        };
        match named.filter(|name| !name.is_empty()).map(QueueName::new) {
            None => Ok(None),
            Some(Ok(name)) => Ok(Some(name)),
            Some(Err(error)) => Err(refused(call, "queue", &error.to_string())),
        }
    }

    fn priority(&self, call: &Call) -> Result<u8, CanvasError> {
        let given = self.number(call, "priority")?.and_then(|number| number.as_f64()).unwrap_or(0.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped before")]
        let priority = given.clamp(0.0, 255.0) as u8;
        Ok(priority)
    }

    fn eta(&self, call: &Call) -> Result<Option<String>, CanvasError> {
        match self.number(call, "countdown")?.and_then(|number| number.as_f64()) {
            Some(seconds) if seconds != 0.0 => Ok(Some(self.after(call, "countdown", seconds)?)),
            _ => self.moment(call, "eta"),
        }
    }

    /// A time: as a text, as seconds from the end of the followed task, or as the serializer writes Python's.
    fn moment(&self, call: &Call, name: &'static str) -> Result<Option<String>, CanvasError> {
        let Some(node) = option(call, name) else { return Ok(None) };
        if let Node::Number(seconds) = node {
            return self.after(call, name, seconds.as_f64().unwrap_or(0.0)).map(Some);
        }
        let marked = self.document.get(node, "__value__").and_then(Node::text).map(str::to_owned);
        let text = node.text().map(str::to_owned).or(marked);
        let text = text.or_else(|| match self.document.shared(node) {
            Some(Object::DateTime(time)) => Some(time.isoformat('T')),
            _ => None,
        });
        text.map(Some).ok_or_else(|| refused(call, name, "send a time in ISO 8601 or seconds"))
    }

    fn after(&self, call: &Call, name: &'static str, seconds: f64) -> Result<String, CanvasError> {
        let span = SignedDuration::try_from_secs_f64(seconds).ok();
        let at = span.and_then(|span| self.at.checked_add(span).ok());
        let at = at.ok_or_else(|| refused(call, name, "it lies beyond all times"))?;
        Ok(at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string())
    }

    fn text(&self, call: &Call, name: &'static str) -> Result<Option<String>, CanvasError> {
        match option(call, name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text.clone())),
            Some(node) => {
                Err(refused(call, name, &format!("it must be a text, and is {}", self.document.kind(node))))
            }
        }
    }

    fn number(&self, call: &Call, name: &'static str) -> Result<Option<serde_json::Number>, CanvasError> {
        match option(call, name) {
            None => Ok(None),
            Some(Node::Number(number)) => Ok(Some(number.clone())),
            Some(node) => {
                Err(refused(call, name, &format!("it must be a number, and is {}", self.document.kind(node))))
            }
        }
    }

    fn value(&self, call: &Call, name: &str) -> Result<Value, CanvasError> {
        option(call, name).map_or(Ok(Value::Null), |node| self.written(node))
    }

    fn written(&self, node: &Node) -> Result<Value, CanvasError> {
        Ok(encode(&self.document, node)?.to_value())
    }

    /// What is no list becomes a list of one.
    fn listed(&mut self, node: Option<&Node>) -> Node {
        match node {
            None => Node::Null,
            Some(node) if self.document.items(node).is_some() => node.clone(),
            Some(node) => self.list(vec![node.clone()]),
        }
    }

    fn list(&mut self, items: Vec<Node>) -> Node {
        self.document.add(Object::List(items))
    }

    fn dict(&mut self, entries: Vec<(&str, Node)>) -> Node {
        let entries = entries.into_iter().map(|(name, value)| (Node::Text(name.to_owned()), value)).collect();
        self.document.add(Object::Dict(entries))
    }
}

/// What a body holds beside arguments and chain.
struct Parts {
    kwargs: Node,
    callbacks: Node,
    errbacks: Node,
    chord: Node,
}

fn option<'c>(call: &'c Call, name: &str) -> Option<&'c Node> {
    call.options.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn refused(call: &Call, name: &'static str, reason: &str) -> CanvasError {
    CanvasError::Option { task: call.task.clone(), name, reason: reason.to_owned() }
}

fn scalar(value: &Value) -> Node {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => Node::Null,
        Value::Bool(truth) => Node::Bool(*truth),
        Value::Number(number) => Node::Number(number.clone()),
        Value::String(text) => Node::Text(text.clone()),
    }
}
