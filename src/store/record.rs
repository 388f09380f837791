//! The document of a task: what `task show` prints and what admission decides on.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TaskError;
use crate::events::{Event, EventData, Progress};
use crate::task::{Fence, Generation, Priority, QueueName, Task, TaskId};

/// Everything known of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// The task.
    pub id: TaskId,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: Priority,
    /// Which life of the id this tells of.
    pub generation: Generation,
    /// Where it stands.
    pub status: Status,
    /// The current (or last) attempt's fence.
    pub fence: Fence,
    /// Charged attempts, the current one included.
    pub attempts: u32,
    /// Starts in a row that ended without any outcome: what `poison_limit` bounds.
    pub unfinished_starts: u32,
    /// The broker message that carries it, to tell a redelivery from a duplicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The broker it came from, without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Who works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Until when the owner's lease lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
    /// Since when it runs on without its worker, until the owner's next process adopts it or the lease ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Timestamp>,
    /// Outputs that nobody took yet: its work is done, and its owner brings them away later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spooled: Option<Spooled>,
    /// Free text of the producer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When each phase was reached.
    pub times: PhaseTimes,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why the last attempt failed, while it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<TaskError>,
    /// The sinks that must still be told how it ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub owed: BTreeSet<String>,
    /// The number of the attempt's last event, so that whoever delivers it again tells the same event.
    #[serde(default)]
    pub last_event: u64,
    /// What the run found out.
    #[serde(default)]
    pub details: Details,
    /// The native envelope of a task that failed or was canceled, kept so that `task retry` can submit it again.
    /// It holds tokens: whoever shows a record shows [`Record::shown`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub envelope: Option<Value>,
}

impl Record {
    /// The record as it may be shown: without the envelope and its tokens.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self { envelope: None, ..self.clone() }
    }
}

impl Record {
    /// A record of `task` that nobody has met yet.
    pub fn empty(task: &Task) -> Self {
        Self {
            id: task.id.clone(),
            kind: task.kind.clone(),
            queue: task.queue.clone(),
            priority: task.priority,
            generation: task.generation,
            status: Status::Queued,
            fence: Fence::default(),
            attempts: 0,
            unfinished_starts: 0,
            message: None,
            source: None,
            owner: None,
            lease_until: None,
            left: None,
            spooled: None,
            labels: task.labels.clone(),
            times: PhaseTimes::default(),
            outcome: None,
            last_error: None,
            owed: BTreeSet::new(),
            last_event: 0,
            envelope: None,
            details: Details::default(),
        }
    }

    /// The event that tells how it ended; `None` while it has not.
    pub fn last_event(&self) -> Option<Event> {
        let data = match self.outcome.as_ref()? {
            Outcome::Succeeded => EventData::Succeeded { exit_code: self.details.exit_code },
            Outcome::Failed { error } => EventData::Failed { error: error.clone() },
            Outcome::Canceled { reason } => EventData::Canceled { reason: reason.clone() },
            Outcome::Dead { reason } => EventData::Dead { reason: reason.clone() },
        };
        Some(Event {
            task: self.id.clone(),
            queue: self.queue.clone(),
            fence: self.fence,
            number: self.last_event,
            time: self.times.finished.unwrap_or_default(),
            data,
        })
    }
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In a queue; no worker has met it. Never stored: told from the queue.
    Queued,
    /// A worker prepares it.
    Staging,
    /// It runs.
    Running,
    /// Its container ended; its outputs are on their way.
    Uploading,
    /// It waits for another attempt.
    Retrying,
    /// It was given back uncharged and waits for another worker.
    Released,
    /// It ended well.
    Succeeded,
    /// It failed for good.
    Failed,
    /// It was canceled.
    Canceled,
    /// It is parked as a dead letter.
    Dead,
}

impl Status {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Staging,
        Self::Running,
        Self::Uploading,
        Self::Retrying,
        Self::Released,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Dead,
    ];
    /// Whether nothing follows in this generation.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Dead)
    }
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Staging => "staging",
            Self::Running => "running",
            Self::Uploading => "uploading",
            Self::Retrying => "retrying",
            Self::Released => "released",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Dead => "dead",
        }
    }
    /// The state of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// Who works on a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    /// The worker's name.
    pub worker: String,
    /// Changes with each start of its process.
    pub incarnation: String,
    /// Stays the same over restarts, and no two processes have it at the same time; empty where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Its host.
    pub host: String,
}

/// Outputs that their worker keeps because nobody took them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spooled {
    /// Since when.
    pub since: Timestamp,
    /// The owner tries until then, and nobody else runs the task before.
    pub until: Timestamp,
    /// How often they were tried, the first time included.
    pub tries: u32,
    /// When they are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// Why they were not taken the last time.
    pub error: TaskError,
}

/// When each phase of the last attempt was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PhaseTimes {
    /// Submitted to its queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<Timestamp>,
    /// Admitted by a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admitted: Option<Timestamp>,
    /// The image was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulled: Option<Timestamp>,
    /// Everything was prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged: Option<Timestamp>,
    /// The container was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// The container ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The outputs were uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<Timestamp>,
    /// The record was finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The record's last change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// For good.
    Failed {
        /// Why.
        error: TaskError,
    },
    /// On request.
    Canceled {
        /// By whom or why.
        reason: String,
    },
    /// Parked as a dead letter.
    Dead {
        /// Why.
        reason: String,
    },
}

/// What a run found out; every field is optional, so that each task kind fills what it knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Details {
    /// The container's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Whether the kernel killed it for its memory limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_killed: Option<bool>,
    /// The image as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What ran: the image's content digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Entrypoint and arguments with secrets redacted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// The container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Devices that the task held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// Processor seconds used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Most memory used, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Bytes of each stream and transfer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamBytes>,
    /// What was uploaded, with the ids it got.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uploads: Vec<Value>,
    /// The last progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The last lines that the container and the worker said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_tail: String,
    /// Bytes of log that are not in the tail.
    #[serde(skip_serializing_if = "is_zero")]
    pub log_dropped: u64,
    /// What is worth knowing but no failure, such as unreadable progress lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What the task returns.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub result: Value,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How many bytes a stream carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamBytes {
    /// Which, such as `NamedOutputPipe out → HostStdOut`.
    pub stream: String,
    /// How many.
    pub bytes: u64,
    /// SHA-256 of them in hexadecimal, where it cost nothing extra to know: of what was posted encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}
