//! Runs a staged attempt when its turn comes, for as long as it may.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::Context;
use super::intake::Start;
use super::queue::Turn;
use crate::cancel::CancelReason;
use crate::error::TaskError;
use crate::handler::{Attempt, Demand, Staged};
use crate::ledger::LivePhase;
use crate::units::Span;

/// What is to be run.
pub(super) struct Run {
    pub(super) staged: Box<dyn Staged>,
    pub(super) demand: Demand,
    pub(super) start: Start,
}

/// Waits for a turn, checks the fence, runs. The lane and the room are free when this returns; the permit is for settling.
pub(super) async fn run(
    context: &Arc<Context>,
    attempt: &Attempt,
    Run { staged, demand, start }: Run,
    room: Option<OwnedSemaphorePermit>,
) -> (Result<Value, TaskError>, Option<OwnedSemaphorePermit>) {
    let task = attempt.task();
    let turn = match (context.queue.turn(task.priority, demand, attempt.scope()).await, start) {
        (Some(turn), _) => Some(turn),
        (None, Start::Afresh) => {
            staged.discard().await;
            return (Err(TaskError::retryable("not_started", "it ended before its turn came")), None);
        }
        // What an earlier process began runs, turn or not: it must be ended, or left again.
        (None, Start::Adopted | Start::Spooled) => None,
    };
    if let Err(error) = attempt.check_fence().await {
        staged.discard().await;
        return (Err(error), None);
    }
    context.ledger.advance(&task.id, LivePhase::Running);
    let slot = turn.as_ref().map(Turn::slot).unwrap_or_default();
    if !slot.gpus.is_empty() {
        attempt.report().describe(|details| details.gpus.clone_from(&slot.gpus));
    }
    let limit = task.timeout.map(Span::get).or(context.settings.task_timeout);
    let running = AssertUnwindSafe(staged.run(slot)).catch_unwind();
    let result = match limit {
        None => running.await,
        Some(limit) => {
            tokio::pin!(running);
            tokio::select! {
                result = &mut running => result,
                () = overrun(attempt, limit) => running.await,
            }
        }
    };
    context.ledger.advance(&task.id, LivePhase::Settling);
    // Settling has its own bound: without it, tasks that end faster than the store records would pile up.
    let settling = context.settling.clone().acquire_owned().await;
    drop(turn);
    drop(room);
    (result.unwrap_or_else(|panic| Err(panicked(&*panic))), settling.ok())
}

/// Ends the attempt's scope when it has run for `limit`.
async fn overrun(attempt: &Attempt, limit: Duration) {
    let since = attempt.report().runs().await;
    // An adopted one has run for a while.
    let ran = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
    tokio::time::sleep(limit.saturating_sub(ran)).await;
    attempt.scope().cancel(CancelReason::TimedOut(Span(limit).to_string()));
}

/// What a panic of a handler means for its task.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    TaskError::retryable("internal", format!("the worker failed inside while it ran the task: {text}"))
}
