//! Why a command did not do what was asked, and the exit code that says so.

use serde_json::{Value, json};

use crate::broker::BrokerError;
use crate::config::ConfigError;
use crate::store::StoreError;
use crate::worker::WorkerError;

/// Why a command ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// What was asked cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A task ended, but not well. The text has been printed already where it is empty.
    #[error("{0}")]
    TaskFailed(String),
    /// The broker did not do its part.
    #[error("{0}; `longshore doctor` looks closer")]
    Broker(#[from] BrokerError),
    /// The store did not do its part.
    #[error("{0}; `longshore doctor` looks closer")]
    Store(#[from] StoreError),
    /// A worker did not start or end well.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The container ended with this code, which becomes ours.
    #[error("the container ended with code {0}")]
    Container(u8),
    /// Something else that commands need is missing.
    #[error("{0}")]
    Infrastructure(String),
    /// Whoever read our output left.
    #[error("the output was closed")]
    OutputClosed,
}

impl CliError {
    /// 1 the task failed, 2 usage, 3 infrastructure; `run` passes the container's own.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::TaskFailed(_) => 1,
            Self::Usage(_)
            | Self::Config(_)
            | Self::Broker(BrokerError::Url(_))
            | Self::Store(StoreError::Url(_)) => 2,
            Self::Worker(error) => match error {
                WorkerError::Broker(BrokerError::Url(_))
                | WorkerError::Store(StoreError::Url(_))
                | WorkerError::Queue(_) => 2,
                _ => 3,
            },
            Self::Broker(_) | Self::Store(_) | Self::Infrastructure(_) => 3,
            Self::Container(code) => *code,
            // As a process that the kernel ended with SIGPIPE.
            Self::OutputClosed => 141,
        }
    }

    /// A stable word for machines.
    fn kind(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Config(_) => "config",
            Self::TaskFailed(_) => "task_failed",
            Self::Broker(_) => "broker",
            Self::Store(_) => "store",
            Self::Worker(_) => "worker",
            Self::Container(_) => "container",
            Self::Infrastructure(_) => "infrastructure",
            Self::OutputClosed => "output_closed",
        }
    }

    /// Whether there is anything left to say.
    pub(crate) fn is_silent(&self) -> bool {
        match self {
            Self::OutputClosed | Self::Container(_) => true,
            Self::TaskFailed(text) => text.is_empty(),
            Self::Usage(_)
            | Self::Config(_)
            | Self::Broker(_)
            | Self::Store(_)
            | Self::Worker(_)
            | Self::Infrastructure(_) => false,
        }
    }

    /// The form for machines.
    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {"kind": self.kind(), "message": self.to_string(), "exit_code": self.exit_code()}})
    }
}
