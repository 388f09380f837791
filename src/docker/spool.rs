//! Outputs of containers that ended well which Girder did not take: kept by `pipeline::spool`, together with the book of
//! their attempt, from which this process or the next one goes on. No engine is needed for that. Called by `run`, `adopt`
//! and `ending`.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::adopt::{resume, secrets_of};
use super::book::{self, Begun, LogBook};
use super::judge::TaskJudge;
use super::run::Room;
use crate::error::TaskError;
use crate::events::LogStream;
use crate::events::reporter::Phase;
use crate::handler::Attempt;
use crate::pipeline::spool;
use crate::task::{Fence, Secret, Task};

/// Begins the book beside the outputs that were kept just now, and tells in it from now on.
pub(super) fn keep_book(room: &Arc<Room>, attempt: &Attempt, image: &str) {
    let Some(folder) = folder(room, attempt.task(), attempt.fence(), attempt.instance()) else { return };
    let begun = Begun::ended(attempt, image);
    let kept = attempt.report().keep_anew(|standing| LogBook::begin(&folder, &begun, standing));
    if let Err(error) = kept {
        tracing::warn!(task = %attempt.task().id, %error, "no later process can bring its outputs away");
    }
}

/// Whether outputs of that attempt are kept which this build can bring away.
pub(super) fn is_kept(room: &Arc<Room>, task: &Task, fence: Fence, instance: &str) -> bool {
    folder(room, task, fence, instance).is_some_and(|folder| {
        spool::is_kept(&folder, &task.id, fence) && book::find(&folder, task, fence).is_some()
    })
}

/// Goes on telling of an attempt whose outputs an earlier process kept.
pub(super) fn reopen(room: &Arc<Room>, attempt: &Attempt) -> Result<(), TaskError> {
    let gone = || TaskError::retryable("not_adopted", "the outputs that were kept of the attempt are gone");
    let task = attempt.task();
    let folder = folder(room, task, attempt.fence(), attempt.instance()).ok_or_else(gone)?;
    let (mut begun, told) = book::find(&folder, task, attempt.fence()).ok_or_else(gone)?;
    let book = LogBook::go_on(&folder, &told).map_err(|error| {
        let text = format!("cannot write in {}: {error}", folder.display());
        TaskError::retryable("workspace", text)
    })?;
    begun.details.uploads = spool::brought(&folder);
    let said = std::mem::take(&mut begun.details.log_tail);
    resume(attempt, &begun, told, &Arc::new(book));
    let report = attempt.report();
    for secret in &secrets_of(task) {
        report.redact(secret);
    }
    for line in said.lines() {
        report.recall(LogStream::Worker, line);
    }
    report.note("a new process of the worker goes on with the outputs");
    Ok(())
}

/// Brings the outputs of `attempt` away.
pub(super) async fn upload(
    room: &Arc<Room>,
    attempt: &Attempt,
    token: Option<Secret>,
) -> Result<Value, TaskError> {
    let task = attempt.task();
    let folder = folder(room, task, attempt.fence(), attempt.instance())
        .ok_or_else(|| TaskError::retryable("spool", "no outputs are kept (worker.spool_wait is 0)"))?;
    let mut settings = room.pipeline.clone();
    settings.judge = Arc::new(TaskJudge::new(room.policy.clone(), task.clone()));
    let exit_code = attempt.report().snapshot().1.exit_code.unwrap_or_default();
    let brought = spool::bring(&folder, attempt, &settings, token).await;
    let value = brought.map_err(|error| error.with_exit_code(exit_code))?;
    attempt.report().reached(Phase::Uploaded);
    Ok(value)
}

/// Removes what is kept of `attempt`.
pub(super) fn forget(room: &Arc<Room>, attempt: &Attempt) {
    if let Some(base) = &room.pipeline.spool {
        spool::forget(base, attempt.instance(), (&attempt.task().id, attempt.fence()));
    }
}

fn folder(room: &Arc<Room>, task: &Task, fence: Fence, instance: &str) -> Option<PathBuf> {
    let base = room.pipeline.spool.as_deref()?;
    Some(spool::place(base, instance, (&task.id, fence)))
}
