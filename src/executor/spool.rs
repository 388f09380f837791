//! Attempts whose work is done and whose outputs nobody took: tried again and again, without a lane, until somebody does, a
//! person cancels them, or their time is over. Called by `intake` between the end of a run and its settlement.
//!
//! The message is kept by its lease as that of any live attempt. A worker that drains gives it back and leaves the
//! outputs to its next process; until their time is over no other worker runs the task (`admission.rs`).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use rand::RngExt;
use tokio::sync::mpsc;

use super::intake::Charge;
use super::{Context, lane, settle};
use crate::broker::Settlement;
use crate::cancel::CancelReason;
use crate::error::{ErrorClass, TaskError};
use crate::handler::{Attempt, Handler, Spool, outstanding};
use crate::ledger::LivePhase;
use crate::lifecycle::LifePhase;
use crate::store::{Record, Spooled, Status};
use crate::task::{Secret, TaskId};
use crate::units::Span;

/// The first pause between two tries; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST: Duration = Duration::from_secs(300);

/// Those that wait, to be woken by a command.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: Mutex<HashMap<TaskId, mpsc::UnboundedSender<Option<Secret>>>>,
}

impl Waiters {
    /// Has the outputs of `task` tried at once, with `token` from now on when it is given. `false`: none wait here.
    pub(super) fn wake(&self, task: &TaskId, token: Option<Secret>) -> bool {
        self.lock().get(task).is_some_and(|waiter| waiter.send(token).is_ok())
    }

    fn enter(&self, task: &TaskId) -> mpsc::UnboundedReceiver<Option<Secret>> {
        let (waker, woken) = mpsc::unbounded_channel();
        self.lock().insert(task.clone(), waker);
        woken
    }

    fn leave(&self, task: &TaskId) {
        self.lock().remove(task);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, mpsc::UnboundedSender<Option<Secret>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How outputs come to wait.
#[derive(Debug)]
pub(super) enum Begins {
    /// They were spooled just now, for this reason.
    Spooled(TaskError),
    /// An earlier process spooled them.
    Found,
}

/// Goes on with outputs that an earlier process of this worker spooled.
pub(super) async fn take_up(context: &Arc<Context>, charge: Charge, handler: &dyn Handler) {
    let attempt = charge.attempt.clone();
    let Some(spool) = handler.spool() else {
        let error = TaskError::retryable("not_adopted", "this build cannot bring its outputs away");
        return settle::conclude(context, charge, Err(error)).await;
    };
    if let Err(error) = spool.reopen(&attempt).await {
        return settle::conclude(context, charge, Err(error)).await;
    }
    tracing::info!(task = %attempt.task().id, "its outputs were kept by an earlier process of this worker and are brought away");
    see_through(context, charge, spool, Begins::Found).await;
}

/// Sees outputs through to the end of their attempt, or leaves them to the next process.
pub(super) async fn see_through(
    context: &Arc<Context>,
    mut charge: Charge,
    spool: &dyn Spool,
    begins: Begins,
) {
    let attempt = charge.attempt.clone();
    let id = &attempt.task().id;
    let mut woken = context.spooled.enter(id);
    let mut mark = mark(context, &charge.record, begins);
    let result = loop {
        if !note(context, &mut charge, &mark).await {
            break None;
        }
        context.ledger.advance(id, LivePhase::Spooled);
        let token = match turn(context, &attempt, &mut woken, &mark).await {
            Turn::Upload(token) => token,
            Turn::Over => break Some(Err(ended())),
            Turn::Late => break Some(Err(given_up(context, &mark))),
        };
        context.ledger.advance(id, LivePhase::Uploading);
        let trying = AssertUnwindSafe(spool.upload(&attempt, token)).catch_unwind();
        let tried = tokio::select! {
            tried = trying => tried.unwrap_or_else(|panic| Err(lane::panicked(&*panic))),
            _ = attempt.scope().canceled() => Err(ended()),
        };
        let why = tried.as_ref().err().and_then(outstanding);
        match why.filter(|_| !attempt.scope().is_canceled()) {
            Some(why) => again(&attempt, &mut mark, why),
            None => break Some(tried),
        }
    };
    context.spooled.leave(id);
    let Some(result) = result else {
        context.keeper.release(&charge.hold);
        context.ledger.leave(id, attempt.fence());
        return;
    };
    let is_left = matches!(attempt.scope().reason(), Some(CancelReason::Left | CancelReason::Interrupted));
    if is_left && result.is_err() {
        return leave(context, charge, &mark).await;
    }
    context.ledger.advance(id, LivePhase::Settling);
    settle::conclude(context, charge, result).await;
    spool.forget(&attempt).await;
}

/// What the record says of them when they begin to wait here.
fn mark(context: &Context, record: &Record, begins: Begins) -> Spooled {
    let now = Timestamp::now();
    let until = now + context.settings.spool_wait;
    match (begins, &record.spooled) {
        (Begins::Found, Some(known)) => Spooled { next: None, ..known.clone() },
        (Begins::Found, None) => {
            let error = TaskError::retryable("interrupted", "the worker ended while it brought them away");
            Spooled { since: now, until, tries: 1, next: None, error }
        }
        (Begins::Spooled(error), _) => {
            let next = Some(now + pause(1));
            tracing::warn!(task = %record.id, %error, %until, "nobody takes its outputs: they are kept and brought away later");
            Spooled { since: now, until, tries: 1, next, error }
        }
    }
}

/// One more try was in vain.
fn again(attempt: &Attempt, mark: &mut Spooled, why: TaskError) {
    mark.tries = mark.tries.saturating_add(1);
    mark.next = Some(Timestamp::now() + pause(mark.tries));
    tracing::debug!(task = %attempt.task().id, error = %why, tries = mark.tries, "its outputs wait on");
    if why.code != mark.error.code {
        attempt.report().note(format!("the outputs wait on: {why}"));
    }
    mark.error = why;
}

fn pause(tries: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST);
    doubled.mul_f64(rand::rng().random_range(0.75..1.0))
}

/// Records how they stand. `false`: another attempt has taken the task over, or this process is being killed.
async fn note(context: &Context, charge: &mut Charge, mark: &Spooled) -> bool {
    let (times, details) = charge.attempt.report().snapshot();
    let record = Record {
        times,
        details,
        status: Status::Uploading,
        unfinished_starts: 0,
        lease_until: Some(Timestamp::now() + charge.hold.duration()),
        spooled: Some(mark.clone()),
        ..charge.record.clone()
    };
    charge.record = settle::changed(record);
    settle::store(context, &charge.record, charge.revision).await
}

/// Why waiting ends.
enum Turn {
    /// It is time for a try, or somebody asked for one.
    Upload(Option<Secret>),
    /// Their attempt was ended, or the worker drains.
    Over,
    /// Their time is over.
    Late,
}

async fn turn(
    context: &Context,
    attempt: &Attempt,
    woken: &mut mpsc::UnboundedReceiver<Option<Secret>>,
    mark: &Spooled,
) -> Turn {
    if context.lifecycle.phase() >= LifePhase::Draining {
        attempt.scope().cancel(CancelReason::Left);
    }
    if attempt.scope().is_canceled() {
        return Turn::Over;
    }
    // What was found is tried once, however late it is.
    let Some(next) = mark.next else {
        return Turn::Upload(woken.try_recv().ok().flatten());
    };
    tokio::select! {
        biased;
        _ = attempt.scope().canceled() => Turn::Over,
        () = context.lifecycle.reached(LifePhase::Draining) => {
            attempt.scope().cancel(CancelReason::Left);
            Turn::Over
        }
        () = tokio::time::sleep(until(mark.until)) => Turn::Late,
        Some(token) = woken.recv() => Turn::Upload(token),
        () = tokio::time::sleep(until(next)) => Turn::Upload(None),
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

/// The scope's own reason takes its place.
fn ended() -> TaskError {
    TaskError::retryable("interrupted", "its outputs were not brought away: the attempt was ended")
}

/// The failure of a task whose outputs nobody took in time. Its container is not run again for it.
fn given_up(context: &Context, mark: &Spooled) -> TaskError {
    let kept = Span(context.settings.spool_wait);
    let message = format!(
        "{}; its outputs were kept for {kept} (worker.spool_wait), tried {} times, and are gone now",
        mark.error, mark.tries
    );
    TaskError { class: ErrorClass::Permanent, message, ..mark.error.clone() }
}

/// Gives the message back and leaves the outputs to the next process of this worker.
async fn leave(context: &Arc<Context>, charge: Charge, mark: &Spooled) {
    let Charge { attempt, hold, record, revision, .. } = charge;
    let task = attempt.task();
    attempt.report().fall_silent();
    let (times, details) = attempt.report().snapshot();
    let left = Record {
        times,
        details,
        left: Some(Timestamp::now()),
        lease_until: Some(mark.until),
        spooled: Some(mark.clone()),
        ..record
    };
    if settle::store(context, &settle::changed(left), revision).await {
        tracing::info!(task = %task.id, "its outputs are left to the next process of this worker");
        settle::settle(context, &hold, Settlement::Release { after: Duration::ZERO }, task).await;
    }
    context.keeper.release(&hold);
    context.ledger.leave(&task.id, attempt.fence());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        for (tries, longest) in [(1, 5), (2, 10), (4, 40), (7, 300), (u32::MAX, 300)] {
            let (pause, longest) = (pause(tries), Duration::from_secs(longest));
            assert!(pause <= longest && pause >= longest.mul_f64(0.7), "{tries}: {pause:?}");
        }
    }

    #[test]
    fn only_those_that_wait_are_woken() {
        let waiters = Waiters::default();
        let id = TaskId::fresh();
        assert!(!waiters.wake(&id, None));
        let mut woken = waiters.enter(&id);
        assert!(waiters.wake(&id, Some(Secret::new("fresh"))));
        assert_eq!(woken.try_recv().unwrap(), Some(Secret::new("fresh")));
        waiters.leave(&id);
        assert!(!waiters.wake(&id, None));
    }
}
