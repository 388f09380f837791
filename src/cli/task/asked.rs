//! What a queued task asks for, read from its message: no record tells it before a worker has met the task.

use crate::broker::Waiting;
use crate::cli::context::Context;
use crate::executor::intake::apply_rules;
use crate::task::{DecodeError, Decoded, RawMessage, Task, message};

/// What a queued task asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// This, with what the rules of the settings at hand fill in.
    Task(Box<Task>),
    /// A Celery task of a name that is not ours.
    Other(String),
    /// An envelope of a later version.
    Later(u64),
    /// It cannot be read, because of this.
    Unreadable(String),
    /// The broker does not show its messages.
    Untold,
}

impl Asked {
    /// What the message asks for.
    pub(super) fn of(waiting: &Waiting, context: &Context) -> Self {
        waiting.raw.as_ref().map_or(Self::Untold, |raw| Self::read(raw, context))
    }

    fn read(raw: &RawMessage, context: &Context) -> Self {
        match message::decode(raw, &context.limits()) {
            Ok(Decoded::Task(mut task)) => {
                apply_rules(&context.settings().rules, &mut task);
                Self::Task(Box::new(task))
            }
            Ok(Decoded::Unknown(unknown)) => Self::Other(unknown.name),
            Err(DecodeError::Version(version)) => Self::Later(version),
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }

    /// The task, when it is one of ours.
    pub(super) fn task(&self) -> Option<&Task> {
        match self {
            Self::Task(task) => Some(task),
            Self::Other(_) | Self::Later(_) | Self::Unreadable(_) | Self::Untold => None,
        }
    }

    /// Whether it carries all of these labels.
    pub(super) fn has_labels(&self, labels: &[(String, String)]) -> bool {
        labels.is_empty()
            || self
                .task()
                .is_some_and(|task| labels.iter().all(|(name, value)| task.labels.get(name) == Some(value)))
    }
}
