//! The settings as types: a mirror of `config/longshore.toml`, which holds every default. No type here has one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::retry::RetryPolicy;
use crate::units::{Size, Span};

/// Everything that can be set. After [`super::load`] nothing in it is left to be guessed but the machine's resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where queue, records and journal are kept.
    pub state_dir: PathBuf,
    /// Where volumes and pipes of running tasks are made.
    pub work_dir: PathBuf,
    /// Addresses of brokers, at least one; clients use the first.
    pub brokers: Vec<Address>,
    /// Where records are kept.
    pub store: Address,
    /// How long to wait for the first answer of a broker or store.
    pub connect_timeout: Span,
    /// What images take unless a task says it itself.
    pub rules: Vec<Rule>,
    /// What is logged.
    pub log: Log,
    /// The worker.
    pub worker: Worker,
    /// What its tasks share.
    pub resources: Resources,
    /// What happens after a failure when the task says nothing.
    pub retry: RetryPolicy,
    /// Events and logs of tasks.
    pub events: Events,
    /// How long records are kept.
    pub retention: Retention,
    /// What one message may hold.
    pub message: Message,
    /// How containers are run.
    pub docker: crate::docker::Settings,
    /// What tasks may ask for.
    pub policy: crate::policy::PolicySettings,
    /// Pipes and HTTP streams.
    pub streams: Streams,
    /// How Girder is talked to.
    pub girder: crate::girder::Settings,
    /// Whose certificates are trusted.
    pub tls: crate::girder::settings::Tls,
    /// What a Celery worker in this one's place would do.
    pub celery: Celery,
}

/// What a Celery worker in this one's place would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Celery {
    /// The queue to which tasks of names that are not ours are passed on; empty: they are parked.
    pub forward_unknown_to: String,
    /// The queue of what follows a Celery task and names none.
    pub default_queue: String,
    /// Where results of Celery tasks go.
    pub result_backend: Address,
}

/// The address of a broker or store; shown without its password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The whole address, for whoever opens it.
    pub fn expose(&self) -> &str {
        &self.0
    }
    /// Whether nothing was set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    fn shown(&self) -> String {
        match self.0.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
                let path = rest[host..].split('?').next().unwrap_or_default();
                format!("{scheme}://{path}")
            }
            None => self.0.clone(),
        }
    }
}
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}
impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}
impl Serialize for Address {
    /// Without the password: settings are only ever written to be read by people.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A filter such as `info,longshore::docker=debug`.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// A log filter that is known to be readable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogLevel(String);

impl LogLevel {
    /// The filter itself.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::builder().parse_lossy(&self.0)
    }
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl TryFrom<String> for LogLevel {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        // A bare word that is no level would be taken as the name of a module and log nothing.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let bare = text.split(',').map(str::trim).find(|part| {
            !part.contains(['=', '[', ':']) && !levels.contains(&part.to_ascii_lowercase().as_str())
        });
        match (bare, EnvFilter::builder().parse(&text)) {
            (Some(part), _) => Err(format!(
                "{part:?} is no log level: write error, warn, info, debug or trace, or parts such as info,longshore::docker=debug"
            )),
            (None, Err(error)) => Err(format!("{text:?} is no log filter: {error}")),
            (None, Ok(_)) => Ok(Self(text)),
        }
    }
}
impl From<LogLevel> for String {
    fn from(level: LogLevel) -> Self {
        level.0
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Unique among workers that live.
    pub name: String,
    /// The queues to fetch from.
    pub queues: Vec<String>,
    /// Tasks that run at once, at least one.
    pub concurrency: usize,
    /// Tasks that are prepared while others run.
    pub staging_ahead: usize,
    /// How long running tasks may go on after the first signal; then they are stopped and go back to their queue.
    pub drain_timeout: Span,
    /// What becomes of those that still run then.
    pub on_drain_timeout: OnDrainTimeout,
    /// How long a container that was left running is kept for the next process of this worker.
    pub adopt_window: Span,
    /// How long outputs that nobody takes are kept and tried again; zero: not at all.
    pub spool_wait: Span,
    /// How long a task stays reserved for a worker that went silent.
    pub lease: Span,
    /// How long a task that fits no living worker waits before it is refused.
    pub unfit_timeout: Span,
    /// Starts in a row without any outcome before a task is parked.
    pub poison_limit: u32,
    /// How long the oldest task may be overtaken before room is kept for it.
    pub starvation_after: Span,
    /// How often the worker says that it lives.
    pub presence_interval: Span,
    /// Time limit of tasks that name none; 0 means no limit.
    pub task_timeout: Span,
    /// How long interrupted tasks may take to end before the worker leaves without them.
    pub stop_timeout: Span,
    /// How long a task that another worker may take stays away after it was given back.
    pub release_damping: Span,
    /// How often unfinished business of dead workers and old records are looked for.
    pub upkeep_interval: Span,
    /// Share of the work folder's file system above which no new task is taken, 0-1.
    pub disk_high_water: f64,
}

/// What becomes of tasks that still run when the time of a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDrainTimeout {
    /// They are stopped and go back to their queue.
    Stop,
    /// Containers that need no stream of the worker run on for its next process; the others are stopped.
    Leave,
}

/// What the tasks of a worker share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processors; 0 means the machine's.
    pub cpus: f64,
    /// Memory; 0 means the machine's.
    pub memory: Size,
    /// Device ids; `["auto"]` means what the driver lists.
    pub gpus: Vec<String>,
    /// Whole numbers of anything else.
    pub custom: BTreeMap<String, u64>,
}

/// What an image takes unless the task says it itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A pattern of image names, such as `*/segment*`.
    pub image: ImagePattern,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Whole devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// The longest one attempt may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// `os/arch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Amounts of the resources that `resources.custom` names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, u64>,
}

/// A pattern of image names that is known to be readable.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePattern(globset::GlobMatcher);

impl ImagePattern {
    /// Whether `image` is meant.
    pub fn matches(&self, image: &str) -> bool {
        self.0.is_match(image)
    }
}
impl PartialEq for ImagePattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.glob() == other.0.glob()
    }
}
impl TryFrom<String> for ImagePattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        globset::Glob::new(&text)
            .map(|glob| Self(glob.compile_matcher()))
            .map_err(|error| format!("{text:?} is no pattern: {}", error.kind()))
    }
}
impl From<ImagePattern> for String {
    fn from(pattern: ImagePattern) -> Self {
        pattern.0.glob().glob().to_owned()
    }
}

/// Events and logs of tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Progress reports and log lines per second and task beyond which they are put together.
    pub chatter_per_second: f64,
    /// Most bytes of a task's log.
    pub log_max: Size,
    /// The end of a task's log that its record keeps.
    pub log_tail: Size,
    /// How long events can be replayed.
    pub age: Span,
    /// Most events that can be replayed.
    pub count: u64,
}

/// How long records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Those of succeeded and canceled tasks.
    pub succeeded: Span,
    /// Those of failed and dead tasks.
    pub failed: Span,
    /// Most bytes of all; 0 means no bound.
    pub bytes: Size,
}

/// What one message may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Bytes.
    pub max_bytes: Size,
    /// Lists and maps inside one another.
    pub max_depth: usize,
    /// Values in all.
    pub max_nodes: usize,
}

/// Pipes and HTTP streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// How long an output pipe may stay without a writer before its sink is ended.
    pub linger: Span,
    /// How long an HTTP stream may take to connect.
    pub connect_timeout: Span,
    /// How long the other side of an HTTP stream may stand still.
    pub idle_timeout: Span,
    /// How long an HTTP stream may take altogether; 0 means no limit.
    pub total_timeout: Span,
}
