//! What a message asks for, as plain data.
//!
//! Owns the decoded request ([`Task`]), its argument tree ([`Arg`]) and the transforms in it ([`TransformSpec`]).
//! Does no I/O and knows none of the other rooms. Brokers hand bytes to [`envelope::decode`]; handlers read the result.

pub mod arg;
pub mod celery;
pub mod envelope;
pub mod ids;
pub mod json;
pub mod jsonpickle;
pub mod message;
pub mod python;
pub mod schema;
pub mod secret;
pub mod transform;
pub mod value;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use arg::{Arg, ArgMap};
pub use envelope::{ContentType, DecodeError, Limits, Refusal};
pub use ids::{Fence, Generation, IdError, Priority, PriorityClass, QueueName, TaskId};
pub use message::{Decoded, RawMessage, UnknownTask};
pub use secret::Secret;
pub use transform::TransformSpec;

use crate::retry::RetryPolicy;
use crate::units::{Size, Span};

/// The decoded request: one unit of work as its producer described it.
///
/// The native envelope (`docs/design.md` §7) is this struct in JSON or MessagePack with `"v": 1` in front.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Task {
    /// Version of the envelope; 1.
    #[serde(rename = "v")]
    pub version: u32,
    /// Who this task is, for its whole life.
    pub id: TaskId,
    /// The task kind, a key of the handler table, such as `docker_run`.
    #[serde(rename = "task")]
    pub kind: String,
    /// The queue it travels on.
    #[serde(default)]
    pub queue: QueueName,
    /// 0-9, 9 first.
    #[serde(default)]
    pub priority: Priority,
    /// One life of the id: raised by retry, requeue and move, so that these are not taken for duplicates.
    #[serde(default, skip_serializing_if = "Generation::is_first")]
    pub generation: Generation,
    /// The arguments of the kind, by name.
    #[serde(default)]
    pub args: ArgMap,
    /// Transforms applied after the run, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result_hooks: Vec<TransformSpec>,
    /// Where to report and with which token, when a Girder asked for the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderContext>,
    /// Not started before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Never started after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The longest one attempt may run, from the container's start to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What happens after a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// What it takes from the worker's pool while it runs.
    #[serde(default)]
    pub resources: Resources,
    /// Free text for people and queries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Two submissions with one key are one task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup_key: Option<String>,
    /// W3C trace context of the producer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Fields of a later version or of the producer's own: kept and passed on.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: serde_json::Map<String, Value>,
}

/// What a task takes from the worker-wide pool while it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processors; fractions are allowed. Also the container's `nano_cpus` where the options name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory. Also the container's `mem_limit` where the options name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Whole devices that no other task holds at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// `os/arch`, such as `linux/arm64`; only workers of it run the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Amounts of resources that the worker's settings name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, u64>,
}

/// The Girder that asked, and what lets us answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderContext {
    /// Base of its API, without a trailing slash.
    pub api_url: String,
    /// The token of transforms that carry none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Opens only the creation of child jobs: for successors of this task, never for transforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_token: Option<Secret>,
    /// The job document to keep up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobSpec>,
}

/// A Girder job's address and the headers that open it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The job's own URL.
    pub url: String,
    /// `PUT` unless the producer says otherwise.
    #[serde(default = "JobSpec::default_method")]
    pub method: String,
    /// Sent with every update; the token is among them.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Least seconds between two updates.
    #[serde(default = "JobSpec::default_interval")]
    pub interval: f64,
    /// Whether the container's output goes to the job's log.
    #[serde(default = "JobSpec::default_log")]
    pub log: bool,
    /// Whether the server's certificate is checked when the job is updated.
    #[serde(default = "JobSpec::default_verify_tls")]
    pub verify_tls: bool,
}

impl JobSpec {
    fn default_method() -> String {
        "PUT".to_owned()
    }
    fn default_interval() -> f64 {
        0.5
    }
    fn default_log() -> bool {
        true
    }
    fn default_verify_tls() -> bool {
        true
    }
}

impl Task {
    /// The version that this build writes and understands.
    pub const VERSION: u32 = 1;

    /// A task of `kind` with everything else at its default and a fresh time-ordered id.
    pub fn new(kind: impl Into<String>, args: ArgMap) -> Self {
        Self {
            version: Self::VERSION,
            id: TaskId::fresh(),
            kind: kind.into(),
            queue: QueueName::default(),
            priority: Priority::default(),
            generation: Generation::default(),
            args,
            result_hooks: Vec::new(),
            girder: None,
            not_before: None,
            expires: None,
            timeout: None,
            retry: None,
            resources: Resources::default(),
            labels: BTreeMap::new(),
            dedup_key: None,
            traceparent: None,
            extra: serde_json::Map::new(),
        }
    }

    /// What brokers compare to find duplicates: `<dedup_key or id>.<generation>.<hop>`.
    pub fn dedup_id(&self, hop: u32) -> String {
        let name = self.dedup_key.as_deref().unwrap_or(self.id.as_str());
        format!("{name}.{}.{hop}", self.generation)
    }
}
