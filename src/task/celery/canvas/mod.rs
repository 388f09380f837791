//! What follows a Celery task: the messages that a Celery worker in this one's place would publish when the task ended.
//!
//! [`plan`] turns signatures into calls as Celery's canvas does (chains, groups, what is put before their arguments),
//! [`message`] writes a call as the message that any Celery worker can run. Pure: [`crate::celery`] publishes. Every id is
//! told by the task that is followed, so that what is published twice after a crash is one task.
//!
//! # Decisions
//! - Errbacks get the id of the failed task, as Celery passes them on that it does not know: only a process that has the
//!   errback's code can call one that takes the request, the exception and its traceback.
//! - A chord needs its members counted in the result backend: whatever would start or complete one is refused.
//! - A successor says when it expires but not to the broker, which would drop it unsaid.

mod message;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::context::{CeleryContext, Signature};
use crate::task::envelope::{DecodeError, Limits};
use crate::task::jsonpickle::EncodeError;
use crate::task::message::Properties;
use crate::task::{IdError, QueueName, Task, TaskId};

use plan::Planner;

/// A message that follows a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Successor {
    /// Its id.
    pub id: TaskId,
    /// Where its signature sends it; `None`: to the default queue.
    pub queue: Option<QueueName>,
    /// Its headers.
    pub headers: BTreeMap<String, Value>,
    /// Its other properties.
    pub properties: Properties,
    /// Its body, JSON.
    pub body: String,
    /// Whether the task itself calls it; else it was called by a chain or group that the task calls.
    pub called: Called,
}

/// Who calls a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The task.
    Directly,
    /// A chain or group that follows the task.
    InCanvas,
}

/// How a task ended, for what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its callbacks and its chain follow.
    Well,
    /// Its errbacks follow.
    Badly,
}

/// Another task that can never end because this one failed: its callers wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Which.
    pub id: String,
    /// Where its result is awaited.
    pub reply_to: Option<String>,
    /// The group it is a member of.
    pub group: Option<String>,
    /// What it was to be: the failure of a chord's body has a class of its own.
    pub part: Part,
}

/// What a doomed task was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A later task of the chain.
    Chain,
    /// The body of a chord.
    Chord,
}

/// Why what follows a task cannot be called.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CanvasError {
    /// A chord.
    #[error(
        "the message asks for a chord, which this worker does not count; send its tasks as a group, or let a Celery worker run them"
    )]
    Chord,
    /// A kind of signature that is not called here.
    #[error(
        "the message asks for a signature of the kind {0:?}, which this worker does not call; send its tasks one by one"
    )]
    Kind(String),
    /// A group in the middle of a chain.
    #[error(
        "the message asks for a chain that goes on behind a group, which is a chord; let the group be the last of the chain"
    )]
    BehindGroup,
    /// An option that cannot be honoured.
    #[error("the option {name} of the signature of {task} cannot be honoured: {reason}")]
    Option {
        /// Whose.
        task: String,
        /// Which.
        name: &'static str,
        /// Why, and what to send.
        reason: String,
    },
    /// A signature that is none.
    #[error("a signature of the message is unusable: {0}")]
    Signature(String),
    /// A signature that cannot be read.
    #[error(transparent)]
    Read(#[from] DecodeError),
    /// A value that cannot be passed on.
    #[error("a signature of the message cannot be passed on: {0}")]
    Write(#[from] EncodeError),
    /// An id that no task can have.
    #[error("a signature of the message has an unusable id: {0}")]
    Id(#[from] IdError),
}

/// Whether anything is to follow the task of `context`.
pub fn has_successors(context: &CeleryContext) -> bool {
    !(context.chain.is_empty() && context.callbacks.is_empty() && context.errbacks.is_empty())
}

/// Why what is to follow `task` could not be called, so that it is refused rather than run and then dropped.
pub fn unsupported(task: &Task, limits: &Limits) -> Option<String> {
    let context = CeleryContext::of(task)?;
    if context.chord.is_none() && !has_successors(&context) {
        return None;
    }
    let tried = || {
        if context.chord.is_some() {
            return Err(CanvasError::Chord);
        }
        for link in &context.chain {
            let document = link.read(limits)?;
            let options = document.get(&document.root, "options").cloned();
            if options
                .is_some_and(|options| document.get(&options, "chord").is_some_and(|chord| !chord.is_null()))
            {
                return Err(CanvasError::Chord);
            }
        }
        for ended in [Ended::Well, Ended::Badly] {
            successors(task, &context, (ended, Timestamp::now()), limits)?;
        }
        Ok(())
    };
    tried().err().map(|error| format!("canvas not supported: {error}"))
}

/// The messages that follow `task`, which ended so at that time: the same each time it is asked for.
pub fn successors(
    task: &Task,
    context: &CeleryContext,
    (ended, at): (Ended, Timestamp),
    limits: &Limits,
) -> Result<Vec<Successor>, CanvasError> {
    let mut planner = Planner::new(limits);
    let seed = format!("{}.{}.{ended:?}", context.id, task.generation);
    match ended {
        Ended::Well => {
            planner.callbacks(&context.callbacks, &seed)?;
            planner.chain(&context.chain)?;
        }
        Ended::Badly => planner.errbacks(&context.errbacks, &context.id, &seed)?,
    }
    let (document, calls) = planner.planned();
    let mut writer = message::Writer { document, task, context, at };
    calls.iter().enumerate().map(|(n, call)| writer.write(call, &format!("{seed}.{n}"))).collect()
}

/// The tasks that never end because that of `context` failed.
pub fn doomed(context: &CeleryContext, limits: &Limits) -> Vec<Doomed> {
    let parts = context.chain.iter().map(|one| (one, Part::Chain));
    let parts = parts.chain(context.chord.iter().map(|one| (one, Part::Chord)));
    parts.flat_map(|(signature, part)| doomed_by(signature, part, limits)).collect()
}

fn doomed_by(signature: &Signature, part: Part, limits: &Limits) -> Vec<Doomed> {
    let Ok(document) = signature.read(limits) else { return Vec::new() };
    let mut found = Vec::new();
    let mut next = Some((document.root.clone(), part));
    // A member of a chord dooms the chord's body, too.
    while let Some((node, part)) = next.take() {
        let Some(options) = document.get(&node, "options") else { break };
        let text = |name: &str| document.get(options, name).and_then(|node| node.text()).map(str::to_owned);
        if let Some(id) = text("task_id") {
            found.push(Doomed { id, reply_to: text("reply_to"), group: text("group_id"), part });
        }
        next = document
            .get(options, "chord")
            .filter(|chord| !chord.is_null())
            .map(|chord| (chord.clone(), Part::Chord));
        // One that holds itself is read no deeper.
        if found.len() > 8 {
            break;
        }
    }
    found
}
