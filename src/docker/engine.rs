//! What the room needs of a container engine: the [`Engine`] trait, told in the engine's own terms.
//!
//! Implemented by [`super::api`] for the Docker API (Docker and Podman) and by scripted fakes for faults; a direct OCI
//! runtime would be a third. Nothing here decides what a failure means for a task: that is [`super::error`].

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use bollard::models::ContainerCreateBody;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

/// A container engine.
pub trait Engine: Containers + Logs + Images + Survey {}
impl<T: Containers + Logs + Images + Survey> Engine for T {}

/// The life of one container. Every call is bounded by the engine's own time limit except `attach`'s stream and `wait`.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Makes a container and returns its id and what the engine warned of.
    async fn create(&self, creation: Creation) -> Result<(String, Vec<String>), EngineError>;
    /// Opens the container's output. The stream ends with the container if it was opened before the start.
    async fn attach(&self, id: &str) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError>;
    /// Starts it.
    async fn start(&self, id: &str) -> Result<(), EngineError>;
    /// Waits for the end of a started container and returns its exit code.
    async fn wait(&self, id: &str) -> Result<i64, EngineError>;
    /// Sends its stop signal, and after `grace` seconds kills it. A container that does not run is no error.
    async fn stop(&self, id: &str, grace: u32) -> Result<(), EngineError>;
    /// Kills and removes it with its unnamed volumes. One that is gone is no error.
    async fn remove(&self, id: &str) -> Result<(), EngineError>;
}

/// What the engine kept of a container's output.
#[async_trait]
pub trait Logs: Send + Sync {
    /// What was written after `since`, or all that it kept, and then what comes until the container ends.
    async fn logs(
        &self,
        id: &str,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError>;
    /// When the oldest that it kept was written; none when it kept nothing.
    async fn oldest_log(&self, id: &str) -> Result<Option<Timestamp>, EngineError>;
}

/// What the engine keeps of images.
#[async_trait]
pub trait Images: Send + Sync {
    /// What is known of a local image; none when it is not here.
    async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError>;
    /// Fetches an image; the stream ends when it is here. Dropping the stream ends the transfer.
    async fn pull(&self, pull: PullRequest) -> BoxStream<'static, Result<PullStep, EngineError>>;
}

/// Looking at what the engine has.
#[async_trait]
pub trait Survey: Send + Sync {
    /// Where the engine listens, for people.
    fn address(&self) -> String;
    /// Whether anybody listens there. Costs no request.
    async fn listens(&self) -> bool;
    /// Its version, which also shows that it answers.
    async fn version(&self) -> Result<String, EngineError>;
    /// One container; none when there is none of that id or name.
    async fn inspect(&self, id: &str) -> Result<Option<Inspected>, EngineError>;
    /// All containers, running or not, that carry these labels (`key` or `key=value`).
    async fn list(&self, labels: &[String]) -> Result<Vec<Listed>, EngineError>;
    /// The name of the driver of a network; none when there is no such network.
    async fn network_driver(&self, name: &str) -> Result<Option<String>, EngineError>;
}

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct Creation {
    /// Its name.
    pub name: String,
    /// `os[/arch[/variant]]`; the engine's own when none is given.
    pub platform: Option<String>,
    /// Everything else.
    pub body: ContainerCreateBody,
}

/// An image to be fetched. Not printable: it holds a password.
#[derive(Clone)]
pub struct PullRequest {
    /// With a tag or digest.
    pub reference: String,
    /// `os[/arch[/variant]]`; the engine's own when none is given.
    pub platform: Option<String>,
    /// What opens the registry.
    pub credentials: Option<DockerCredentials>,
}

/// Where a pull stands, for one layer or for the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullStep {
    /// The layer, when it concerns one.
    pub layer: Option<String>,
    /// What is done, such as `Downloading`.
    pub status: String,
    /// Bytes of this layer that are here.
    pub current: Option<u64>,
    /// Bytes of this layer.
    pub total: Option<u64>,
}

/// A piece of a container's output, as it was written and in the order of writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To its standard output.
    Stdout(Bytes),
    /// To its standard error.
    Stderr(Bytes),
}

impl Output {
    /// What was written.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Stdout(bytes) | Self::Stderr(bytes) => bytes,
        }
    }
}

/// A local image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The id of its configuration, `sha256:…`.
    pub id: String,
    /// `name@sha256:…` for each registry it came from.
    pub repo_digests: Vec<String>,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub command: Vec<String>,
}

/// A container as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Whether it was ever started.
    pub began: bool,
    /// Whether it runs.
    pub running: bool,
    /// Whether somebody is removing it.
    pub removing: bool,
    /// Its first process, as the engine's host counts, while it runs.
    pub pid: Option<u32>,
    /// Its exit code once it ran.
    pub exit_code: Option<i64>,
    /// Whether the kernel killed one of its processes for the memory limit.
    pub oom_killed: bool,
    /// Its memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// Its mounts: path in the container → path on the host.
    pub mounts: BTreeMap<String, String>,
    /// The networks it is on.
    pub networks: Vec<String>,
}

/// One of many containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its name without the leading slash.
    pub name: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Whether it runs.
    pub running: bool,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers there, or the connection broke.
    #[error("no container engine answers at {address} ({reason})")]
    Away {
        /// Where it should listen.
        address: String,
        /// What the connection said.
        reason: String,
    },
    /// It did not answer in time.
    #[error("the container engine at {address} did not answer within {seconds} s when asked to {call}")]
    Silent {
        /// Where it listens.
        address: String,
        /// What it was asked.
        call: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// It answered with an error.
    #[error("the container engine refused to {call}: {message}")]
    Refused {
        /// What it was asked.
        call: &'static str,
        /// The HTTP status; none for an error in the middle of a stream.
        status: Option<u16>,
        /// Its words.
        message: String,
    },
    /// Its address cannot be used.
    #[error("{address:?} is no address of a container engine: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is accepted.
        reason: String,
    },
    /// Its answer could not be understood.
    #[error("the container engine's answer to {call} was not understood: {message}")]
    Malformed {
        /// What it was asked.
        call: &'static str,
        /// Why.
        message: String,
    },
}

impl EngineError {
    /// The HTTP status with which it answered, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => *status,
            Self::Away { .. } | Self::Silent { .. } | Self::Address { .. } | Self::Malformed { .. } => None,
        }
    }
    /// Whether the engine itself is out of reach.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Silent { .. } => true,
            Self::Refused { .. } | Self::Address { .. } | Self::Malformed { .. } => false,
        }
    }
}
