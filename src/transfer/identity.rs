//! Who a message is, as far as that can be told without understanding it: also of a later version, or of a name that no
//! worker here knows.

use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::broker::Delivery;
use crate::task::{ContentType, Decoded, Generation, Limits, Priority, Task, TaskId, envelope, message};

/// What the other broker must know of a message beside its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Identity {
    /// The task, where the message names it.
    pub(super) task: Option<TaskId>,
    /// Which life of it.
    pub(super) generation: Generation,
    /// As its decoder reads it.
    pub(super) priority: Priority,
    /// Likewise.
    pub(super) expires: Option<Timestamp>,
    /// How it is written.
    pub(super) content_type: String,
    /// What tells it from all others but its own copies; the hop follows.
    stem: String,
}

impl Identity {
    /// Of a message that the broker `source` handed over.
    pub(super) fn of(delivery: &Delivery, source: &str, limits: &Limits) -> Self {
        let detected = ContentType::detect(delivery.content_type.as_deref(), &delivery.body);
        let map = match detected
            .as_ref()
            .map(|content_type| envelope::parse(&delivery.body, *content_type, limits))
        {
            Ok(Ok(Value::Object(map))) => map,
            _ => Map::new(),
        };
        let celery = delivery.headers.get("task").is_some_and(Value::is_string);
        let text = |name: &str| {
            let found = if celery { delivery.headers.get(name) } else { map.get(name) };
            found.and_then(Value::as_str).map(str::to_owned)
        };
        let number = |name: &str| {
            let found = if celery { delivery.headers.get(name) } else { map.get(name) };
            found.and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok())
        };
        let task = text("id").and_then(|id| TaskId::new(id).ok());
        // Celery counts the lives of a task as its retries.
        let generation = Generation(number("generation").or(number("retries")).unwrap_or(0));
        let stem = match (&task, text("dedup_key").filter(|key| !celery && !key.is_empty())) {
            (_, Some(key)) => format!("{key}.{generation}"),
            (Some(task), None) => format!("{task}.{generation}"),
            (None, None) => format!("{}.{generation}", digest(source, &delivery.message.0)),
        };
        let read = match message::decode(&delivery.raw(), limits) {
            Ok(Decoded::Task(task)) => Some(task),
            Ok(Decoded::Unknown(_)) | Err(_) => None,
        };
        // A later version's envelope, of which only what does not change can be read.
        let guessed =
            map.get("priority").and_then(Value::as_u64).and_then(|number| Priority::new(number).ok());
        Self {
            task,
            generation: read.as_ref().map_or(generation, |task: &Task| task.generation),
            priority: read.as_ref().map(|task| task.priority).or(guessed).unwrap_or_default(),
            expires: read.and_then(|task| task.expires),
            content_type: delivery
                .content_type
                .clone()
                .unwrap_or_else(|| detected.unwrap_or(ContentType::Json).as_str().to_owned()),
            stem,
        }
    }

    /// By which the other broker knows its copies.
    pub(super) fn dedup_id(&self, hop: u32) -> String {
        format!("{}.{hop}", self.stem)
    }

    /// Brokers list messages by task: one that names none gets a name.
    pub(super) fn task_or_made_up(&self) -> TaskId {
        self.task.clone().unwrap_or_else(TaskId::fresh)
    }
}

/// Stands for one message of one broker.
fn digest(source: &str, message: &str) -> String {
    let sum = Sha256::new().chain_update(source).chain_update([0]).chain_update(message).finalize();
    sum.iter().take(16).fold(String::from("moved-"), |text, byte| format!("{text}{byte:02x}"))
}
