//! What adapters of one place do in one step.
//!
//! Queue, events and records of the default lie in one file: there the end of a task is recorded, told and settled by one
//! transaction instead of three. Core code compares [`Place`]s and hands one adapter what the others would do; only the
//! adapters of that place know what is in a [`Part`].

use std::any::Any;
use std::fmt;

/// Where an adapter keeps what it has, if it takes parts of others into its steps. Equal ones are one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// The place of that name, which no other kind of adapter uses.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

/// What an adapter would do by itself, for another one of its [`Place`] to do within a step of its own.
pub struct Part(Box<dyn Any + Send>);

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Part")
    }
}

impl Part {
    /// Wraps what the adapters of the place know.
    pub(crate) fn new(work: impl Any + Send) -> Self {
        Self(Box::new(work))
    }

    /// What is in it; `None` when it is of another place.
    pub(crate) fn into_work<T: Any>(self) -> Option<T> {
        self.0.downcast().ok().map(|work| *work)
    }
}

/// The end of a task, but for the event that tells it.
#[derive(Debug)]
pub struct Ending {
    /// Puts its record. The other parts happen only if that was stored.
    pub record: Part,
    /// Takes its message off the queue.
    pub settlement: Part,
}
