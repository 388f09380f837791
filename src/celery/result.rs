//! The result of a task as Celery's clients read it.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::backend::Backend;
use crate::error::TaskError;
use crate::events::{Event, EventData, EventSink, Notice, SinkError};
use crate::task::Task;
use crate::task::celery::CeleryContext;

/// Delivers results to the senders of Celery messages.
#[derive(Debug)]
pub struct Results {
    backend: Backend,
}

impl Results {
    /// The name in outboxes.
    pub const NAME: &'static str = "celery";

    /// Delivers to `backend`.
    pub fn new(backend: Backend) -> Self {
        Self { backend }
    }
}

#[async_trait]
impl EventSink for Results {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn wants(&self, task: &Task) -> bool {
        CeleryContext::of(task)
            .is_some_and(|context| !context.ignore_result && self.backend.reaches(&context))
    }

    fn knows_by_event(&self) -> bool {
        false
    }

    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        for notice in notices.iter().filter(|notice| notice.event.kind().is_terminal()) {
            let Some(context) = notice.task.as_deref().and_then(CeleryContext::of) else { continue };
            let Some(result) = result(&notice.event, &context) else { continue };
            let delivered = self.backend.deliver(&context, &result.to_string()).await;
            delivered.map_err(|error| SinkError { sink: Self::NAME, reason: error.to_string() })?;
        }
        Ok(())
    }
}

/// The result document of a terminal event; none for others. docker_run's own result is always null, as from
/// girder_worker, which drops what its hooks return.
pub fn result(event: &Event, context: &CeleryContext) -> Option<Value> {
    let (status, result, traceback) = match &event.data {
        EventData::Succeeded { .. } => ("SUCCESS", Value::Null, Value::Null),
        EventData::Failed { error } => {
            let (kind, module, message) = exception(error, context);
            let traceback = format!("{kind}: {message}");
            ("FAILURE", raised(kind, module, &message), Value::String(traceback))
        }
        EventData::Dead { reason } => {
            let raised = raised("InvalidTaskError", "celery.exceptions", reason);
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

fn raised(kind: &str, module: &str, message: &str) -> Value {
    json!({ "exc_type": kind, "exc_message": [message], "exc_module": module })
}

/// The exception that girder_worker would have raised, where it has one for that failure.
fn exception(error: &TaskError, context: &CeleryContext) -> (&'static str, &'static str, String) {
    match (error.code.as_str(), error.exit_code) {
        ("time_limit", _) => {
            let limit = context.timelimit;
            let soft_first = match (limit.soft, limit.hard) {
                (Some(soft), Some(hard)) => soft < hard,
                (soft, _) => soft.is_some(),
            };
            let seconds = if soft_first { limit.soft } else { limit.hard };
            let kind = if soft_first { "SoftTimeLimitExceeded" } else { "TimeLimitExceeded" };
            (kind, "billiard.exceptions", seconds.map_or(error.message.clone(), |limit| limit.to_string()))
        }
        ("nonzero_exit", Some(code)) => (
            "DockerException",
            "docker.errors",
            format!("Non-zero exit code from docker container ({code})."),
        ),
        ("image_not_found", _) => ("ImageNotFound", "docker.errors", error.message.clone()),
        _ => ("LongshoreError", "longshore", error.message.clone()),
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
        assert_eq!(failed["result"]["exc_message"], json!(["2.5"]));
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
