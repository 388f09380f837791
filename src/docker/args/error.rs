//! Why arguments are no request: the field, its value, and what to give instead.

use crate::task::Arg;

/// An argument of `docker_run` that cannot be taken as it is. Permanent: the same task fails the same way everywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgError {
    /// A required argument is not there.
    #[error("{path} is missing: give {accepted}")]
    Missing {
        /// Where it should stand.
        path: String,
        /// What is accepted.
        accepted: String,
    },
    /// A wrong type or value.
    #[error("{path} is {value}: give {accepted}")]
    Value {
        /// Where, such as `args.options.ulimits[0].soft`.
        path: String,
        /// What was given, shortened.
        value: String,
        /// What is accepted.
        accepted: String,
    },
    /// An argument that `docker_run` does not have.
    #[error("{path}: docker_run has no such argument{hint}")]
    UnknownArgument {
        /// Where.
        path: String,
        /// Where it belongs or what was meant, with its own punctuation; empty when nothing is near.
        hint: String,
    },
    /// An option that is no docker-py keyword, or a field that its value does not have.
    #[error("{path} is not known{}", did_you_mean(.nearest.as_deref()))]
    UnknownKeyword {
        /// Where.
        path: String,
        /// The most similar known name.
        nearest: Option<String>,
    },
    /// A keyword that is known and cannot be granted.
    #[error("{path} cannot be used: {reason}")]
    Refused {
        /// Where.
        path: String,
        /// Why, and what to do instead.
        reason: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name:?}?"))
}

/// A value as it may stand in an error message: plain ones as they are, shortened; others by their kind, for they may
/// hold secrets.
pub(super) fn shown(arg: &Arg) -> String {
    match arg {
        Arg::Text(text) if text.chars().count() > 60 => {
            format!("{:?}", format!("{}...", text.chars().take(57).collect::<String>()))
        }
        Arg::Text(text) => format!("{text:?}"),
        Arg::Number(number) => number.to_string(),
        Arg::Bool(truth) => truth.to_string(),
        Arg::Null | Arg::List(_) | Arg::Map(_) | Arg::Transform(_) => arg.kind().to_owned(),
    }
}
