//! What a later process must know to go on telling of an attempt where an earlier one stopped.
//!
//! A [`Reporter`](super::Reporter) that has a [`Book`] writes each event into it before it is sent, together with how far
//! into the container's output that event reaches; the bus notes there which events every sink has taken. So whoever
//! finds the book sends what may not have arrived, under the same numbers, and goes on behind it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Event;

/// Keeps what is told of one attempt where a later process finds it. Never fails: a book that cannot be written says so
/// to whoever would rely on it.
pub trait Book: Send + Sync {
    /// `event` is about to be sent; `after` is how things stand then.
    fn telling(&self, event: &Event, after: &Standing);
    /// Every sink has taken the event of this number, and those before it.
    fn taken(&self, number: u64);
}

/// How far an attempt was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The number of the next event.
    pub next: u64,
    /// Of the container's standard output.
    pub stdout: Mark,
    /// Of its standard error.
    pub stderr: Mark,
    /// When the first line of output was told.
    pub first_output: Option<Timestamp>,
    /// When the last one was.
    pub last_output: Option<Timestamp>,
    /// Since when it runs.
    pub started: Option<Timestamp>,
}

/// A place in a stream of lines. Lines and not bytes, because engines keep what is no UTF-8 in a form of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Whole lines before it.
    pub lines: u64,
    /// Bytes of the next line before it: of one so long that it is told in pieces.
    pub within: u64,
}

/// What a process finds of an attempt that an earlier one told of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// How far it came.
    pub standing: Standing,
    /// Events that some sink may not have taken, in order.
    pub pending: Vec<Event>,
}
