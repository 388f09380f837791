//! Revoking: by ids, and by the stamps that senders put on their tasks.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{AT_ONCE, Control, answers, ids};
use crate::cancel::CancelReason;
use crate::ledger::Stamps;
use crate::task::TaskId;

/// Whether a revoke ends what runs, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminate {
    Yes,
    No,
}

pub(super) fn terminates(arguments: &Map<String, Value>) -> Terminate {
    if arguments.get("terminate") == Some(&Value::Bool(true)) { Terminate::Yes } else { Terminate::No }
}

impl Control {
    /// Revokes one or more tasks wherever they are. A running container is stopped whether or not termination is asked
    /// for, as girder_worker's docker_run does it.
    pub(super) async fn revoke(&self, arguments: &Map<String, Value>, terminate: Terminate) -> Value {
        let ids = ids(arguments.get("task_id"));
        let running: Vec<TaskId> = ids.iter().filter(|id| self.ledger.find(id).is_some()).cloned().collect();
        for id in &ids {
            self.remember(id);
            self.cancel(id).await;
        }
        match terminate {
            Terminate::Yes if running.is_empty() => json!({ "ok": "terminate: tasks unknown" }),
            Terminate::Yes => json!({ "ok": format!("terminate: {}", answers::listed(&running)) }),
            Terminate::No => {
                let quoted: Vec<String> = ids.iter().map(|id| answers::python_text(id.as_ref())).collect();
                json!({ "ok": format!("tasks {{{}}} flagged as revoked", quoted.join(", ")) })
            }
        }
    }

    /// Revokes what carries one of the stamps: nothing of it starts any more, and with termination what runs is stopped.
    pub(super) fn revoke_stamps(&self, arguments: &Map<String, Value>) -> Value {
        let Some(stamps) = stamps(arguments.get("headers")) else {
            return answers::refused(
                "the argument headers: give a map of names to values, or a list of name=value",
            );
        };
        self.ledger.revoke_stamps(&stamps);
        if terminates(arguments) == Terminate::No {
            return json!({ "ok": format!("headers {} flagged as revoked, but not terminated", answers::stamps(&stamps)) });
        }
        let mut terminated = Stamps::new();
        for (id, shared) in self.ledger.stamped(&stamps) {
            let by = shared.keys().next().cloned().unwrap_or_default();
            let reason = format!("revoked through Celery by its stamp {by}");
            if self.ledger.cancel(&id, CancelReason::Canceled(reason)) {
                for (header, values) in shared {
                    terminated.entry(header).or_default().extend(values);
                }
            }
        }
        json!({ "ok": if terminated.is_empty() {
            format!("headers {} were not terminated", answers::stamps(&stamps))
        } else {
            format!("headers {} revoked", answers::stamps(&terminated))
        } })
    }
}

/// A map of names to one value or several, or a list of `name=value`.
fn stamps(headers: Option<&Value>) -> Option<Stamps> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut stamps = Stamps::new();
    match headers? {
        Value::Object(map) => {
            for (name, value) in map.iter().take(AT_ONCE) {
                let values = match value {
                    Value::Array(all) => all.iter().take(AT_ONCE).map(text).collect(),
                    one => BTreeSet::from([text(one)]),
                };
                stamps.entry(name.clone()).or_default().extend(values);
            }
        }
        Value::Array(all) => {
            for pair in all.iter().take(AT_ONCE) {
                let (name, value) = pair.as_str()?.split_once('=')?;
                stamps.entry(name.to_owned()).or_default().insert(value.to_owned());
            }
        }
        _ => return None,
    }
    Some(stamps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_from_every_form_that_celery_sends() {
        let read = |value: Value| stamps(Some(&value)).map(|stamps| answers::stamps(&stamps));
        assert_eq!(read(json!({"a": ["1", 2], "b": "x"})).unwrap(), "{'a': ['1', '2'], 'b': ['x']}");
        assert_eq!(read(json!(["a=1", "a=2=3"])).unwrap(), "{'a': ['1', '2=3']}");
        assert_eq!((read(json!(["a"])), read(json!(7))), (None, None));
    }
}
