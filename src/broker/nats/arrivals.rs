//! What the server sent: requests for messages and the messages that came, kept apart by consumer.
//!
//! # Decisions
//! - A request can not be taken back without the risk of a message on its way to nobody, which would be away for a whole
//!   acknowledgement time. So a request that waits stays until it is answered or ends by itself, asks for one message only,
//!   and what comes when nobody fetches any more is given back at once.
//! - A consumer with a request that waits has nothing to hand out, so nobody looks there. Under load the classes without
//!   messages cost nothing by that, and a message of a better class is seen as soon as it is there.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Message, StatusCode};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::nats::AckInfo;
use crate::task::{PriorityClass, QueueName};

/// How long a request waits at the server.
pub(super) const REQUEST_WAIT: Duration = Duration::from_secs(60);
/// Beyond its end before a request counts as lost.
const SLACK: Duration = Duration::from_secs(5);
/// How long a consumer that refused a request (too many wait already, it moves to another server) is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How long a message waits for a fetch before it is given back.
const GRACE: Duration = Duration::from_millis(250);

/// A message that came.
pub(super) struct Arrived {
    pub(super) consumer: usize,
    pub(super) info: AckInfo,
    pub(super) message: Message,
    pub(super) at: Instant,
}

/// Why a consumer hands nothing out any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It, or its stream, is not there.
    Gone,
    /// The connection broke.
    Broken,
}

/// What one durable consumer has to do with us.
pub(super) struct Counter {
    pub(super) queue: QueueName,
    pub(super) class: PriorityClass,
    pub(super) ack_wait: Duration,
    /// The request that waits, and when it counts as lost.
    standing: Option<(u64, Instant)>,
    /// The request that does not wait: its number, and what it may still bring.
    look: Option<(u64, usize)>,
    came: VecDeque<Arrived>,
}

impl Counter {
    pub(super) fn new(queue: QueueName, class: PriorityClass, ack_wait: Duration) -> Self {
        Self { queue, class, ack_wait, standing: None, look: None, came: VecDeque::new() }
    }
}

/// Everything that came and is asked for.
pub(super) struct Arrivals {
    state: Mutex<State>,
    /// Rung for the fetch that waits.
    pub(super) bell: Notify,
    /// Rung for the reader when nobody fetches any more.
    pub(super) pause: Notify,
}

struct State {
    counters: Vec<Counter>,
    places: BTreeMap<String, usize>,
    /// Since when nobody fetches; `None` while somebody does.
    idle_since: Option<Instant>,
    trouble: Option<Trouble>,
    requests: u64,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        let state = State {
            counters: Vec::new(),
            places: BTreeMap::new(),
            idle_since: Some(Instant::now()),
            trouble: None,
            requests: 0,
        };
        Self { state: Mutex::new(state), bell: Notify::new(), pause: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The consumers that are asked, best class first, with the subjects of their messages.
    pub(super) fn set_counters(&self, counters: Vec<(Counter, String)>) {
        let mut state = self.state();
        // What came before stays: its consumer may have been made anew under the same subject.
        let mut came: BTreeMap<String, VecDeque<Arrived>> = BTreeMap::new();
        for (place, index) in std::mem::take(&mut state.places) {
            came.insert(place, std::mem::take(&mut state.counters[index].came));
        }
        state.counters.clear();
        for (index, (mut counter, place)) in counters.into_iter().enumerate() {
            counter.came = came.remove(&place).unwrap_or_default();
            counter.came.iter_mut().for_each(|arrived| arrived.consumer = index);
            state.places.insert(place, index);
            state.counters.push(counter);
        }
        state.trouble = None;
    }

    /// Says that a fetch begins, until the guard is dropped.
    pub(super) fn fetching(&self) -> Fetching<'_> {
        self.state().idle_since = None;
        Fetching(self)
    }

    /// Takes what came, best class first and then the oldest, at most `most`, of queues that are not paused.
    pub(super) fn take(&self, most: usize, paused: &HashSet<QueueName>) -> Vec<Arrived> {
        let mut state = self.state();
        for counter in &mut state.counters {
            // What lay here longer is another's by now.
            let ack_wait = counter.ack_wait;
            counter.came.retain(|arrived| arrived.at.elapsed() < ack_wait);
        }
        let mut taken = Vec::new();
        for class in PriorityClass::ALL {
            while taken.len() < most {
                let of_class =
                    state.counters.iter_mut().filter(|c| c.class == class && !paused.contains(&c.queue));
                let oldest = of_class
                    .filter_map(|counter| Some((counter.came.front()?.info.time, counter)))
                    .min_by_key(|(time, _)| *time);
                let Some((_, counter)) = oldest else { break };
                taken.extend(counter.came.pop_front());
            }
        }
        taken
    }

    /// Takes what came of queues that are paused by now.
    pub(super) fn take_paused(&self, paused: &HashSet<QueueName>) -> Vec<Arrived> {
        let mut state = self.state();
        let of_paused = state.counters.iter_mut().filter(|counter| paused.contains(&counter.queue));
        of_paused.flat_map(|counter| counter.came.drain(..)).collect()
    }

    /// Queue, class and acknowledgement time of a consumer.
    pub(super) fn counter(&self, index: usize) -> (QueueName, PriorityClass, Duration) {
        let state = self.state();
        let counter = &state.counters[index];
        (counter.queue.clone(), counter.class, counter.ack_wait)
    }

    /// Consumers of `class` that may have something: without a request that waits, of queues that are not paused.
    pub(super) fn unwatched(&self, class: PriorityClass, paused: &HashSet<QueueName>) -> Vec<usize> {
        let state = self.state();
        let wanted = state.counters.iter().enumerate().filter(|(_, counter)| {
            counter.class == class && counter.standing.is_none() && !paused.contains(&counter.queue)
        });
        wanted.map(|(index, _)| index).collect()
    }

    /// Notes a request for at most `most` messages that are there now; its number.
    pub(super) fn begin_look(&self, index: usize, most: usize) -> u64 {
        let mut state = self.state();
        state.requests += 1;
        let number = state.requests;
        state.counters[index].look = Some((number, most));
        number
    }

    /// Whether the look at a consumer is over.
    pub(super) fn looked(&self, index: usize) -> bool {
        self.state().counters[index].look.is_none()
    }

    /// Gives up waiting for the end of a look.
    pub(super) fn abandon_look(&self, index: usize) {
        self.state().counters[index].look = None;
    }

    /// Notes a request that waits; its number.
    pub(super) fn begin_standing(&self, index: usize) -> u64 {
        let mut state = self.state();
        state.requests += 1;
        let number = state.requests;
        state.counters[index].standing = Some((number, Instant::now() + REQUEST_WAIT + SLACK));
        number
    }

    /// When the first of the requests that wait counts as lost; those that do are forgotten.
    pub(super) fn forget_lost(&self) -> Instant {
        let mut state = self.state();
        let now = Instant::now();
        let mut next = now + REQUEST_WAIT;
        for counter in &mut state.counters {
            match counter.standing {
                Some((_, lost)) if lost <= now => counter.standing = None,
                Some((_, lost)) => next = next.min(lost),
                None => {}
            }
        }
        next
    }

    /// What went wrong since it was last asked.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.state().trouble.take()
    }

    /// The connection broke: every request may be gone.
    pub(super) fn broken(&self) {
        let mut state = self.state();
        for counter in &mut state.counters {
            counter.standing = None;
            counter.look = None;
        }
        state.trouble.get_or_insert(Trouble::Broken);
        drop(state);
        self.bell.notify_one();
    }

    /// Takes in what the server sent; `inbox` is what our requests name as the place for answers.
    pub(super) fn heard(&self, message: Message, inbox: &str) {
        match message.status {
            None => self.arrived(message),
            Some(status) => self.answered(&message, status, inbox),
        }
        self.bell.notify_one();
    }

    fn arrived(&self, message: Message) {
        let mut state = self.state();
        let Some(index) = state.places.get(message.subject.as_str()).copied() else {
            tracing::warn!(subject = %message.subject, "a message came that was not asked for");
            return;
        };
        let info = match AckInfo::of(&message) {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(%error, "a message cannot be acknowledged; it comes again");
                return;
            }
        };
        let counter = &mut state.counters[index];
        match &mut counter.look {
            Some((_, left)) => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    counter.look = None;
                }
            }
            None => counter.standing = None,
        }
        counter.came.push_back(Arrived { consumer: index, info, message, at: Instant::now() });
    }

    fn answered(&self, message: &Message, status: StatusCode, inbox: &str) {
        let mut state = self.state();
        let number = message.subject.strip_prefix(inbox).and_then(|rest| {
            let (index, number) = rest.trim_start_matches('.').split_once('.')?;
            Some((index.parse::<usize>().ok()?, number.parse::<u64>().ok()?))
        });
        let Some((index, number)) = number else { return };
        let said = message.description.as_deref().unwrap_or_default();
        let gone = status == StatusCode::NO_RESPONDERS || said.contains("Consumer Deleted");
        if gone {
            state.trouble = Some(Trouble::Gone);
        }
        if let Some(counter) = state.counters.get_mut(index) {
            if counter.look.is_some_and(|(ours, _)| ours == number) {
                counter.look = None;
            }
            if counter.standing.is_some_and(|(ours, _)| ours == number) {
                let over = matches!(status, StatusCode::TIMEOUT | StatusCode::NOT_FOUND);
                // As if it went on waiting for a while: nobody asks again meanwhile.
                counter.standing = (!over && !gone).then(|| (number, Instant::now() + REFUSED_PAUSE));
            }
        }
    }

    /// When what came is to be given back because nobody fetches; `None` while somebody does, or nothing came.
    pub(super) fn give_back_at(&self) -> Option<Instant> {
        let state = self.state();
        let idle_since = state.idle_since?;
        let oldest = state
            .counters
            .iter()
            .filter_map(|counter| counter.came.front())
            .map(|arrived| arrived.at)
            .min()?;
        Some(oldest.max(idle_since) + GRACE)
    }

    /// Everything that came and nobody fetched.
    pub(super) fn drain(&self) -> Vec<Arrived> {
        self.state().counters.iter_mut().flat_map(|counter| counter.came.drain(..)).collect()
    }

    /// What is to be given back now.
    pub(super) fn give_back(&self) -> Vec<Arrived> {
        if self.give_back_at().is_none_or(|at| at > Instant::now()) {
            return Vec::new();
        }
        self.drain()
    }
}

/// A fetch that goes on.
pub(super) struct Fetching<'a>(&'a Arrivals);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.state().idle_since = Some(Instant::now());
        self.0.pause.notify_one();
    }
}
