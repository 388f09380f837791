//! Which images a task may run, and when they may be pulled.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Before every run.
    Always,
    /// When it is not on this host; the registry is not asked otherwise.
    #[serde(alias = "if-not-present")]
    Missing,
    /// Not at all; a missing image fails the task.
    Never,
}

impl Pull {
    /// As it is written in envelopes and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
