//! Listing what waits. The stream tells what is there and how far its consumers have come, the workers tell what they hold.
//!
//! # Decisions
//! A stream of work takes no reader beside its consumers, so messages are asked for one after another by subject; a list of
//! one task's messages, which must look at all, asks for many places at once.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use jiff::Timestamp;

use super::Client;
use super::admin::{Consumers, Reached};
use super::attend::Holds;
use super::message::Letter;
use super::names::{Wait, usual_priority};
use crate::broker::{CONTENTS_MAX, Contents, Waiting, WaitingQuery};
use crate::nats::{LinkError, Stored, stream};
use crate::task::{PriorityClass, QueueName, TaskId};

/// Messages that one list holds when no limit is named.
const USUAL: usize = 1_000;
/// Places asked for at once.
const AT_ONCE: usize = 128;
/// How long workers may take to say what they hold.
const ROLL_CALL: Duration = Duration::from_millis(700);

/// A message on its way into the list.
struct Listed {
    order: (u8, i64, usize, u64),
    stored: Stored,
    waiting: Waiting,
}

impl Client {
    pub(super) async fn listing(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, LinkError> {
        let most = if query.limit == 0 { USUAL } else { query.limit };
        let consumers = self.consumers().await?;
        let holders = self.roll_call(consumers.values().map(|reached| reached.leased).sum()).await?;
        let found = match &query.task {
            Some(_) => self.all().await?,
            None => self.first_of_each(query.queue.as_ref(), &consumers, most).await?,
        };
        let mut listed = Vec::new();
        let mut ready: HashMap<QueueName, [u64; 3]> = HashMap::new();
        for stored in found {
            let Some((wait, queue, class)) = self.names.read_place(&stored.subject) else { continue };
            if query.queue.as_ref().is_some_and(|wanted| *wanted != queue) {
                continue;
            }
            let reached = consumers.get(&(queue.clone(), class)).copied().unwrap_or_default();
            let ready = ready.entry(queue.clone()).or_default();
            let entry = entry(stored, (wait, queue, class), (reached, &holders), ready);
            if query.task.as_ref().is_none_or(|task| entry.waiting.task == *task) {
                listed.push(entry);
            }
        }
        for entry in listed.iter_mut().filter(|entry| entry.order.0 == READY) {
            let better: u64 = ready[&entry.waiting.queue][..entry.order.2].iter().sum();
            entry.waiting.ahead = entry.waiting.ahead.map(|within| within + better);
        }
        listed.sort_by_key(|listed| listed.order);
        listed.truncate(most);
        Ok(with_contents(listed, query.contents))
    }

    /// What workers say that they hold, by place. Ends as soon as all of it is told, else when time is up: workers that
    /// died tell nothing.
    pub(super) async fn roll_call(&self, leased: u64) -> Result<HashMap<u64, Holds>, LinkError> {
        let mut holders = HashMap::new();
        if leased == 0 {
            return Ok(holders);
        }
        let inbox = self.link.inbox();
        let mut heard = self.link.subscribe(inbox.clone()).await?;
        self.link.send_asking(self.names.roll_call(), inbox, Bytes::new()).await?;
        let end = tokio::time::sleep(ROLL_CALL);
        tokio::pin!(end);
        while (holders.len() as u64) < leased {
            let answer = tokio::select! {
                answer = heard.next() => answer,
                () = &mut end => None,
            };
            // A status says that nobody listens.
            let Some(answer) = answer.filter(|answer| answer.status.is_none()) else { break };
            let told: Vec<Holds> = serde_json::from_slice(&answer.payload).unwrap_or_default();
            holders.extend(told.into_iter().map(|holds| (holds.sequence, holds)));
        }
        Ok(holders)
    }

    /// Of each place the first messages that wait, and all that are held.
    async fn first_of_each(
        &self,
        queue: Option<&QueueName>,
        consumers: &Consumers,
        most: usize,
    ) -> Result<Vec<Stored>, LinkError> {
        let work = stream::state(&self.link, &self.names.work_stream(), Some(">")).await?;
        let mut found = Vec::new();
        for (subject, _) in work.subjects {
            let Some((wait, of, class)) = self.names.read_place(&subject) else { continue };
            if queue.is_some_and(|wanted| *wanted != of) {
                continue;
            }
            let delivered = match wait {
                Wait::Turn => consumers.get(&(of, class)).map_or(0, |reached| reached.delivered),
                Wait::Time => 0,
            };
            let (mut next, mut waiting) = (1, 0);
            while waiting < most {
                let stored = self.link.next_of(&self.names.work_stream(), &subject, next).await?;
                let Some(stored) = stored else { break };
                next = stored.sequence + 1;
                waiting += usize::from(stored.sequence > delivered);
                found.push(stored);
            }
        }
        Ok(found)
    }

    /// Everything that waits, in order.
    async fn all(&self) -> Result<Vec<Stored>, LinkError> {
        let name = self.names.work_stream();
        let state = stream::state(&self.link, &name, None).await?;
        let (mut next, mut found) = (state.first.max(1), Vec::new());
        while next <= state.last {
            let end = (next + AT_ONCE as u64).min(state.last + 1);
            let asked: Vec<_> = (next..end).map(|sequence| self.link.at(&name, sequence)).collect();
            let answers: Vec<_> = streams::iter(asked).buffered(AT_ONCE).collect().await;
            next = end;
            let mut holes = 0;
            for answer in answers {
                match answer? {
                    Some(stored) => found.push(stored),
                    None => holes += 1,
                }
            }
            // Over a long stretch of what is done already.
            if holes > AT_ONCE / 2 {
                match self.link.next_of(&name, ">", next).await? {
                    Some(stored) => next = stored.sequence,
                    None => break,
                }
            }
        }
        Ok(found)
    }
}

const LEASED: u8 = 0;
const READY: u8 = 1;
const LATER: u8 = 2;

fn entry(
    stored: Stored,
    (wait, queue, class): (Wait, QueueName, PriorityClass),
    (reached, holders): (Reached, &HashMap<u64, Holds>),
    ready: &mut [u64; 3],
) -> Listed {
    let letter = Letter::read(&stored.headers);
    let class_place = PriorityClass::ALL.iter().position(|other| *other == class).unwrap_or_default();
    let mut waiting = Waiting {
        task: task_of(&stored),
        queue,
        priority: letter.priority.unwrap_or_else(|| usual_priority(class)),
        submitted: letter.submitted.unwrap_or(stored.time),
        not_before: None,
        lease: None,
        ahead: None,
        raw: None,
    };
    let mut time = 0;
    let section = match wait {
        Wait::Time => {
            waiting.not_before = letter.due;
            time = letter.due.map_or(0, Timestamp::as_microsecond);
            LATER
        }
        Wait::Turn => match holders.get(&stored.sequence) {
            Some(holds) => {
                waiting.lease = Some((holds.until, holds.worker.clone()));
                LEASED
            }
            // Handed over, and nobody who lives says that he has it.
            None if stored.sequence <= reached.delivered && reached.leased > holders.len() as u64 => {
                let until = Timestamp::now().checked_add(reached.ack_wait).unwrap_or(Timestamp::MAX);
                waiting.lease = Some((until, "a worker that does not answer".to_owned()));
                LEASED
            }
            None => {
                waiting.ahead = Some(ready[class_place]);
                ready[class_place] += 1;
                READY
            }
        },
    };
    Listed { order: (section, time, class_place, stored.sequence), stored, waiting }
}

/// A message that no task id can be read from is shown by its place.
fn task_of(stored: &Stored) -> TaskId {
    let named = Letter::read(&stored.headers).task.or_else(|| {
        #[derive(serde::Deserialize)]
        struct Named {
            id: TaskId,
        }
        serde_json::from_slice::<Named>(&stored.body).ok().map(|named| named.id)
    });
    named.or_else(|| TaskId::new(stored.sequence.to_string()).ok()).unwrap_or_else(TaskId::fresh)
}

fn with_contents(listed: Vec<Listed>, contents: Contents) -> Vec<Waiting> {
    let mut given = 0;
    let with = listed.into_iter().map(|Listed { stored, mut waiting, .. }| {
        given += stored.body.len();
        if contents == Contents::Given && given <= CONTENTS_MAX {
            let queue = waiting.queue.clone();
            waiting.raw = Some(Letter::read(&stored.headers).raw(&queue, stored.body));
        }
        waiting
    });
    with.collect()
}
