//! What to do with a message, given what the store knows of its task. Pure; `intake.rs` acts on it.
//!
//! Brokers hand a message over more than once, and producers send one twice. The record tells a redelivery (same
//! broker message) from a duplicate (another message of the same generation), a live owner from a dead one, and a
//! finished task from one that must run.

use std::time::Duration;

use jiff::Timestamp;

use crate::store::{Expected, Owner, PhaseTimes, Record, Status, Versioned};
use crate::task::{Fence, Task};

/// The circumstances in which a message is met.
#[derive(Clone, Debug)]
pub struct Meeting<'a> {
    /// The broker message.
    pub message: &'a str,
    /// The broker, without secrets.
    pub source: &'a str,
    /// When it was submitted, where the broker knows.
    pub submitted: Option<Timestamp>,
    /// Who meets it.
    pub owner: &'a Owner,
    /// Now.
    pub now: Timestamp,
    /// How long the lease lasts.
    pub lease: Duration,
    /// Starts without an outcome after which the task is poison.
    pub poison_limit: u32,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Start an attempt: store this record, expecting that.
    Admit(Box<Record>, Expected),
    /// It is finished: deliver what it owes, then ack.
    Finished(Box<Versioned>),
    /// Another works on it: look again after this delay.
    Later(Duration),
    /// The task has another message that carries it, or a later life: ack.
    Duplicate,
    /// It never ended well or badly in so many starts.
    Poison(Box<Versioned>),
}

/// Decides.
pub fn judge(task: &Task, meeting: &Meeting<'_>, current: Option<&Versioned>) -> Verdict {
    let Some(current) = current else {
        return Verdict::Admit(Box::new(first_attempt(task, meeting, Fence(0))), Expected::Absent);
    };
    let record = &current.record;
    if record.generation > task.generation {
        return Verdict::Duplicate;
    }
    let lives = !record.status.is_finished() && record.lease_until.is_some_and(|until| until > meeting.now);
    let ours = record.owner.as_ref() == Some(meeting.owner);
    if record.generation < task.generation {
        if lives && !ours {
            return Verdict::Later(remaining(record, meeting));
        }
        let fresh = first_attempt(task, meeting, record.fence);
        return Verdict::Admit(Box::new(fresh), Expected::At(current.revision));
    }
    if record.status.is_finished() {
        return Verdict::Finished(Box::new(current.clone()));
    }
    let redelivery = record.message.as_deref() == Some(meeting.message);
    // A lease of this very process without an entry in its ledger: the attempt is over and its settlement was not heard.
    if lives && !ours {
        return if redelivery { Verdict::Later(remaining(record, meeting)) } else { Verdict::Duplicate };
    }
    if record.unfinished_starts >= meeting.poison_limit {
        return Verdict::Poison(Box::new(current.clone()));
    }
    let next = Record {
        attempts: record.attempts.saturating_add(1),
        unfinished_starts: record.unfinished_starts.saturating_add(1),
        last_error: record.last_error.clone(),
        ..first_attempt(task, meeting, record.fence)
    };
    Verdict::Admit(Box::new(next), Expected::At(current.revision))
}

fn remaining(record: &Record, meeting: &Meeting<'_>) -> Duration {
    let until = record.lease_until.unwrap_or(meeting.now);
    // A little beyond, so that the lease is surely over then.
    Duration::try_from(until.duration_since(meeting.now)).unwrap_or_default() + Duration::from_millis(250)
}

/// The record of an attempt that begins now.
fn first_attempt(task: &Task, meeting: &Meeting<'_>, stored: Fence) -> Record {
    Record {
        id: task.id.clone(),
        kind: task.kind.clone(),
        queue: task.queue.clone(),
        priority: task.priority,
        generation: task.generation,
        status: Status::Staging,
        fence: Fence::after(stored, meeting.now),
        attempts: 1,
        unfinished_starts: 1,
        message: Some(meeting.message.to_owned()),
        source: Some(meeting.source.to_owned()),
        owner: Some(meeting.owner.clone()),
        lease_until: Some(meeting.now + meeting.lease),
        labels: task.labels.clone(),
        times: PhaseTimes {
            queued: meeting.submitted,
            admitted: Some(meeting.now),
            changed: Some(meeting.now),
            ..PhaseTimes::default()
        },
        ..Record::empty(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Outcome, Revision};
    use crate::task::{ArgMap, Generation};

    fn owner(worker: &str) -> Owner {
        Owner { worker: worker.to_owned(), incarnation: "1".to_owned(), host: "h".to_owned() }
    }
    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn meet(task: &Task, message: &str, worker: &str, at: Timestamp, current: Option<&Versioned>) -> Verdict {
        let owner = owner(worker);
        let lease = Duration::from_secs(60);
        let meeting =
            Meeting { message, source: "s", submitted: None, owner: &owner, now: at, lease, poison_limit: 4 };
        judge(task, &meeting, current)
    }

    /// A record as worker `a` made it at [`now`] from message `m`.
    fn admitted(task: &Task) -> Versioned {
        match meet(task, "m", "a", now(), None) {
            Verdict::Admit(record, Expected::Absent) => Versioned { record: *record, revision: Revision(1) },
            other => panic!("{other:?}"),
        }
    }

    fn task() -> Task {
        Task::new("longshore.ping", ArgMap::new())
    }

    #[test]
    fn a_live_owner_is_waited_for_and_its_duplicate_dropped() {
        let task = task();
        let record = admitted(&task);
        let later = now() + Duration::from_secs(10);
        assert_eq!(
            meet(&task, "m", "b", later, Some(&record)),
            Verdict::Later(Duration::from_millis(50_250))
        );
        assert_eq!(meet(&task, "other", "b", later, Some(&record)), Verdict::Duplicate);
    }

    #[test]
    fn a_lapsed_owner_is_followed_with_a_larger_fence_and_counted() {
        let task = task();
        let first = admitted(&task);
        let later = now() + Duration::from_secs(61);
        let Verdict::Admit(second, Expected::At(Revision(1))) = meet(&task, "m", "b", later, Some(&first))
        else {
            panic!()
        };
        assert!(second.fence > first.record.fence);
        assert_eq!((second.attempts, second.unfinished_starts), (2, 2));
        assert_eq!(second.owner, Some(owner("b")));
    }

    #[test]
    fn starts_without_an_outcome_make_poison_at_the_limit() {
        let task = task();
        let mut current = admitted(&task);
        current.record.unfinished_starts = 4;
        let later = now() + Duration::from_secs(61);
        assert!(matches!(meet(&task, "m", "b", later, Some(&current)), Verdict::Poison(_)));
        current.record.unfinished_starts = 3;
        assert!(matches!(meet(&task, "m", "b", later, Some(&current)), Verdict::Admit(..)));
    }

    #[test]
    fn a_finished_task_is_not_run_again_but_its_next_life_is() {
        let mut task = task();
        let mut current = admitted(&task);
        current.record.status = Status::Succeeded;
        current.record.outcome = Some(Outcome::Succeeded);
        assert!(matches!(meet(&task, "m", "b", now(), Some(&current)), Verdict::Finished(_)));
        task.generation = Generation(1);
        let Verdict::Admit(next, _) = meet(&task, "m2", "b", now(), Some(&current)) else { panic!() };
        assert_eq!((next.attempts, next.outcome.clone()), (1, None));
        assert!(next.fence > current.record.fence);
        let current = Versioned { record: *next, revision: Revision(2) };
        task.generation = Generation(0);
        assert_eq!(meet(&task, "m", "b", now(), Some(&current)), Verdict::Duplicate);
    }

    #[test]
    fn what_waits_for_a_retry_is_admitted_whatever_carries_it() {
        let task = task();
        let mut current = admitted(&task);
        current.record.status = Status::Retrying;
        current.record.lease_until = None;
        current.record.unfinished_starts = 0;
        let Verdict::Admit(next, _) = meet(&task, "copy", "b", now(), Some(&current)) else { panic!() };
        assert_eq!((next.attempts, next.unfinished_starts), (2, 1));
    }
}
