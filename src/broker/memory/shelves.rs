//! The messages of a hub and their states. Pure: it is told what time it is, and wakes nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{DEDUP_WINDOW, instant_of, timestamp_of};
use crate::broker::{
    CONTENTS_MAX, Contents, DeadLetter, DeadSummary, Extended, Intake, QueueInfo, Settled, Settlement,
    Submission, Submitted, Waiting, WaitingQuery,
};
use crate::task::QueueName;

/// What everybody's messages are, by number.
#[derive(Debug, Default)]
pub(super) struct Shelves {
    messages: BTreeMap<u64, Message>,
    ready: HashMap<QueueName, BTreeSet<Place>>,
    timers: BTreeSet<(Instant, u64)>,
    queues: BTreeMap<QueueName, Intake>,
    seen: HashMap<String, Instant>,
    seen_in_order: VecDeque<(Instant, String)>,
    pub(super) dead: BTreeMap<u64, DeadLetter>,
    last: u64,
}

/// Best first: 9 minus the priority, then the number.
type Place = (u64, u64);

#[derive(Debug)]
struct Message {
    submission: Submission,
    submitted: Timestamp,
    token: u64,
    owner: String,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Ready,
    Delayed(Instant),
    Leased(Instant),
}

/// A message as it is claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) id: u64,
    pub(super) token: u64,
    pub(super) submission: Submission,
    pub(super) submitted: Timestamp,
    pub(super) redelivered: bool,
}

/// Which claim a lease stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimKey {
    pub(super) id: u64,
    pub(super) token: u64,
}

impl Message {
    fn place(&self, id: u64) -> Place {
        (9 - u64::from(self.submission.priority.get()), id)
    }
}

impl Shelves {
    pub(super) fn submit(&mut self, submission: Submission, now: Instant) -> Submitted {
        while self.seen_in_order.front().is_some_and(|(at, _)| *at + DEDUP_WINDOW <= now) {
            if let Some((_, id)) = self.seen_in_order.pop_front() {
                self.seen.remove(&id);
            }
        }
        if self.seen.contains_key(&submission.dedup_id) {
            return Submitted::Duplicate;
        }
        self.seen.insert(submission.dedup_id.clone(), now);
        self.seen_in_order.push_back((now, submission.dedup_id.clone()));
        self.queues.entry(submission.queue.clone()).or_insert(Intake::Open);
        self.last += 1;
        let due = submission.not_before.map(instant_of).filter(|due| *due > now);
        let submitted = Timestamp::now();
        let message = Message { submission, submitted, token: 0, owner: String::new(), state: State::Ready };
        self.messages.insert(self.last, message);
        self.place(self.last, due.map_or(State::Ready, State::Delayed));
        Submitted::Queued
    }

    /// Takes at most `credit` of the best ready messages of `queues`.
    pub(super) fn claim(
        &mut self,
        queues: &[QueueName],
        credit: usize,
        until: Instant,
        owner: &str,
    ) -> Vec<Claimed> {
        let open = queues.iter().filter(|queue| self.queues.get(*queue) == Some(&Intake::Open));
        let mut places: Vec<Place> = open
            .filter_map(|queue| self.ready.get(queue))
            .flat_map(|places| places.iter().take(credit).copied())
            .collect();
        places.sort_unstable();
        places.dedup();
        places.truncate(credit);
        places.into_iter().filter_map(|(_, id)| self.lease(id, until, owner)).collect()
    }

    /// Takes at most `credit` messages of `queues` whose time has not come, soonest first; each with that time.
    pub(super) fn claim_early(
        &mut self,
        queues: &[QueueName],
        credit: usize,
        until: Instant,
        owner: &str,
    ) -> Vec<(Instant, Claimed)> {
        let is_early = |id: &u64| {
            self.messages.get(id).is_some_and(|message| {
                matches!(message.state, State::Delayed(_)) && queues.contains(&message.submission.queue)
            })
        };
        let early: Vec<(Instant, u64)> =
            self.timers.iter().filter(|(_, id)| is_early(id)).take(credit).copied().collect();
        early.into_iter().filter_map(|(due, id)| Some((due, self.lease(id, until, owner)?))).collect()
    }

    fn lease(&mut self, id: u64, until: Instant, owner: &str) -> Option<Claimed> {
        self.place(id, State::Leased(until));
        let message = self.messages.get_mut(&id)?;
        owner.clone_into(&mut message.owner);
        let redelivered = message.token > 0;
        message.token += 1;
        Some(Claimed {
            id,
            token: message.token,
            submission: message.submission.clone(),
            submitted: message.submitted,
            redelivered,
        })
    }

    /// Makes ready what is due or whose lease lapsed. Says whether anything was.
    pub(super) fn promote(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((_, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.place(id, State::Ready);
            any = true;
        }
        any
    }

    /// When [`Shelves::promote`] will have something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Also of a lease that lapsed while nobody took the message: it is still ours.
    pub(super) fn extend(&mut self, claim: ClaimKey, until: Instant) -> Extended {
        if self.messages.get(&claim.id).is_none_or(|message| message.token != claim.token) {
            return Extended::Lost;
        }
        self.place(claim.id, State::Leased(until));
        Extended::Until(until)
    }

    pub(super) fn settle(&mut self, claim: ClaimKey, settlement: Settlement, now: Instant) -> Settled {
        if self.messages.get(&claim.id).is_none_or(|message| message.token != claim.token) {
            return Settled::Lost;
        }
        match settlement {
            Settlement::Ack => {
                self.remove(claim.id);
            }
            Settlement::Retry { after } | Settlement::Release { after } => {
                self.give_back(claim.id, after, now);
            }
            Settlement::DeadLetter { reason } => self.park(claim.id, reason),
        }
        Settled::Settled
    }

    fn give_back(&mut self, id: u64, after: Duration, now: Instant) {
        let due = now.checked_add(after).filter(|_| !after.is_zero());
        self.place(id, due.map_or(State::Ready, State::Delayed));
        if let Some(message) = self.messages.get_mut(&id) {
            // The claim is over: what still holds its token has lost it.
            message.token += 1;
        }
    }

    fn park(&mut self, id: u64, reason: String) {
        let Some(Message { submission, .. }) = self.remove(id) else { return };
        let summary = DeadSummary {
            id: id.to_string(),
            task: Some(submission.task),
            queue: submission.queue,
            reason,
            parked: Timestamp::now(),
            bytes: submission.body.len() as u64,
        };
        self.dead.insert(
            id,
            DeadLetter {
                summary,
                body: submission.body,
                content_type: Some(submission.content_type),
                content_encoding: submission.content_encoding,
                headers: submission.headers,
                properties: submission.properties,
            },
        );
    }

    /// Puts a message into `state` and its indexes in order.
    fn place(&mut self, id: u64, state: State) {
        let Some(message) = self.messages.get_mut(&id) else { return };
        let place = message.place(id);
        match &message.state {
            State::Ready => {
                if let Some(places) = self.ready.get_mut(&message.submission.queue) {
                    places.remove(&place);
                }
            }
            State::Delayed(due) | State::Leased(due) => {
                self.timers.remove(&(*due, id));
            }
        }
        match &state {
            State::Ready => {
                self.ready.entry(message.submission.queue.clone()).or_default().insert(place);
            }
            State::Delayed(due) | State::Leased(due) => {
                self.timers.insert((*due, id));
            }
        }
        message.state = state;
    }

    fn remove(&mut self, id: u64) -> Option<Message> {
        self.place(id, State::Ready);
        let message = self.messages.remove(&id)?;
        if let Some(places) = self.ready.get_mut(&message.submission.queue) {
            places.remove(&message.place(id));
        }
        Some(message)
    }

    pub(super) fn set_intake(&mut self, queue: &QueueName, intake: Intake) {
        self.queues.insert(queue.clone(), intake);
    }

    pub(super) fn purge(&mut self, queue: &QueueName) -> u64 {
        let waits = |m: &Message| m.submission.queue == *queue && !matches!(m.state, State::Leased(_));
        let ids: Vec<u64> = self.messages.iter().filter(|(_, m)| waits(m)).map(|(id, _)| *id).collect();
        for id in &ids {
            self.remove(*id);
        }
        ids.len() as u64
    }

    pub(super) fn queues(&self) -> Vec<QueueInfo> {
        self.queues.iter().map(|(name, intake)| self.info(name, *intake)).collect()
    }

    fn info(&self, name: &QueueName, intake: Intake) -> QueueInfo {
        let mut info = QueueInfo {
            name: name.clone(),
            ready: 0,
            leased: 0,
            delayed: 0,
            dead: self.dead.values().filter(|letter| letter.summary.queue == *name).count() as u64,
            intake,
            oldest: None,
        };
        for message in self.messages.values().filter(|message| message.submission.queue == *name) {
            match message.state {
                State::Ready => {
                    info.ready += 1;
                    info.oldest = info.oldest.or(Some(message.submitted));
                }
                State::Delayed(_) => info.delayed += 1,
                State::Leased(_) => info.leased += 1,
            }
        }
        info
    }

    /// Leased ones first, then ready ones in the order in which they would go, then delayed ones by their time.
    pub(super) fn waiting(&self, query: &WaitingQuery) -> Vec<Waiting> {
        let mut found: Vec<(u64, &Message)> = self
            .messages
            .iter()
            .filter(|(_, m)| query.task.as_ref().is_none_or(|task| *task == m.submission.task))
            .filter(|(_, m)| query.queue.as_ref().is_none_or(|queue| *queue == m.submission.queue))
            .map(|(id, m)| (*id, m))
            .collect();
        found.sort_by_key(|(id, message)| match message.state {
            State::Leased(_) => (0, None, message.place(*id)),
            State::Ready => (1, None, message.place(*id)),
            State::Delayed(due) => (2, Some(due), message.place(*id)),
        });
        found.truncate(if query.limit == 0 { 1_000 } else { query.limit });
        let mut room = match query.contents {
            Contents::Given => CONTENTS_MAX,
            Contents::Left => 0,
        };
        let mut raw = |submission: &Submission| {
            room = room.checked_sub(submission.body.len().max(1))?;
            Some(submission.raw())
        };
        found
            .into_iter()
            .map(|(id, message)| Waiting { raw: raw(&message.submission), ..self.listed(id, message) })
            .collect()
    }

    fn listed(&self, id: u64, message: &Message) -> Waiting {
        let submission = &message.submission;
        let (not_before, lease) = match &message.state {
            State::Ready => (None, None),
            State::Delayed(due) => (Some(timestamp_of(*due)), None),
            State::Leased(until) => (None, Some((timestamp_of(*until), message.owner.clone()))),
        };
        let before = || {
            let places = self.ready.get(&submission.queue)?;
            Some(places.range(..message.place(id)).count() as u64)
        };
        Waiting {
            task: submission.task.clone(),
            queue: submission.queue.clone(),
            priority: submission.priority,
            submitted: message.submitted,
            not_before,
            ahead: Some(if lease.is_some() { 0 } else { before().unwrap_or(0) }),
            lease,
            raw: None,
        }
    }
}
