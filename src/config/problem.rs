//! What can be wrong with settings, each told with its place and the remedy.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one, in the order of layers and lines.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}
impl std::error::Error for ConfigError {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A named file cannot be read.
    #[error("{}: cannot be read: {reason}; name a readable file with --config", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is no TOML.
    #[error("{}:{line}: is no valid TOML: {reason}", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Counts from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// A file sets what does not exist.
    #[error("{}:{line}: there is no setting {key}{}", file.display(), nearest(.near))]
    UnknownKey {
        /// Which.
        file: PathBuf,
        /// Counts from 1.
        line: usize,
        /// The whole key, with dots.
        key: String,
        /// What may be meant.
        near: Near,
    },
    /// A file sets a value that is refused.
    #[error("{}:{line}: {key}: {reason}", file.display())]
    Value {
        /// Which.
        file: PathBuf,
        /// Counts from 1.
        line: usize,
        /// The whole key, with dots.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A variable sets what does not exist.
    #[error("the environment variable {name} sets nothing{}", nearest(.near))]
    UnknownVariable {
        /// Its name.
        name: String,
        /// What may be meant.
        near: Near,
    },
    /// A variable sets a value that is refused.
    #[error("the environment variable {name}: {reason}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A flag sets a value that is refused.
    #[error("{flag}: {reason}")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A value that its type allows and nothing could work with.
    #[error("{place}: {key} must be {wants}")]
    Bound {
        /// A file and line, a variable or a flag.
        place: String,
        /// The whole key.
        key: &'static str,
        /// What it must be.
        wants: &'static str,
    },
    /// A default cannot be found on this machine.
    #[error("{key} cannot be told on this machine: {reason}; set it in the settings")]
    Default {
        /// The whole key.
        key: &'static str,
        /// Why not.
        reason: String,
    },
}

/// What may be meant by a wrong name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// This name is much alike.
    One(String),
    /// None is alike; these exist.
    All(Vec<String>),
}

impl Near {
    /// The most similar of `known`, if it is alike at all.
    pub fn find(name: &str, known: &[String]) -> Self {
        let likeness = |candidate: &String| {
            strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase())
        };
        known
            .iter()
            .map(|candidate| (likeness(candidate), candidate))
            .filter(|(alike, _)| *alike >= 0.5)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or_else(|| Self::All(known.to_vec()), |(_, candidate)| Self::One(candidate.clone()))
    }
}

fn nearest(near: &Near) -> String {
    match near {
        Near::One(name) => format!("; did you mean {name}?"),
        Near::All(names) if names.is_empty() => String::new(),
        Near::All(names) => format!("; known here: {}", names.join(", ")),
    }
}
