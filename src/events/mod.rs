//! What happens to a task, told in order: [`Event`]s and where they go ([`EventSink`]).
//!
//! An event's place is `(fence, n)`: `n` has no gaps within an attempt, and a reader drops events of lower fences.
//! Progress may be coalesced before its number is given; terminal events never go through a lossy queue.

pub mod book;
pub mod bus;
pub mod cloudevent;
pub mod reporter;
pub mod subject;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use book::{Book, Mark, Standing, Told};
pub use bus::Bus;
pub use reporter::{Phase, Reporter};

use crate::broker::{Ending, Place};
use crate::error::TaskError;
use crate::task::{Fence, QueueName, Secret, Task, TaskId};

/// One thing that happened to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The task.
    pub task: TaskId,
    /// The queue it came from.
    pub queue: QueueName,
    /// The attempt it belongs to; 0 before there is one.
    pub fence: Fence,
    /// Its number within the attempt, from 0 without gaps.
    pub number: u64,
    /// When it happened.
    pub time: Timestamp,
    /// What happened.
    pub data: EventData,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventData {
    /// It is in a queue.
    Queued,
    /// Its inputs are being prepared.
    Staging {
        /// Counts from 1.
        attempt: u32,
        /// By whom.
        worker: String,
    },
    /// It runs.
    Running {
        /// Counts from 1.
        attempt: u32,
        /// By whom.
        worker: String,
        /// In which container, when it runs in one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        container: Option<String>,
    },
    /// It came further.
    Progress(Progress),
    /// It, or the worker on its behalf, said something.
    Log {
        /// Who said it.
        stream: LogStream,
        /// What, without the line's end.
        text: String,
    },
    /// It ended well.
    Succeeded {
        /// The container's exit code, when it ran in one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i64>,
    },
    /// It failed for good.
    Failed {
        /// Why.
        error: TaskError,
    },
    /// It was canceled.
    Canceled {
        /// By whom or why.
        reason: String,
    },
    /// It is tried again.
    Retrying {
        /// Why.
        error: TaskError,
        /// Not before.
        at: Timestamp,
        /// Charged attempts so far.
        attempt: u32,
    },
    /// It is parked as a dead letter.
    Dead {
        /// Why.
        reason: String,
    },
}

/// How far a task came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// What it does now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How much is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<f64>,
    /// How much there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
}

/// Who said a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The container's standard output.
    Stdout,
    /// The container's standard error.
    Stderr,
    /// The worker: pulling, fetching, uploading, why it failed.
    Worker,
}

/// What an event is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// See [`EventData::Queued`].
    Queued,
    /// See [`EventData::Staging`].
    Staging,
    /// See [`EventData::Running`].
    Running,
    /// See [`EventData::Progress`].
    Progress,
    /// See [`EventData::Log`].
    Log,
    /// See [`EventData::Succeeded`].
    Succeeded,
    /// See [`EventData::Failed`].
    Failed,
    /// See [`EventData::Canceled`].
    Canceled,
    /// See [`EventData::Retrying`].
    Retrying,
    /// See [`EventData::Dead`].
    Dead,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Staging,
        Self::Running,
        Self::Progress,
        Self::Log,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Retrying,
        Self::Dead,
    ];
    /// As it stands in subjects and types.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Staging => "staging",
            Self::Running => "running",
            Self::Progress => "progress",
            Self::Log => "log",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
        }
    }
    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
    /// Whether nothing follows it in this generation of the task.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Dead)
    }
    /// Whether it may be evicted before others: progress and log lines.
    pub fn is_chatter(self) -> bool {
        matches!(self, Self::Progress | Self::Log)
    }
}

impl EventData {
    /// What it is, in one word.
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Queued => EventKind::Queued,
            Self::Staging { .. } => EventKind::Staging,
            Self::Running { .. } => EventKind::Running,
            Self::Progress(_) => EventKind::Progress,
            Self::Log { .. } => EventKind::Log,
            Self::Succeeded { .. } => EventKind::Succeeded,
            Self::Failed { .. } => EventKind::Failed,
            Self::Canceled { .. } => EventKind::Canceled,
            Self::Retrying { .. } => EventKind::Retrying,
            Self::Dead { .. } => EventKind::Dead,
        }
    }
}

impl Event {
    /// What it is, in one word.
    pub fn kind(&self) -> EventKind {
        self.data.kind()
    }
}

/// Which events a reader wants; empty fields want all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this task.
    pub task: Option<TaskId>,
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// Of these kinds; empty means all.
    pub kinds: Vec<EventKind>,
}

impl EventFilter {
    /// Whether `event` is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        self.task.as_ref().is_none_or(|task| *task == event.task)
            && self.queue.as_ref().is_none_or(|queue| *queue == event.queue)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind()))
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStart {
    /// With the oldest that is kept.
    Oldest,
    /// With the first at or after this time.
    Since(Timestamp),
    /// With what comes next.
    Now,
}

/// An event on its way to a sink, with what was asked for: some sinks learn only from the task whom to tell.
#[derive(Clone, Debug)]
pub struct Notice {
    /// What happened.
    pub event: Arc<Event>,
    /// The task as it was submitted; `None` where it is not known any more.
    pub task: Option<Arc<Task>>,
}

/// Where events go: the broker's topic, Girder's job, Celery's result.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// A stable name; records list it in their outbox.
    fn name(&self) -> &'static str;
    /// Whether `task` has something to tell this sink. The other tasks' events do not come here, and owe it nothing.
    fn wants(&self, _task: &Task) -> bool {
        true
    }
    /// Whether a notice without its task can be delivered. Records keep the tasks of sinks that say no.
    fn knows_by_event(&self) -> bool {
        true
    }
    /// Delivers `notices` in order. For terminal ones it returns only when they are delivered or durably journaled,
    /// or [`EventSink::told`] does.
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError>;
    /// Where what it is told lies, if that can be one step with the rest of a task's end.
    fn place(&self) -> Option<Place> {
        None
    }
    /// Delivers `notices` in order, those that `endings` name by their index in `notices` in one step with the rest of
    /// their task's end. Returns which of these were refused: nothing of them happened.
    async fn end(&self, notices: &[Notice], endings: Vec<(usize, Ending)>) -> Result<Vec<usize>, SinkError> {
        let refused: Vec<usize> = endings.iter().map(|(at, _)| *at).collect();
        let others = notices.iter().enumerate().filter(|(at, _)| !refused.contains(at));
        let others: Vec<Notice> = others.map(|(_, notice)| notice.clone()).collect();
        self.deliver(&others).await?;
        Ok(refused)
    }
    /// Waits until a terminal notice that [`EventSink::deliver`] took is there or durably journaled: for sinks that keep
    /// what they take in queues of their own, so that one slow receiver holds up no other.
    async fn told(&self, _notice: &Notice) -> Result<(), SinkError> {
        Ok(())
    }
    /// Somebody gave a new token for the Girder at `api_url`, in place of those that `task` came with.
    fn renew(&self, _task: &TaskId, _api_url: &str, _token: &Secret) {}
}

/// Why a sink did not take events.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the sink {sink} did not take an event: {reason}")]
pub struct SinkError {
    /// Which sink.
    pub sink: &'static str,
    /// What was seen.
    pub reason: String,
}
