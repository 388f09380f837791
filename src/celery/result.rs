//! The result of a task as Celery's clients read it.

use async_trait::async_trait;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::backend::{Backend, BackendError};
use crate::error::TaskError;
use crate::events::{Event, EventData, EventSink, Notice, SinkError};
use crate::task::celery::CeleryContext;
use crate::task::celery::canvas::{self, Called, Doomed, Ended, Part};
use crate::task::{Limits, Task};

/// Delivers results to the senders of Celery messages.
#[derive(Debug)]
pub struct Results {
    backend: Backend,
    limits: Limits,
}

impl Results {
    /// The name in outboxes.
    pub const NAME: &'static str = "celery";

    /// Delivers to `backend`. What follows a task is read within `limits`.
    pub fn new(backend: Backend, limits: Limits) -> Self {
        Self { backend, limits }
    }

    async fn answer(&self, notice: &Notice) -> Result<(), BackendError> {
        let Some(task) = notice.task.as_deref() else { return Ok(()) };
        let Some(context) = CeleryContext::of(task) else { return Ok(()) };
        let Some(mut result) = result(&notice.event, &context) else { return Ok(()) };
        if result["status"] == "FAILURE" {
            self.doom(&result, &context).await?;
        } else if result["status"] == "SUCCESS" && canvas::has_successors(&context) {
            result["children"] = children(task, &context, notice.event.time, &self.limits);
        }
        if self.backend.reaches(&context) {
            self.backend.deliver(&context, &result.to_string()).await?;
        }
        Ok(())
    }

    /// Tells the callers of those that can never run now, as Celery does: they would wait for ever.
    async fn doom(&self, failure: &Value, context: &CeleryContext) -> Result<(), BackendError> {
        for doomed in canvas::doomed(context, &self.limits) {
            let to = CeleryContext {
                id: doomed.id.clone(),
                reply_to: doomed.reply_to.clone(),
                correlation_id: None,
                ..CeleryContext::default()
            };
            if self.backend.reaches(&to) {
                self.backend.deliver(&to, &doomed_result(failure, &doomed, context).to_string()).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl EventSink for Results {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// Asked for each event of each task: the context is not taken apart.
    fn wants(&self, task: &Task) -> bool {
        let Some(context) = task.extra.get(CeleryContext::KEY) else { return false };
        let has = |name: &str| context.get(name).is_some_and(|value| !value.is_null());
        let awaited = match &self.backend {
            Backend::Rpc(_) => has("reply_to"),
            Backend::Redis(_) => has("id"),
        };
        context.get("ignore_result") != Some(&Value::Bool(true)) && (awaited || has("chain"))
    }

    fn knows_by_event(&self) -> bool {
        false
    }

    /// All at once: each is awaited, and none waits for another.
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        let terminal = notices.iter().filter(|notice| notice.event.kind().is_terminal());
        let delivered = try_join_all(terminal.map(|notice| self.answer(notice))).await;
        delivered.map(drop).map_err(|error| SinkError { sink: Self::NAME, reason: error.to_string() })
    }
}

/// The result document of a terminal event; none for others. docker_run's own result is always null, as from
/// girder_worker, which drops what its hooks return.
pub fn result(event: &Event, context: &CeleryContext) -> Option<Value> {
    let (status, result, traceback) = match &event.data {
        EventData::Succeeded { .. } => ("SUCCESS", Value::Null, Value::Null),
        EventData::Failed { error } => {
            let (kind, module, message) = exception(error, context);
            let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            ("FAILURE", raised(kind, module, message), Value::String(format!("{kind}: {text}")))
        }
        EventData::Dead { reason } => {
            let raised = raised("InvalidTaskError", "celery.exceptions", reason.as_str());
            ("FAILURE", raised, Value::String(format!("InvalidTaskError: {reason}")))
        }
        EventData::Canceled { reason } => {
            let why = if reason.starts_with("it expired") { "expired" } else { "revoked" };
            ("REVOKED", raised("TaskRevokedError", "celery.exceptions", why), Value::Null)
        }
        EventData::Queued
        | EventData::Staging { .. }
        | EventData::Running { .. }
        | EventData::Progress(_)
        | EventData::Log { .. }
        | EventData::Retrying { .. } => return None,
    };
    let mut document = Map::new();
    document.insert("status".to_owned(), Value::from(status));
    document.insert("result".to_owned(), result);
    document.insert("traceback".to_owned(), traceback);
    document.insert("children".to_owned(), json!([]));
    document.insert("date_done".to_owned(), Value::from(python_time(event.time)));
    for (name, value) in [("group_id", &context.group), ("parent_id", &context.parent_id)] {
        if let Some(value) = value {
            document.insert(name.to_owned(), Value::from(value.as_str()));
        }
    }
    document.insert("task_id".to_owned(), Value::from(context.id.as_str()));
    Some(Value::Object(document))
}

/// The tasks that this one called, each as Celery's `AsyncResult.as_tuple` writes it, and those of a group as its
/// `GroupResult` does.
fn children(task: &Task, context: &CeleryContext, at: Timestamp, limits: &Limits) -> Value {
    let called = canvas::successors(task, context, (Ended::Well, at), limits).unwrap_or_default();
    let (mut children, mut groups) = (Vec::new(), Map::new());
    for successor in called.iter().filter(|successor| successor.called == Called::Directly) {
        let child = json!([[successor.id.to_string(), null], null]);
        match successor.headers.get("group").and_then(Value::as_str) {
            None => children.push(child),
            Some(group) => {
                let members = groups.entry(group).or_insert_with(|| json!([]));
                members.as_array_mut().into_iter().for_each(|members| members.push(child.clone()));
            }
        }
    }
    children.extend(groups.into_iter().map(|(group, members)| json!([[group, null], members])));
    children.into()
}

/// The failure of a task that can never run, because that of `context` failed.
fn doomed_result(failure: &Value, doomed: &Doomed, context: &CeleryContext) -> Value {
    let mut result = failure.clone();
    result["task_id"] = doomed.id.as_str().into();
    if doomed.part == Part::Chord {
        let why = failure["traceback"].as_str().unwrap_or_default();
        let message = format!("Dependency {} raised {why}", context.id);
        result["result"] = raised("ChordError", "celery.exceptions", message);
    }
    if let Some(document) = result.as_object_mut() {
        document.remove("group_id");
        document.remove("parent_id");
        if let Some(group) = &doomed.group {
            document.insert("group_id".to_owned(), group.as_str().into());
        }
    }
    result
}

fn raised(kind: &str, module: &str, message: impl Into<Value>) -> Value {
    let message: Value = message.into();
    json!({ "exc_type": kind, "exc_message": [message], "exc_module": module })
}

/// The exception that girder_worker would have raised, where it has one for that failure.
fn exception(error: &TaskError, context: &CeleryContext) -> (&'static str, &'static str, Value) {
    match (error.code.as_str(), error.exit_code) {
        ("time_limit", _) => {
            let limit = context.timelimit;
            let soft_first = match (limit.soft, limit.hard) {
                (Some(soft), Some(hard)) => soft < hard,
                (soft, _) => soft.is_some(),
            };
            let seconds = if soft_first { limit.soft } else { limit.hard };
            let kind = if soft_first { "SoftTimeLimitExceeded" } else { "TimeLimitExceeded" };
            let message = seconds.map_or_else(|| Value::from(error.message.clone()), Value::from);
            (kind, "billiard.exceptions", message)
        }
        ("nonzero_exit", Some(code)) => (
            "DockerException",
            "docker.errors",
            format!("Non-zero exit code from docker container ({code}).").into(),
        ),
        ("image_not_found", _) => ("ImageNotFound", "docker.errors", error.message.clone().into()),
        _ => ("LongshoreError", "longshore", error.message.clone().into()),
    }
}

/// As Python's `isoformat` writes a time in UTC.
fn python_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::celery::TimeLimit;
    use crate::task::{Fence, QueueName, TaskId};

    fn context() -> CeleryContext {
        CeleryContext { id: "a-b".to_owned(), reply_to: Some("q".to_owned()), ..CeleryContext::default() }
    }
    fn told(data: EventData, context: &CeleryContext) -> Value {
        let event = Event {
            task: TaskId::new("a-b").unwrap(),
            queue: QueueName::default(),
            fence: Fence(1),
            number: 3,
            time: "2026-11-23T09:53:15.734763123Z".parse().unwrap(),
            data,
        };
        result(&event, context).unwrap()
    }

    #[test]
    fn success_reads_as_celery_writes_it() {
        let expected = r#"{"status":"SUCCESS","result":null,"traceback":null,"children":[],"date_done":"2026-11-23T09:53:15.734763+00:00","task_id":"a-b"}"#;
        assert_eq!(told(EventData::Succeeded { exit_code: Some(0) }, &context()).to_string(), expected);
        let member = CeleryContext { group: Some("g".to_owned()), ..context() };
        assert_eq!(told(EventData::Succeeded { exit_code: None }, &member)["group_id"], "g");
    }

    #[test]
    fn failures_are_the_exceptions_that_a_caller_knows() {
        let error = TaskError::permanent("nonzero_exit", "x").with_exit_code(3);
        let failed = told(EventData::Failed { error }, &context());
        assert_eq!(
            (&failed["status"], &failed["result"]["exc_type"]),
            (&json!("FAILURE"), &json!("DockerException"))
        );
        assert_eq!(failed["result"]["exc_message"], json!(["Non-zero exit code from docker container (3)."]));
        let limited =
            CeleryContext { timelimit: TimeLimit { hard: Some(9.0), soft: Some(2.5) }, ..context() };
        let failed = told(EventData::Failed { error: TaskError::permanent("time_limit", "x") }, &limited);
        assert_eq!(failed["result"]["exc_type"], "SoftTimeLimitExceeded");
        assert_eq!(failed["result"]["exc_message"], json!([2.5]));
    }

    #[test]
    fn what_was_canceled_is_revoked_with_the_reason_that_celery_gives() {
        for (reason, why) in [("it expired at x", "expired"), ("not wanted", "revoked")] {
            let revoked = told(EventData::Canceled { reason: reason.to_owned() }, &context());
            assert_eq!(revoked["status"], "REVOKED");
            assert_eq!(revoked["result"], raised("TaskRevokedError", "celery.exceptions", why));
        }
    }
}
