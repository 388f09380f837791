//! What to do with a message, given what the store knows of its task. Pure; `intake.rs` acts on it.
//!
//! Brokers hand a message over more than once, and producers send one twice. The record tells a redelivery (same
//! broker message) from a duplicate (another message of the same generation), a live owner from a dead one, and a
//! finished task from one that must run. An attempt whose worker left it running, or died, is adopted by the next
//! process of that worker's instance; since no two processes have an instance at once, it need not wait for any lease.
//! Outputs that were spooled are their owner's until their time is over, whether or not its lease lapsed meanwhile.

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
    /// The attempt that was looked for and of which nothing is left here.
    pub gone: Option<Fence>,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Start an attempt: store this record, expecting that.
    Admit(Box<Record>, Expected),
    /// An earlier process of this instance was at it: if anything is left of that attempt, go on with it and store this
    /// record, expecting that; else judge again, with its fence as [`Meeting::gone`].
    Adopt(Box<Record>, Expected),
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
    let lives = !record.status.is_finished() && held_until(record).is_some_and(|until| until > meeting.now);
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
    let predecessor = record.owner.as_ref().is_some_and(|owner| precedes(owner, meeting.owner));
    // Once it was left its message is nobody's, so that any that carries it is as good as the first.
    let carries = redelivery || record.left.is_some();
    // A lease of this very process without an entry in its ledger: the attempt is over and its settlement was not heard.
    // What this very process left is its next process's, also when the message comes back before its last fetch is over.
    let left_here = ours && record.left.is_some();
    if lives && (!ours || left_here) && !(predecessor && carries) {
        let waits = record.left.is_some() || record.spooled.is_some();
        return match (carries, waits) {
            (true, true) => Verdict::Later(remaining(record, meeting).min(LEFT_DAMPING)),
            (true, false) => Verdict::Later(remaining(record, meeting)),
            (false, _) => Verdict::Duplicate,
        };
    }
    let adoptable = predecessor && carries && meeting.gone != Some(record.fence);
    // Whoever lives to meet its own start did not die of it: the store's or the broker's answer was lost.
    let poisonous = record.unfinished_starts >= meeting.poison_limit && !ours;
    // What was left on purpose killed nobody, and what is spooled has ended.
    if poisonous && !(adoptable && (record.left.is_some() || record.spooled.is_some())) {
        return Verdict::Poison(Box::new(current.clone()));
    }
    if adoptable {
        return Verdict::Adopt(Box::new(adopted(record, meeting)), Expected::At(current.revision));
    }
    let next = Record {
        attempts: record.attempts.saturating_add(1),
        unfinished_starts: record.unfinished_starts.saturating_add(u32::from(!ours)).max(1),
        last_error: record.last_error.clone(),
        ..first_attempt(task, meeting, record.fence)
    };
    Verdict::Admit(Box::new(next), Expected::At(current.revision))
}

/// Until when it is its owner's.
fn held_until(record: &Record) -> Option<Timestamp> {
    record.lease_until.max(record.spooled.as_ref().map(|spooled| spooled.until))
}

fn remaining(record: &Record, meeting: &Meeting<'_>) -> Duration {
    let until = held_until(record).unwrap_or(meeting.now);
    // A little beyond, so that the lease is surely over then.
    Duration::try_from(until.duration_since(meeting.now)).unwrap_or_default() + Duration::from_millis(250)
}

/// How long a message stays away whose attempt waits for its own worker, which must find it soon.
const LEFT_DAMPING: Duration = Duration::from_secs(5);

/// Whether `owner` was an earlier process of `next`'s instance.
fn precedes(owner: &Owner, next: &Owner) -> bool {
    !owner.instance.is_empty() && owner.instance == next.instance && owner.incarnation != next.incarnation
}

/// The record of an attempt that goes on in this process. It is not charged again, but a worker that died at it may do so
/// only so often.
fn adopted(record: &Record, meeting: &Meeting<'_>) -> Record {
    let died = u32::from(record.left.is_none() && record.spooled.is_none());
    let mut adopted = Record {
        unfinished_starts: record.unfinished_starts.saturating_add(died),
        message: Some(meeting.message.to_owned()),
        source: Some(meeting.source.to_owned()),
        owner: Some(meeting.owner.clone()),
        lease_until: Some(meeting.now + meeting.lease),
        left: None,
        ..record.clone()
    };
    adopted.times.changed = Some(meeting.now);
    adopted
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
        process(worker, "1")
    }
    fn process(worker: &str, incarnation: &str) -> Owner {
        let (worker, incarnation) = (worker.to_owned(), incarnation.to_owned());
        Owner { instance: format!("i-{worker}"), worker, incarnation, host: "h".to_owned() }
    }
    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn meet(task: &Task, message: &str, worker: &str, at: Timestamp, current: Option<&Versioned>) -> Verdict {
        meet_as(task, message, (&owner(worker), None), at, current)
    }
    fn meet_as(
        task: &Task,
        message: &str,
        (owner, gone): (&Owner, Option<Fence>),
        at: Timestamp,
        current: Option<&Versioned>,
    ) -> Verdict {
        let lease = Duration::from_secs(60);
        let (source, submitted, now) = ("s", None, at);
        judge(
            task,
            &Meeting { message, source, submitted, owner, now, lease, poison_limit: 4, gone },
            current,
        )
    }
    /// The record after worker `a` left its attempt at [`now`], for five minutes.
    fn left(task: &Task) -> Versioned {
        let mut current = admitted(task);
        current.record.left = Some(now());
        current.record.lease_until = Some(now() + Duration::from_secs(300));
        current
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
    fn starts_that_their_own_process_outlived_make_no_poison() {
        let task = task();
        let mut current = admitted(&task);
        for attempts in 2..20 {
            let verdict = meet(&task, "m", "a", now(), Some(&current));
            let Verdict::Admit(next, _) = verdict else { panic!("{verdict:?}") };
            assert_eq!((next.attempts, next.unfinished_starts), (attempts, 1));
            current.record = *next;
        }
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
    fn what_was_left_is_adopted_by_the_next_process_of_its_instance_uncharged_and_under_its_fence() {
        let task = task();
        let current = left(&task);
        let next = process("a", "2");
        let later = now() + Duration::from_secs(3);
        for message in ["m", "another copy"] {
            let verdict = meet_as(&task, message, (&next, None), later, Some(&current));
            let Verdict::Adopt(record, Expected::At(Revision(1))) = verdict else { panic!("{verdict:?}") };
            let before = &current.record;
            assert_eq!((record.fence, record.attempts), (before.fence, before.attempts));
            assert_eq!((record.unfinished_starts, record.left), (before.unfinished_starts, None));
            assert_eq!((record.owner.as_ref(), record.message.as_deref()), (Some(&next), Some(message)));
            assert_eq!(record.lease_until, Some(later + Duration::from_secs(60)));
        }
    }

    #[test]
    fn what_was_left_is_given_back_by_others_until_its_window_ends_and_then_taken_over() {
        let task = task();
        let current = left(&task);
        let later = |seconds| now() + Duration::from_secs(seconds);
        for message in ["m", "another copy"] {
            let verdict = meet(&task, message, "b", later(3), Some(&current));
            assert_eq!(verdict, Verdict::Later(Duration::from_secs(5)));
        }
        let verdict = meet(&task, "m", "b", later(298), Some(&current));
        assert_eq!(verdict, Verdict::Later(Duration::from_millis(2_250)));
        let Verdict::Admit(next, _) = meet(&task, "m", "b", later(301), Some(&current)) else { panic!() };
        assert!(next.fence > current.record.fence);
        assert_eq!((next.attempts, next.left), (2, None));
    }

    #[test]
    fn what_a_process_left_is_not_begun_anew_by_itself() {
        let task = task();
        for current in [left(&task), {
            let mut current = spooled(&task);
            current.record.left = Some(now());
            current
        }] {
            let verdict = meet(&task, "m", "a", now(), Some(&current));
            assert_eq!(verdict, Verdict::Later(Duration::from_secs(5)));
        }
    }

    #[test]
    fn what_was_left_and_is_gone_is_begun_anew_at_once_and_charged() {
        let task = task();
        let current = left(&task);
        let gone = (&process("a", "2"), Some(current.record.fence));
        let Verdict::Admit(next, _) = meet_as(&task, "m", gone, now(), Some(&current)) else { panic!() };
        assert!(next.fence > current.record.fence);
        assert_eq!((next.attempts, next.unfinished_starts, next.left), (2, 2, None));
    }

    #[test]
    fn what_a_killed_process_was_at_is_adopted_by_the_next_within_the_poison_limit() {
        let task = task();
        let mut current = admitted(&task);
        let next = process("a", "2");
        let verdict = meet_as(&task, "m", (&next, None), now(), Some(&current));
        let Verdict::Adopt(record, _) = verdict else { panic!("{verdict:?}") };
        assert_eq!((record.attempts, record.unfinished_starts), (1, 2));
        assert_eq!(meet_as(&task, "other", (&next, None), now(), Some(&current)), Verdict::Duplicate);
        current.record.unfinished_starts = 4;
        assert!(matches!(meet_as(&task, "m", (&next, None), now(), Some(&current)), Verdict::Poison(_)));
    }

    /// The record after worker `a` spooled what its attempt made, for an hour, and died.
    fn spooled(task: &Task) -> Versioned {
        let mut current = admitted(task);
        current.record.status = Status::Uploading;
        current.record.spooled = Some(crate::store::Spooled {
            since: now(),
            until: now() + Duration::from_secs(3_600),
            tries: 1,
            next: None,
            error: crate::error::TaskError::retryable("girder_unavailable", "away"),
        });
        current
    }

    #[test]
    fn what_is_spooled_is_its_owners_until_its_time_is_over_though_its_lease_lapsed() {
        let task = task();
        let current = spooled(&task);
        let later = |seconds| now() + Duration::from_secs(seconds);
        for at in [10, 61, 3_000] {
            let verdict = meet(&task, "m", "b", later(at), Some(&current));
            assert_eq!(verdict, Verdict::Later(Duration::from_secs(5)), "after {at} s");
            assert_eq!(meet(&task, "other", "b", later(at), Some(&current)), Verdict::Duplicate);
        }
        let Verdict::Admit(next, _) = meet(&task, "m", "b", later(3_601), Some(&current)) else { panic!() };
        assert!(next.fence > current.record.fence);
        assert_eq!((next.attempts, next.spooled), (2, None));
    }

    #[test]
    fn what_is_spooled_is_taken_up_by_the_next_process_of_its_instance_and_counts_for_no_poison() {
        let task = task();
        let mut current = spooled(&task);
        current.record.unfinished_starts = 4;
        let next = process("a", "2");
        for at in [1, 10_000] {
            let at = now() + Duration::from_secs(at);
            let verdict = meet_as(&task, "m", (&next, None), at, Some(&current));
            let Verdict::Adopt(record, _) = verdict else { panic!("{verdict:?}") };
            assert_eq!((record.fence, record.unfinished_starts), (current.record.fence, 4));
            assert_eq!(record.spooled, current.record.spooled);
        }
        current.record.unfinished_starts = 1;
        let gone = (&next, Some(current.record.fence));
        let Verdict::Admit(fresh, _) = meet_as(&task, "m", gone, now(), Some(&current)) else { panic!() };
        assert_eq!(fresh.spooled, None);
    }

    #[test]
    fn without_an_instance_nobody_is_anybodys_next_process() {
        let task = task();
        let mut current = admitted(&task);
        current.record.owner.as_mut().unwrap().instance.clear();
        let next = Owner { instance: String::new(), ..process("a", "2") };
        assert!(matches!(meet_as(&task, "m", (&next, None), now(), Some(&current)), Verdict::Later(_)));
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
