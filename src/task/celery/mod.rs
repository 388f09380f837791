//! Celery messages as girder_worker, slicer_cli_web and plain Celery producers send them.
//!
//! Owns the table of task names, and what turns a message into a [`Task`]: protocol and body ([`request`]), Celery's own
//! facts ([`context`]), Girder's headers ([`girder`]), arguments ([`call`], [`value`]), transforms ([`transform`]) and
//! volumes ([`volume`]); and what turns its canvas into the messages that follow it ([`canvas`]). Only data: a class or task name selects a row of a table here, or the message is refused.
//! Does not answer anybody; the bridge does, with what [`context`] says.

mod attributes;
pub mod call;
pub mod canvas;
mod compression;
pub mod context;
mod girder;
pub mod request;
mod transform;
mod value;
mod volume;

pub use canvas::unsupported;
pub use context::{CeleryContext, Signature, TimeLimit};
pub use girder::hook_documents;
pub use request::Request;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::envelope::{DecodeError, Limits};
use super::json::Json;
use super::message::{Decoded, PriorityOrder, RawMessage, UnknownTask};
use super::{Generation, GirderContext, Priority, QueueName, Task, TaskId};
use crate::units::Span;
use call::Callee;

/// The task names that are ours, and how their arguments are read.
pub const TASKS: &[(&str, Callee)] = &[
    ("girder_worker.docker.tasks.docker_run", Callee::DockerRun),
    ("slicer_cli_web.girder_worker_plugin.direct_docker_run.run", Callee::DirectDockerRun),
    ("longshore.ping", Callee::Ping),
];

/// Decodes a Celery message. Its own facts stand in the task's `extra["celery"]` as a [`CeleryContext`].
///
/// # Decisions
/// A task's generation is Celery's count of retries: a retried message has the same id and is no duplicate.
/// A message without a priority gets the middle one, as native tasks do; the others keep their order around it.
pub fn decode(message: &RawMessage, limits: &Limits) -> Result<Decoded, DecodeError> {
    if let Some(unknown) = unknown(message.header("task"), message.header("id")) {
        return Ok(Decoded::Unknown(unknown));
    }
    let request = Request::read(message, limits)?;
    if let Some(unknown) = unknown(request.field("task"), request.field("id")) {
        return Ok(Decoded::Unknown(unknown));
    }
    let context = CeleryContext::read(&request, message, limits)?;
    let callee = callee(&context.task).ok_or_else(|| wrong("task", "must name a task"))?;
    let mut volumes = volume::Volumes::default();
    let budget = value::Budget::new(limits);
    let args = call::arguments(&request, callee, &mut volumes, &budget)?;
    let mut task = Task::new(callee.kind(), args);
    task.id = TaskId::new(context.id.clone()).map_err(|error| wrong("id", &error.to_string()))?;
    if let Some(queue) = message.queue.as_deref().and_then(|queue| QueueName::new(queue).ok()) {
        task.queue = queue;
    }
    task.priority = priority(message);
    task.generation = Generation(context.retries);
    task.result_hooks = girder::hooks(message, &mut volumes, &budget, limits)?;
    task.girder = girder::context(message)?;
    task.not_before = time(&request, "eta")?;
    task.expires = time(&request, "expires")?;
    task.timeout = timeout(context.timelimit)?;
    task.traceparent = message.header("traceparent").and_then(Json::text).map(str::to_owned);
    task.extra.insert(CeleryContext::KEY.to_owned(), context.to_value());
    Ok(Decoded::Task(task))
}

/// What is known of a refused message's sender, to answer it: as much as can be read, nothing required.
pub fn sender(message: &RawMessage, limits: &Limits) -> Option<(CeleryContext, Option<GirderContext>)> {
    let context = CeleryContext::sketch(message, limits)?;
    Some((context, girder::context(message).unwrap_or_default()))
}

/// A task without arguments that stands for a refused message, so that its sender and its Girder job hear of the refusal.
/// None when the message does not say which task it was.
pub fn refused(message: &RawMessage, limits: &Limits) -> Option<Task> {
    let (context, girder) = sender(message, limits)?;
    let mut task = Task::new("docker_run", super::ArgMap::new());
    task.id = TaskId::new(context.id.clone()).ok()?;
    task.generation = Generation(context.retries);
    task.girder = girder;
    task.extra.insert(CeleryContext::KEY.to_owned(), context.to_value());
    Some(task)
}

/// What the sender of a Celery task stamped it with, where it did: values by header.
pub fn stamps(task: &Task) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let stamps = task.extra.get(CeleryContext::KEY)?.get("stamps")?.as_object()?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let values = |value: &Value| match value {
        Value::Array(all) => all.iter().map(text).collect(),
        one => BTreeSet::from([text(one)]),
    };
    Some(stamps.iter().map(|(header, value)| (header.clone(), values(value))).collect())
}

/// Refuses serializers whose reading runs code of the sender.
pub fn refuse_executable(content_type: Option<&str>) -> Result<(), DecodeError> {
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let serializer = match essence.to_ascii_lowercase().as_str() {
        "application/x-python-serialize" | "application/pickle" | "application/x-pickle" => "pickle",
        "application/x-yaml" | "application/yaml" | "text/yaml" | "text/x-yaml" => "YAML",
        _ => return Ok(()),
    };
    Err(DecodeError::Executable { content_type: essence.to_owned(), serializer })
}

fn callee(name: &str) -> Option<Callee> {
    TASKS.iter().find(|(known, _)| *known == name).map(|(_, callee)| *callee)
}

fn unknown(task: Option<&Json>, id: Option<&Json>) -> Option<UnknownTask> {
    let name = task?.text()?;
    let id = id.and_then(Json::text).map(str::to_owned);
    callee(name).is_none().then(|| UnknownTask { name: name.to_owned(), id })
}

fn wrong(path: &str, reason: &str) -> DecodeError {
    DecodeError::Field { path: path.to_owned(), value: String::new(), reason: reason.to_owned() }
}

/// No priority, or 0, is the middle one; the broker's other ones lie above or below it.
fn priority(message: &RawMessage) -> Priority {
    let given = u64::from(message.properties.priority.unwrap_or(0).min(9));
    let middle = u64::from(Priority::default());
    let away = given.div_ceil(2);
    let number = match message.properties.priority_order {
        PriorityOrder::HighestFirst => (middle + away).min(9),
        PriorityOrder::LowestFirst => middle - away,
    };
    Priority::new(number).unwrap_or_default()
}

/// An ISO 8601 time; one without an offset is UTC, as Celery's `timezone` is unless set otherwise.
fn time(request: &Request, name: &str) -> Result<Option<Timestamp>, DecodeError> {
    let refused = |value: String| DecodeError::Field {
        path: name.to_owned(),
        value,
        reason: "must be a time in ISO 8601, such as 2027-01-02T03:04:05+00:00".to_owned(),
    };
    match request.field(name) {
        None => Ok(None),
        Some(Json::Text(text)) => {
            // Python's largest times lie beyond ours: those mean never.
            let civil = |text: &str| -> Option<Timestamp> {
                let civil: DateTime = text.parse().ok()?;
                Some(civil.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp()))
            };
            let read = text.parse::<Timestamp>().ok().or_else(|| civil(text));
            read.map(Some).ok_or_else(|| refused(format!("{text:?}")))
        }
        Some(other) => Err(refused(super::arg::shown(&other.to_value()))),
    }
}

/// The sooner of the two limits ends the attempt; which one it was stands in the context.
fn timeout(limit: TimeLimit) -> Result<Option<Span>, DecodeError> {
    let sooner = [limit.hard, limit.soft].into_iter().flatten().reduce(f64::min);
    sooner
        .map(|seconds| {
            std::time::Duration::try_from_secs_f64(seconds)
                .map(Span)
                .map_err(|error| wrong("timelimit", &format!("{seconds} s is no limit: {error}")))
        })
        .transpose()
}

#[cfg(test)]
mod tests;
