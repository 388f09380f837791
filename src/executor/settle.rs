//! Ends an attempt: record, then publish, then settle. That order makes every crash harmless.
//!
//! The record opens an outbox of sinks that must hear of the end. Whoever meets a finished record with an open outbox
//! (a redelivery, the upkeep of any worker) serves it, so a crash between two steps loses nothing. Where record, events and
//! message lie in one place the three are one step, and nothing is owed in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use rand::RngExt;
use serde_json::Value;

use super::intake::Charge;
use super::keeper::Hold;
use super::{Context, SourceRuntime};
use crate::broker::message::Delivery;
use crate::broker::{Ending, Settled, Settlement};
use crate::cancel::CancelReason;
use crate::error::{ErrorClass, TaskError};
use crate::events::{Bus, EventData, Notice};
use crate::failpoint::{self, Moment};
use crate::handler::{GONE, LEFT};
use crate::lifecycle::LifePhase;
use crate::retry::RetryPolicy;
use crate::store::{Expected, Outcome, Put, Record, Revision, Status, StoreError, Versioned};
use crate::task::{Fence, Task, TaskId, envelope};

/// How an attempt ends.
#[derive(Debug, PartialEq)]
enum End {
    Finish(Outcome, Value),
    Retry(TaskError, Duration),
    Release,
    /// It runs on for the next process of this worker.
    Leave,
    Lost,
}

/// Records, publishes and settles the end of `charge`, then does what waited for that.
pub(super) async fn conclude(context: &Arc<Context>, charge: Charge, result: Result<Value, TaskError>) {
    let attempt = charge.attempt.clone();
    let policy = attempt.task().retry.clone().unwrap_or_else(|| context.settings.retry.clone());
    let end = decide(attempt.scope().reason(), result, &policy, charge.record.attempts);
    tracing::debug!(task = %attempt.task().id, attempt = attempt.number(), ?end, "ended");
    match end {
        End::Finish(outcome, value) => finish(context, charge, outcome, value).await,
        End::Retry(error, after) => retry(context, charge, error, after).await,
        End::Release => release(context, charge).await,
        End::Leave => leave(context, charge).await,
        End::Lost => {
            context.keeper.release(&charge.hold);
            context.ledger.leave(&attempt.task().id, attempt.fence());
        }
    }
    attempt.finish_rest().await;
}

/// What the end of an attempt means. A task that came to its good end before it heard of its cancellation succeeded.
fn decide(
    reason: Option<CancelReason>,
    result: Result<Value, TaskError>,
    policy: &RetryPolicy,
    attempts: u32,
) -> End {
    let error = match (reason, result) {
        (Some(CancelReason::LeaseLost), _) => return End::Lost,
        (_, Ok(value)) => return End::Finish(Outcome::Succeeded, value),
        (Some(CancelReason::Left), Err(error)) if error.code == LEFT => return End::Leave,
        (Some(CancelReason::Interrupted | CancelReason::Left), Err(_)) => return End::Release,
        (Some(CancelReason::Canceled(reason)), Err(_)) => {
            return End::Finish(Outcome::Canceled { reason }, Value::Null);
        }
        (Some(CancelReason::TimedOut(limit)), Err(error)) => TaskError {
            exit_code: error.exit_code,
            ..TaskError::permanent("time_limit", format!("it ran longer than its time limit of {limit}"))
        },
        (None, Err(error)) => error,
    };
    if error.code == "lease_lost" {
        return End::Lost;
    }
    if error.code == GONE {
        return End::Release;
    }
    if error.class == ErrorClass::Poison {
        return End::Finish(Outcome::Dead { reason: error.message }, Value::Null);
    }
    if wants_retry(&error, policy) && attempts < policy.max_attempts {
        let after = policy.delay(attempts, rand::rng().random_range(0.0..1.0));
        return End::Retry(error, after);
    }
    End::Finish(Outcome::Failed { error }, Value::Null)
}

/// Whether `policy` tries again after `error`: by class, by code, or by `exit:<n>`.
fn wants_retry(error: &TaskError, policy: &RetryPolicy) -> bool {
    policy.on.iter().any(|on| match on.as_str() {
        "retryable" => error.class == ErrorClass::Retryable,
        other => {
            other == error.code
                || other.strip_prefix("exit:").is_some_and(|code| {
                    error.exit_code.is_some_and(|exit| code == "*" || code.parse() == Ok(exit))
                })
        }
    })
}

async fn finish(context: &Arc<Context>, charge: Charge, outcome: Outcome, value: Value) {
    let Charge { attempt, hold, record, revision, source } = charge;
    let task = attempt.task();
    let (times, details) = attempt.report().snapshot();
    let mut finished = Record { times, details, ..record };
    finished.details.result = value;
    let again = matches!(outcome, Outcome::Failed { .. } | Outcome::Canceled { .. });
    close_record(&mut finished, outcome, &source.bus, Some(task));
    finished.envelope =
        (again || source.bus.needs_task(task)).then(|| serde_json::to_value(&**task).ok()).flatten();
    let data = finished.last_event().map_or(EventData::Queued, |event| event.data);
    let event = attempt.report().close(data);
    finished.last_event = event.number;
    let notice = Notice { event: Arc::new(event), task: Some(task.clone()) };
    let at_once = end_at_once(context, &source, &hold, (&mut finished, revision), &notice).await;
    if at_once {
        // All in one moment.
        failpoint::reached(Moment::Recorded, task.id.as_str(), attempt.fence().0);
        failpoint::reached(Moment::Published, task.id.as_str(), attempt.fence().0);
    }
    let ended = at_once || end_in_steps(context, &source, &hold, (&finished, revision), notice).await;
    context.keeper.release(&hold);
    if ended && finished.status == Status::Canceled {
        forget_cancel(&source, task).await;
    }
    context.ledger.leave(&task.id, attempt.fence());
}

/// Records, tells and settles in one step, where record, events and message lie in one place and nobody else must hear of
/// the end. `false`: nothing of it happened.
async fn end_at_once(
    context: &Context,
    source: &SourceRuntime,
    hold: &Hold,
    (finished, revision): (&mut Record, Revision),
    notice: &Notice,
) -> bool {
    let Some(sink) = source.ends_at else { return false };
    // A dead letter is moved, not taken off.
    if finished.status == Status::Dead || !finished.owed.iter().eq([sink]) {
        return false;
    }
    let Some(settlement) = hold.acknowledgement() else { return false };
    let owed = std::mem::take(&mut finished.owed);
    let ended = match context.store.part(finished, revision) {
        Some(record) => source.bus.end(sink, notice.clone(), Ending { record, settlement }).await,
        None => Ok(false),
    };
    finished.owed = owed;
    ended.unwrap_or_else(|error| {
        tracing::warn!(task = %finished.id, %error, "its end could not be one step");
        false
    })
}

/// Records, then publishes, then settles. `false`: it is not this attempt that ends the task.
async fn end_in_steps(
    context: &Context,
    source: &SourceRuntime,
    hold: &Hold,
    (finished, revision): (&Record, Revision),
    notice: Notice,
) -> bool {
    if !store(context, finished, revision).await {
        return false;
    }
    failpoint::reached(Moment::Recorded, finished.id.as_str(), finished.fence.0);
    let published = publish(context, &source.bus, notice, &finished.owed).await;
    failpoint::reached(Moment::Published, finished.id.as_str(), finished.fence.0);
    let settlement = match &finished.outcome {
        Some(Outcome::Dead { reason }) => Settlement::DeadLetter { reason: reason.clone() },
        _ => Settlement::Ack,
    };
    // The outbox and the broker hear of it together: both are only bookkeeping now, and may share a commit.
    let fulfil = async {
        let fulfilled = published.iter().map(|sink| context.store.fulfil(&finished.id, finished.fence, sink));
        for error in join_all(fulfilled).await.into_iter().filter_map(Result::err) {
            tracing::warn!(task = %finished.id, %error, "its outbox stays open and is completed later");
        }
    };
    let settle = async {
        if published.len() == finished.owed.len()
            && let Some(settler) = context.keeper.release(hold)
        {
            let ended = settler.settle(settlement).await;
            if ended != Settled::Settled {
                tracing::debug!(task = %finished.id, ?ended, "its message comes again and finds it finished");
            }
        }
    };
    tokio::join!(fulfil, settle);
    true
}

async fn forget_cancel(source: &SourceRuntime, task: &Task) {
    if let Err(error) = source.broker.topic.forget_cancel(&task.id).await {
        tracing::debug!(task = %task.id, %error, "its cancel request stays until it lapses");
    }
}

/// Fills in what every finished record says.
fn close_record(record: &mut Record, outcome: Outcome, bus: &Bus, task: Option<&Task>) {
    let now = Timestamp::now();
    record.status = match &outcome {
        Outcome::Succeeded => Status::Succeeded,
        Outcome::Failed { .. } => Status::Failed,
        Outcome::Canceled { .. } => Status::Canceled,
        Outcome::Dead { .. } => Status::Dead,
    };
    record.outcome = Some(outcome);
    record.spooled = None;
    record.owed = bus.owed(task).map(str::to_owned).collect();
    record.unfinished_starts = 0;
    record.times.finished = Some(now);
    record.times.changed = Some(now);
}

async fn retry(context: &Arc<Context>, charge: Charge, error: TaskError, after: Duration) {
    let Charge { attempt, hold, record, revision, source } = charge;
    let task = attempt.task();
    let at = Timestamp::now() + after;
    let (times, details) = attempt.report().snapshot();
    let event =
        attempt.report().close(EventData::Retrying { error: error.clone(), at, attempt: record.attempts });
    let waiting = Record {
        times,
        details,
        status: Status::Retrying,
        unfinished_starts: 0,
        owner: None,
        lease_until: None,
        spooled: None,
        last_error: Some(error),
        ..changed(record)
    };
    if store(context, &waiting, revision).await {
        source.bus.send(event, Some(task));
        settle(context, &hold, Settlement::Retry { after }, task).await;
    }
    context.keeper.release(&hold);
    context.ledger.leave(&task.id, attempt.fence());
}

async fn release(context: &Arc<Context>, charge: Charge) {
    let Charge { attempt, hold, record, revision, .. } = charge;
    let task = attempt.task();
    let released = Record {
        status: Status::Released,
        attempts: record.attempts.saturating_sub(1),
        unfinished_starts: 0,
        owner: None,
        lease_until: None,
        spooled: None,
        ..changed(record)
    };
    if store(context, &released, revision).await {
        settle(context, &hold, Settlement::Release { after: Duration::ZERO }, task).await;
    }
    context.keeper.release(&hold);
    context.ledger.leave(&task.id, attempt.fence());
}

/// Gives the message back while the attempt runs on: its record keeps fence, number and owner, and its lease is stretched
/// once, so that only the owner's next process goes on with it until then.
async fn leave(context: &Arc<Context>, charge: Charge) {
    let Charge { attempt, hold, record, revision, .. } = charge;
    let task = attempt.task();
    let now = Timestamp::now();
    attempt.report().fall_silent();
    let (times, details) = attempt.report().snapshot();
    let left = Record {
        times,
        details,
        status: Status::Running,
        left: Some(now),
        lease_until: Some(now + context.settings.adopt_window),
        ..record
    };
    if store(context, &changed(left), revision).await {
        tracing::info!(task = %task.id, "left running for the next process of this worker");
        settle(context, &hold, Settlement::Release { after: Duration::ZERO }, task).await;
    }
    context.keeper.release(&hold);
    context.ledger.leave(&task.id, attempt.fence());
}

pub(super) fn changed(mut record: Record) -> Record {
    record.times.changed = Some(Timestamp::now());
    record
}

pub(super) async fn settle(context: &Context, hold: &Hold, settlement: Settlement, task: &Task) {
    if let Some(settler) = context.keeper.release(hold) {
        let ended = settler.settle(settlement).await;
        if ended != Settled::Settled {
            tracing::debug!(task = %task.id, ?ended, "its message comes again when its lease lapses");
        }
    }
}

/// Stores `record` under its fence. While the store is away it is tried again, with the lease kept, and the end of a task is
/// journaled for the next process. `false`: another attempt has taken the task over, or this process is being killed.
pub(super) async fn store(context: &Context, record: &Record, mut revision: Revision) -> bool {
    let mut failures = 0_u32;
    let stored = loop {
        match context.store.put(record, Expected::At(revision)).await {
            Ok(Put::Stored(_)) => break true,
            Ok(Put::Conflict(Some(found))) if found.record.fence == record.fence => {
                if found.record.status.is_finished() {
                    // Nobody else ends it under this fence: an earlier try got through, only its answer did not.
                    break true;
                }
                // Our own keeper's touch came in between.
                revision = found.revision;
            }
            Ok(Put::Conflict(None)) => {
                // The store lost its data: nobody else has begun, so this is still the truth.
                match context.store.put(record, Expected::Absent).await {
                    Ok(Put::Stored(_)) => break true,
                    Ok(Put::Conflict(Some(found))) if found.record.fence > record.fence => break false,
                    Ok(Put::Conflict(_)) | Err(_) => {}
                }
            }
            Ok(Put::Conflict(Some(found))) => {
                tracing::warn!(task = %record.id, fence = %found.record.fence, "another attempt has taken it over");
                break false;
            }
            Err(error) => {
                tracing::warn!(task = %record.id, %error, "its end waits for the store");
                if failures == 0 && record.status.is_finished() {
                    keep(context, record).await;
                }
                if !again(context, &mut failures).await {
                    // What is journaled stays for the next process.
                    return false;
                }
            }
        }
    };
    if failures > 0 {
        forget(context, &record.id).await;
    }
    stored
}

async fn keep(context: &Context, record: &Record) {
    if let Err(error) = context.settings.journal.keep(record).await {
        tracing::error!(task = %record.id, %error, "its end waits in memory only: it cannot be journaled");
    }
}

/// Forgets a journaled end that is recorded or overtaken.
pub(super) async fn forget(context: &Context, task: &TaskId) {
    if let Err(error) = context.settings.journal.forget(task).await {
        tracing::warn!(%task, %error, "its journaled end stays; it is looked at again at the next start");
    }
}

/// Waits before the next try, longer each time. `false`: the process is being killed.
async fn again(context: &Context, failures: &mut u32) -> bool {
    *failures = failures.saturating_add(1);
    let longest =
        Duration::from_millis(50).saturating_mul(1 << (*failures).min(8)).min(Duration::from_secs(5));
    tokio::select! {
        () = tokio::time::sleep(longest.mul_f64(rand::rng().random_range(0.5..1.0))) => true,
        () = context.lifecycle.reached(LifePhase::Killed) => false,
    }
}

/// Tries of one sink before its part of the outbox is left to the upkeep.
const PUBLISH_TRIES: u32 = 8;

/// Delivers `notice` to every sink in `owed`, to all at once; the names of those that took it.
async fn publish(context: &Context, bus: &Bus, notice: Notice, owed: &BTreeSet<String>) -> Vec<String> {
    let told = owed.iter().map(|sink| tell(context, bus, &notice, sink));
    let told = join_all(told).await;
    owed.iter().zip(told).filter(|(_, told)| *told).map(|(sink, _)| sink.clone()).collect()
}

async fn tell(context: &Context, bus: &Bus, notice: &Notice, sink: &str) -> bool {
    let mut failures = 0;
    loop {
        let Err(error) = bus.deliver(sink, notice.clone()).await else { return true };
        tracing::warn!(task = %notice.event.task, %error, "its end is told again");
        if failures >= PUBLISH_TRIES || !again(context, &mut failures).await {
            return false;
        }
    }
}

/// Serves what a finished record still owes. Whether nothing is owed any more.
pub(super) async fn complete_outbox(context: &Context, source: &SourceRuntime, record: &Record) -> bool {
    let Some(event) = record.last_event() else { return true };
    let task = record.envelope.as_ref().and_then(Value::as_object).and_then(|kept| {
        // Sinks that cannot do without it say so themselves; the others are served.
        envelope::from_map(kept.clone())
            .inspect_err(|error| tracing::warn!(task = %record.id, %error, "its envelope cannot be read"))
            .ok()
    });
    let notice = Notice { event: Arc::new(event), task: task.map(Arc::new) };
    let published = publish(context, &source.bus, notice, &record.owed).await;
    let mut all = published.len() == record.owed.len();
    for sink in &published {
        if let Err(error) = context.store.fulfil(&record.id, record.fence, sink).await {
            tracing::warn!(task = %record.id, %error, "its outbox stays open and is completed later");
            all = false;
        }
    }
    all
}

/// Records a task as dead that was never started here, tells it, and parks its message.
pub(super) async fn without_attempt(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    task: &Arc<Task>,
    delivery: Delivery,
    error: TaskError,
) {
    let buried = async {
        let found = context.store.load(&task.id).await?;
        let current = match found {
            Some(found)
                if found.record.generation >= task.generation && found.record.status.is_finished() =>
            {
                return Ok(());
            }
            Some(found) => found,
            None => Versioned {
                record: Record { message: Some(delivery.message.0.clone()), ..Record::empty(task) },
                revision: Revision(0),
            },
        };
        bury(context, source, current, (Some(task), &error.message)).await
    };
    let result: Result<(), StoreError> = buried.await;
    let settlement = match result {
        Ok(()) => Settlement::DeadLetter { reason: error.message },
        Err(error) => {
            tracing::warn!(task = %task.id, %error, "given back: nothing is parked while the store is away");
            Settlement::Release { after: context.settings.release_damping }
        }
    };
    let _ = delivery.lease.settler.settle(settlement).await;
}

/// Records `current` as dead and tells it. Revision 0 stands for a record that is not there yet.
pub(super) async fn bury(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    current: Versioned,
    (task, reason): (Option<&Arc<Task>>, &str),
) -> Result<(), StoreError> {
    let Versioned { mut record, revision } = current;
    record.fence = Fence::after(record.fence, Timestamp::now());
    let task = task.map(AsRef::as_ref);
    close_record(&mut record, Outcome::Dead { reason: reason.to_owned() }, &source.bus, task);
    if let Some(task) = task.filter(|task| source.bus.needs_task(task)) {
        record.envelope = serde_json::to_value(task).ok();
    }
    record.last_event = 0;
    let expected = if revision == Revision(0) { Expected::Absent } else { Expected::At(revision) };
    if let Put::Stored(_) = context.store.put(&record, expected).await? {
        complete_outbox(context, source, &record).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: &[&str]) -> RetryPolicy {
        RetryPolicy {
            max_attempts: 3,
            on: on.iter().map(|text| (*text).to_owned()).collect(),
            ..RetryPolicy::default()
        }
    }
    fn retries(error: TaskError, on: &[&str], attempts: u32) -> bool {
        matches!(decide(None, Err(error), &policy(on), attempts), End::Retry(..))
    }

    #[test]
    fn the_reason_of_the_scope_decides_before_the_error() {
        let error = || Err(TaskError::permanent("exit", "x").with_exit_code(1));
        let end = |reason| decide(Some(reason), error(), &policy(&["retryable"]), 1);
        assert_eq!(end(CancelReason::LeaseLost), End::Lost);
        assert_eq!(end(CancelReason::Interrupted), End::Release);
        assert_eq!(end(CancelReason::Left), End::Release);
        let left = || Err(crate::handler::left());
        assert_eq!(decide(Some(CancelReason::Left), left(), &policy(&[]), 1), End::Leave);
        assert_eq!(decide(Some(CancelReason::Interrupted), left(), &policy(&[]), 1), End::Release);
        let canceled = End::Finish(Outcome::Canceled { reason: "me".to_owned() }, Value::Null);
        assert_eq!(end(CancelReason::Canceled("me".to_owned())), canceled);
        let End::Finish(Outcome::Failed { error }, _) = end(CancelReason::TimedOut("2s".to_owned())) else {
            panic!()
        };
        assert_eq!((error.code.as_str(), error.exit_code), ("time_limit", Some(1)));
    }

    #[test]
    fn what_is_retried_is_named_by_class_code_or_exit() {
        assert!(retries(TaskError::retryable("daemon", "x"), &["retryable"], 1));
        assert!(!retries(TaskError::retryable("daemon", "x"), &["retryable"], 3), "attempts are used up");
        assert!(!retries(TaskError::permanent("exit", "x").with_exit_code(7), &["retryable"], 1));
        assert!(retries(TaskError::permanent("exit", "x").with_exit_code(7), &["exit:7"], 1));
        assert!(!retries(TaskError::permanent("exit", "x").with_exit_code(7), &["exit:8"], 1));
        assert!(retries(TaskError::permanent("oom_killed", "x"), &["oom_killed"], 1));
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_begun_anew_however_few_attempts_there_are() {
        assert_eq!(decide(None, Err(crate::handler::gone()), &policy(&[]), 3), End::Release);
    }

    #[test]
    fn good_work_that_was_done_counts_even_when_a_cancel_came_late() {
        let end = decide(Some(CancelReason::Canceled("late".to_owned())), Ok(Value::Null), &policy(&[]), 1);
        assert_eq!(end, End::Finish(Outcome::Succeeded, Value::Null));
    }
}
