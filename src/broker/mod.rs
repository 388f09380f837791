//! What every message broker must be able to do, and the adapters that do it.
//!
//! Core code knows these traits and [`Capabilities`] only; which broker it talks to it never asks. An adapter is one
//! folder, its `mod` line and one row of [`ADAPTERS`]; `tests/it/contract` holds the rules that each one passes.
//!
//! # Decisions
//! A lease splits into an [`Extender`] for the keeper and a [`Settler`] that is consumed by settling, so that a delivery
//! can be settled only once. No broker fences anything itself: a stale ack succeeds. The store's fence guards effects.

pub mod amqp;
pub mod celery;
pub mod celery_redis;
pub mod dead;
pub mod memory;
pub mod message;
pub mod nats;
pub mod redis;
pub mod sqlite;
pub mod together;
pub mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use dead::{DeadLetter, DeadLetters, DeadSummary};
pub use message::{Delivery, MessageId, Submission};
pub use together::{Ending, Part, Place};
pub use url::{Adapter, BrokerUrl, OpenOptions};

use crate::cancel::CancelScope;
use crate::events::{Event, EventFilter, EventStart};
use crate::task::{Priority, QueueName, RawMessage, Secret, TaskId};

/// The adapters by URL scheme.
pub const ADAPTERS: &[Adapter] =
    &[sqlite::ADAPTER, nats::ADAPTER, redis::ADAPTER, celery_redis::ADAPTER, amqp::ADAPTER, memory::ADAPTER];

/// Opens the broker at `url` with the adapter of its scheme.
pub async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Broker, BrokerError> {
    let adapter =
        ADAPTERS.iter().find(|adapter| adapter.schemes.contains(&url.scheme())).ok_or_else(|| {
            let known: Vec<String> =
                ADAPTERS.iter().map(|adapter| format!("  {}", adapter.summary)).collect();
            BrokerError::Url(format!(
                "no broker is known by the scheme {:?} of {url}; known are:\n{}",
                url.scheme(),
                known.join("\n")
            ))
        })?;
    (adapter.open)(url, options).await
}

/// Makes and repairs what the broker at `url` must hold for the queues of `options`, by the adapter of its scheme: one line
/// for each thing that was looked after. Most adapters make what they need when they are opened.
pub async fn initialize(url: &BrokerUrl, options: &OpenOptions) -> Result<Vec<String>, BrokerError> {
    if nats::ADAPTER.schemes.contains(&url.scheme()) {
        return nats::initialize(url, options).await;
    }
    let broker = open(url, options).await?;
    Ok(vec![format!("{}  makes what it needs by itself", broker.name)])
}

/// An opened broker: everything an adapter offers. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    /// Its URL without secrets; also what records name as their source.
    pub name: String,
    /// What it can and cannot do.
    pub capabilities: Capabilities,
    /// Takes work.
    pub source: Arc<dyn Source>,
    /// Gives work.
    pub submit: Arc<dyn Submit>,
    /// Publishes and replays events, carries commands.
    pub topic: Arc<dyn Topic>,
    /// Lists and steers queues.
    pub admin: Arc<dyn Admin>,
    /// Parked poison.
    pub dead: Arc<dyn DeadLetters>,
    /// Who works here.
    pub fleet: Arc<dyn Fleet>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("name", &self.name)
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

/// What differs between brokers. Core code asks these, never the broker's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether events can be replayed from a point in the past.
    pub replay: bool,
    /// How long a dedup id is remembered; `None` for as long as the record.
    pub dedup_window: Option<Duration>,
    /// Whether a lease can be prolonged.
    pub extend: bool,
    /// Whether several hosts can use it at once.
    pub remote: bool,
    /// Whether what waits in a queue can be listed.
    pub list: bool,
}

/// Takes work from the broker.
#[async_trait]
pub trait Source: Send + Sync {
    /// Waits for work and hands over at most `credit` deliveries (one or more), best priority first within what is
    /// there. Empty only when `stop` ended. Nothing is lost when `stop` ends in the middle: what was taken is returned.
    /// Not cancel-safe: end it through `stop`, never by dropping the future.
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError>;

    /// How long a lease lasts when it is not extended.
    fn lease(&self) -> Duration;

    /// The queues that are fetched from now; `None` where [`Source::choose`] changes nothing, and they are those that it was
    /// opened with.
    fn queues(&self) -> Option<Vec<QueueName>> {
        None
    }

    /// Fetches from `queue`, too, or no more, for as long as this process lives. What was fetched stays.
    async fn choose(&self, _queue: &QueueName, _intake: Intake) -> Result<Chosen, BrokerError> {
        Ok(Chosen::Fixed)
    }

    /// Messages whose time has not come, at most `credit`, soonest first, each with that time: for whoever moves them to
    /// another broker. They are under leases as any other, and settled alike; whoever gives one back says when it is due.
    /// What lapses instead may come before its time, which its task then waits for itself. `None` where the broker cannot.
    async fn fetch_delayed(&self, _credit: usize) -> Result<Option<Vec<(Timestamp, Delivery)>>, BrokerError> {
        Ok(None)
    }
}

/// What became of [`Source::choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// It is so from now on.
    Changed,
    /// It was so before.
    Already,
    /// The queues of this source are those of its start.
    Fixed,
}

/// Prolongs a lease. Held by the keeper.
#[async_trait]
pub trait Extender: Send + Sync {
    /// Prolongs the lease to `by` from now.
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError>;
    /// How early that is done.
    fn renewal(&self) -> Renewal {
        Renewal::Early
    }
}

/// When a lease is prolonged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// After a quarter of it: it costs the broker little.
    Early,
    /// Shortly before its half: each time is traffic.
    Late,
}

impl Renewal {
    /// What is left of a lease of that duration then.
    pub fn left(self, duration: Duration) -> Duration {
        match self {
            Self::Early => duration * 3 / 4,
            // A record that was confirmed within half a lease counts as fresh: before that ends.
            Self::Late => duration * 9 / 16,
        }
    }
}

/// Whether a lease could be prolonged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// It now lasts until then.
    Until(Instant),
    /// It is another's, or gone.
    Lost,
}

/// Ends a lease. Consumed by it.
#[async_trait]
pub trait Settler: Send + Sync {
    /// Ends the lease as `settlement` says. Never an error: what cannot be known is [`Settled::Unknown`].
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled;

    /// What takes the message off its queue within a step of [`Topic::end`], where the broker has a [`Place`].
    fn acknowledgement(&self) -> Option<Part> {
        None
    }

    /// Whether [`Settler::forward`] is possible here.
    fn forwards(&self) -> bool {
        false
    }

    /// Ends the lease by moving the message, byte for byte, to another queue of the same broker. Nothing happens, and the
    /// lease lapses, where [`Settler::forwards`] says no.
    async fn forward(self: Box<Self>, _queue: &QueueName) -> Settled {
        Settled::Unknown
    }
}

/// How a lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the message is removed.
    Ack,
    /// Again after this delay.
    Retry {
        /// Least delay before it is handed over again.
        after: Duration,
    },
    /// Given back uncharged, at once or (damped) after a delay; never counted against the message.
    Release {
        /// Least delay before it is handed over again.
        after: Duration,
    },
    /// Parked with its original bytes.
    DeadLetter {
        /// One sentence for people.
        reason: String,
    },
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The broker took it.
    Settled,
    /// The lease was another's already: nothing changed.
    Lost,
    /// The broker could not be asked; the lease will lapse.
    Unknown,
}

/// Gives work to the broker.
#[async_trait]
pub trait Submit: Send + Sync {
    /// Puts `submissions` durably into their queues, all or nothing where the broker can; one result each, in order.
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError>;
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It is in the queue.
    Queued,
    /// Its dedup id was seen before: nothing was added.
    Duplicate,
}

/// Publishes and replays events, and carries commands to workers.
#[async_trait]
pub trait Topic: Send + Sync {
    /// Publishes `events` in order; durable when it returns where the broker can be.
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError>;
    /// Where it lies, if it takes parts of a store and of its own settlers into its steps.
    fn place(&self) -> Option<Place> {
        None
    }
    /// Publishes `events` in order, those that end a task in one step with the rest of that end; `endings` names them by
    /// their index in `events`. Returns which of them were refused because their record had changed: nothing of those
    /// happened. Whoever hands over parts has made sure that they are of this [`Topic::place`].
    async fn end(&self, events: &[Event], endings: Vec<(usize, Ending)>) -> Result<Vec<usize>, BrokerError> {
        let refused: Vec<usize> = endings.iter().map(|(at, _)| *at).collect();
        let others = events.iter().enumerate().filter(|(at, _)| !refused.contains(at));
        let others: Vec<Event> = others.map(|(_, event)| event.clone()).collect();
        self.publish(&others).await?;
        Ok(refused)
    }
    /// Events that match, from `start` to the newest that was published before this was called; then the stream ends. It
    /// never waits for news. Where [`Capabilities::replay`] says no: [`BrokerError::Unsupported`].
    async fn replay(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError>;
    /// Events that match, from `start`, and then live ones until the stream is dropped.
    async fn follow(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError>;
    /// Sends a command. A cancel is durable: it is found by [`Topic::cancel_requested`] whenever the task is met.
    async fn command(&self, command: Command) -> Result<(), BrokerError>;
    /// Commands as they arrive, from now on.
    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError>;
    /// Whether the task was asked to be canceled, and why.
    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError>;
    /// The tasks that are asked to be canceled, for whoever tells others of them; empty where nobody asks for that.
    async fn cancels(&self) -> Result<Vec<TaskId>, BrokerError> {
        Ok(Vec::new())
    }
    /// Forgets a cancel request, once it was settled or the task is submitted anew.
    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError>;
}

/// What can be asked of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// End a task wherever it is.
    Cancel {
        /// Which.
        task: TaskId,
        /// Who or why, for people.
        reason: String,
    },
    /// Bring spooled outputs away now.
    Upload {
        /// Which task.
        task: TaskId,
        /// Stands for the token of the task, when that has expired.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Secret>,
    },
    /// Finish, fetch nothing.
    Drain {
        /// Which worker, by name.
        worker: String,
    },
    /// Fetch again.
    Resume {
        /// Which worker, by name.
        worker: String,
    },
}

/// Lists and steers queues.
#[async_trait]
pub trait Admin: Send + Sync {
    /// Every queue that holds or held something, by name.
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError>;
    /// Stops or restarts handing out of a queue; durable, heard by all workers.
    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError>;
    /// Removes what waits in a queue (not what is leased). Says how many.
    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError>;
    /// What waits or is leased, best first: at most `limit`, of one task or queue when named.
    async fn waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError>;
    /// The queues in which messages of running tasks are kept apart from those that wait, where the broker does that and cannot list
    /// them by itself; `held` names such messages and the queues that they came from.
    async fn custody(&self, _held: &[(QueueName, MessageId)]) -> Result<Vec<QueueInfo>, BrokerError> {
        Ok(Vec::new())
    }
}

/// Whether a queue hands out work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intake {
    /// It does.
    Open,
    /// It keeps what it has.
    Paused,
}

/// A queue as `queue list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub name: QueueName,
    /// Messages that could be handed out now.
    pub ready: u64,
    /// Messages under a lease.
    pub leased: u64,
    /// Messages whose time has not come.
    pub delayed: u64,
    /// Dead letters that came from it.
    pub dead: u64,
    /// Whether it hands out work.
    pub intake: Intake,
    /// When its oldest ready message was submitted.
    pub oldest: Option<Timestamp>,
}

/// Which waiting messages to list.
#[derive(Clone, Debug, Default)]
pub struct WaitingQuery {
    /// Of this task only.
    pub task: Option<TaskId>,
    /// Of this queue only.
    pub queue: Option<QueueName>,
    /// At most so many; 0 means 1,000.
    pub limit: usize,
    /// Whether what the messages hold is wanted, too.
    pub contents: Contents,
}

/// Whether a list of messages comes with what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// It does not, which is cheaper.
    #[default]
    Left,
    /// It does, up to [`CONTENTS_MAX`] bytes in all.
    Given,
}

/// Most bytes of bodies that one list of waiting messages holds; those behind come without theirs.
pub const CONTENTS_MAX: usize = 64 << 20;

/// A message that waits or is leased.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The task.
    pub task: TaskId,
    /// Where.
    pub queue: QueueName,
    /// Its priority.
    pub priority: Priority,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// Its time, when that has not come.
    pub not_before: Option<Timestamp>,
    /// Until when it is leased, and to whom, when it is.
    pub lease: Option<(Timestamp, String)>,
    /// How many messages stand before it; `None` where the broker cannot tell.
    pub ahead: Option<u64>,
    /// The message itself, when [`Contents::Given`] was asked for. May hold tokens: never written out as it is.
    #[serde(skip)]
    pub raw: Option<RawMessage>,
}

/// Who works here.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// Says that a worker lives; forgotten after the presence's deadline unless repeated.
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError>;
    /// Says that a worker left.
    async fn leave(&self, worker: &str) -> Result<(), BrokerError>;
    /// The workers whose deadline has not passed.
    async fn workers(&self) -> Result<Vec<Presence>, BrokerError>;
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// Its name.
    pub worker: String,
    /// Changes with each start of the process.
    pub incarnation: String,
    /// Its host.
    pub host: String,
    /// Version of longshore.
    pub version: String,
    /// Task kinds that it knows.
    pub kinds: Vec<String>,
    /// Envelope versions up to this one are known.
    pub envelope: u32,
    /// Queues it fetches from.
    pub queues: Vec<QueueName>,
    /// Slots and how many are taken.
    pub lanes: u32,
    /// Taken slots.
    pub busy: u32,
    /// What a task could at most take here.
    pub pool: Pool,
    /// The file systems that tasks fill; empty when it does not tell.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// `running`, `short of disk` (it takes nothing until there is room), `paused`, `draining` or `stopping`.
    pub phase: String,
    /// When this was said.
    pub seen: Timestamp,
    /// When it stops being true.
    pub deadline: Timestamp,
}

/// A file system of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// A folder on it.
    pub path: String,
    /// Bytes that it can hold.
    pub total: u64,
    /// Bytes that the worker may still use.
    pub free: u64,
}

/// The whole of a worker's resources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Processors.
    pub cpus: f64,
    /// Bytes of memory.
    pub memory: u64,
    /// Device ids.
    pub gpus: Vec<String>,
    /// `os/arch`.
    pub platform: String,
    /// What the settings name.
    pub custom: std::collections::BTreeMap<String, u64>,
}

/// Why a broker could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// The URL names nothing that can be opened.
    #[error("{0}")]
    Url(String),
    /// It cannot be reached, or broke off; trying again may help.
    #[error("the broker {broker} does not answer: {reason}")]
    Unavailable {
        /// Which, without secrets.
        broker: String,
        /// What was seen.
        reason: String,
    },
    /// It refused.
    #[error("the broker {broker} refused to {action}: {reason}")]
    Refused {
        /// Which, without secrets.
        broker: String,
        /// What was asked.
        action: &'static str,
        /// What it said and what to do.
        reason: String,
    },
    /// It cannot do this at all.
    #[error("the broker {broker} cannot {action}")]
    Unsupported {
        /// Which, without secrets.
        broker: String,
        /// What was asked.
        action: &'static str,
    },
    /// What it holds is not what we wrote.
    #[error("the broker {broker} holds something unreadable: {reason}")]
    Corrupt {
        /// Which, without secrets.
        broker: String,
        /// What and where.
        reason: String,
    },
}
