//! Why a task did not succeed: one type for every room, so that settlement is decided once. Knows none of the rooms.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a failure is settled (`docs/design.md` §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    /// Something outside the task failed; another attempt may succeed. Charged.
    Retryable,
    /// Another attempt would fail alike. Charged.
    Permanent,
    /// No worker of the fleet can ever do it; the bytes are kept as a dead letter.
    Poison,
}

/// A failure as it is recorded, published and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskError {
    /// How it is settled.
    pub class: ErrorClass,
    /// A stable word for machines, such as `image_not_found`; `retry.on` may name it.
    pub code: String,
    /// One sentence for people: what failed, which value, what to do. Never a token.
    pub message: String,
    /// The container's exit code, when it ran to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
}

impl TaskError {
    /// A failure that another attempt may not meet.
    pub fn retryable(code: &str, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Retryable, code: code.to_owned(), message: message.into(), exit_code: None }
    }
    /// A failure that every attempt would meet.
    pub fn permanent(code: &str, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Permanent, ..Self::retryable(code, message) }
    }
    /// A message that no worker can ever run.
    pub fn poison(code: &str, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Poison, ..Self::retryable(code, message) }
    }
    /// The same failure with the container's exit code.
    #[must_use]
    pub fn with_exit_code(self, code: i64) -> Self {
        Self { exit_code: Some(code), ..self }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for TaskError {}
