//! Moves what waits in a queue from one broker to another, while producers and workers go on at both.
//!
//! Called by `queue move`. It knows brokers and records by their traits only and prints nothing.
//!
//! # Decisions
//! - A message is fetched under a lease, submitted to the other broker, and only then acknowledged: a mover that dies in
//!   between leaves it at both, and the next one finds the other's copy by its dedup id, `<id>.<generation>.<hop>`, before it
//!   acknowledges. The hop travels in a header, so that what comes back to a broker is no duplicate of its first visit.
//! - The generation stays: it is the same life of the task. Where both sides share their records, these tell the two copies
//!   of a mover that died from two lives, in whatever order they are met.
//! - Bodies and headers go byte for byte, also of messages that cannot be read here.
//! - What a worker is at, or has ended without having settled it, stays: its record says so.
//! - What stays is held until the end, so that it does not come again and again.

mod identity;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::broker::message::Lease;
use crate::broker::{
    Broker, BrokerError, Command, Delivery, Extended, Settled, Settlement, Submission, Submitted,
};
use crate::cancel::{CancelReason, CancelScope};
use crate::events::{Event, EventData};
use crate::store::{ResultStore, StoreError};
use crate::task::{Fence, Limits, QueueName};

use identity::Identity;

/// Messages that are moved at a time.
const BATCH: usize = 200;
/// Questions to a server at a time.
const AT_ONCE: usize = 32;
/// How long a queue that gives nothing counts as empty.
const QUIET: Duration = Duration::from_secs(1);
/// How long a broker that takes nothing is tried again before the move ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be moved, and where to.
pub struct Transfer {
    /// Where it is; opened with the queue that is emptied, and no other.
    pub from: Broker,
    /// Where it goes.
    pub to: Broker,
    /// The queue that is emptied.
    pub away: QueueName,
    /// The queue that it goes to.
    pub queue: QueueName,
    /// The records of the workers that it is moved away from.
    pub records: Arc<dyn ResultStore>,
    /// Most messages to move.
    pub limit: Option<u64>,
    /// What one message may hold.
    pub limits: Limits,
}

/// What became of it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Messages that are at the other broker now, and here no more.
    pub moved: u64,
    /// Those of them that were there before: an earlier move was cut off.
    pub duplicates: u64,
    /// Messages that stay because a worker is at their tasks or has ended them.
    pub left: u64,
    /// Messages that are at both, because they could not be taken off here.
    pub unsettled: u64,
    /// Messages that stay because they could not be handed out before their time.
    pub delayed: u64,
}

/// Why a move ended early.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the brokers.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A message on its way.
struct Passing {
    delivery: Delivery,
    /// When it was to be handed out here, where that is still to come.
    due: Option<Timestamp>,
    identity: Identity,
}

/// A message that stays.
struct Staying {
    lease: Lease,
    due: Option<Timestamp>,
}

impl Transfer {
    /// Moves until the queue is empty, the limit is reached or `stop` ends. `told` hears of each step. In any case nothing is
    /// held here any more when it returns. What was moved stands in `tally` also after an error.
    pub async fn run(
        &self,
        stop: &CancelScope,
        tally: &mut Tally,
        mut told: impl FnMut(&Tally),
    ) -> Result<(), TransferError> {
        let mut staying = Vec::new();
        let moved = self.move_all(stop, (tally, &mut staying), &mut told).await;
        give_back(staying).await;
        told(tally);
        moved
    }

    async fn move_all(
        &self,
        stop: &CancelScope,
        (tally, staying): (&mut Tally, &mut Vec<Staying>),
        told: &mut impl FnMut(&Tally),
    ) -> Result<(), TransferError> {
        let mut waits_for_its_time = false;
        while !stop.is_canceled() {
            let room = self.limit.map_or(BATCH as u64, |limit| limit.saturating_sub(tally.moved));
            let credit = usize::try_from(room).unwrap_or(BATCH).min(BATCH);
            if credit == 0 {
                return Ok(());
            }
            let batch = if waits_for_its_time {
                let Some(early) = self.from.source.fetch_delayed(credit).await? else {
                    tally.delayed = self.delayed(staying).await?;
                    return Ok(());
                };
                early.into_iter().map(|(due, delivery)| (Some(due), delivery)).collect()
            } else {
                self.fetch(credit, stop).await?.into_iter().map(|delivery| (None, delivery)).collect()
            };
            prolong(staying.iter_mut().map(|held: &mut Staying| &mut held.lease)).await;
            let batch: Vec<(Option<Timestamp>, Delivery)> = batch;
            match (batch.is_empty(), waits_for_its_time) {
                (true, true) => {
                    tally.delayed = self.delayed(staying).await?;
                    return Ok(());
                }
                (true, false) => waits_for_its_time = true,
                (false, _) => self.pass(batch, stop, (tally, staying)).await?,
            }
            told(tally);
            if tally.unsettled > 0 {
                // They would come again here, and again be found there: a person is told instead.
                return Ok(());
            }
        }
        Ok(())
    }

    /// What waits, or nothing when there was nothing for a while.
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        let patience = stop.child();
        let mut fetching = std::pin::pin!(self.from.source.fetch(credit, &patience));
        // Never dropped in the middle: that could lose what it took.
        tokio::select! {
            fetched = &mut fetching => fetched,
            () = tokio::time::sleep(QUIET) => {
                patience.cancel(CancelReason::Interrupted);
                fetching.await
            }
        }
    }

    /// What waits for its time and is not among those that stay for another reason.
    async fn delayed(&self, staying: &[Staying]) -> Result<u64, BrokerError> {
        let queues = self.from.admin.queues().await?;
        let ours = queues.iter().filter(|queue| queue.name == self.away);
        let told = staying.iter().filter(|held| held.due.is_some()).count() as u64;
        Ok(ours.map(|queue| queue.delayed).sum::<u64>().saturating_sub(told))
    }

    /// One batch, from lease to settlement.
    async fn pass(
        &self,
        batch: Vec<(Option<Timestamp>, Delivery)>,
        stop: &CancelScope,
        (tally, staying): (&mut Tally, &mut Vec<Staying>),
    ) -> Result<(), TransferError> {
        let mut passing = batch
            .into_iter()
            .map(|(due, delivery)| {
                let identity = Identity::of(&delivery, &self.from.name, &self.limits);
                Passing { delivery, due, identity }
            })
            .collect();
        match self.looked_at(&mut passing).await {
            Ok(stays) => {
                let kept = stays.into_iter().map(|one| Staying { lease: one.delivery.lease, due: one.due });
                staying.extend(kept);
                tally.left = staying.len() as u64;
            }
            Err(error) => {
                give_back(passing.into_iter().map(held).collect()).await;
                return Err(error);
            }
        }
        let submitted = match self.hand_over(&mut passing, stop).await {
            Ok(submitted) => submitted,
            Err(error) => {
                give_back(passing.into_iter().map(held).collect()).await;
                return Err(error.into());
            }
        };
        self.tell(&passing, &submitted).await;
        settle(passing, &submitted, tally).await;
        Ok(())
    }

    /// Takes out of `passing` what stays, and brings wishes to cancel the others before them.
    async fn looked_at(&self, passing: &mut Vec<Passing>) -> Result<Vec<Passing>, TransferError> {
        let looks = passing.iter().map(|one| self.stays(one));
        let looks: Vec<Result<bool, TransferError>> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        let mut looks = looks.into_iter().collect::<Result<Vec<bool>, _>>()?.into_iter();
        let (stays, moves) = std::mem::take(passing).into_iter().partition(|_| looks.next().unwrap_or(false));
        *passing = moves;
        Ok(stays)
    }

    async fn stays(&self, one: &Passing) -> Result<bool, TransferError> {
        let Some(task) = &one.identity.task else { return Ok(false) };
        if let Some(found) = self.records.load(task).await? {
            let record = found.record;
            let now = Timestamp::now();
            // Outputs that wait for their own worker count as its work: nobody else runs the task until their time is over.
            let lives = record.lease_until.is_some_and(|until| until > now)
                || record.spooled.as_ref().is_some_and(|spooled| spooled.until > now);
            if record.generation >= one.identity.generation && (record.status.is_finished() || lives) {
                return Ok(true);
            }
        }
        if let Some(reason) = self.from.topic.cancel_requested(task).await? {
            self.to.topic.command(Command::Cancel { task: task.clone(), reason }).await?;
        }
        Ok(false)
    }

    /// Puts `passing` into the other queue, and tries again while that broker is away: by their dedup ids it may be tried
    /// however often.
    async fn hand_over(
        &self,
        passing: &mut Vec<Passing>,
        stop: &CancelScope,
    ) -> Result<Vec<Submitted>, BrokerError> {
        let started = Instant::now();
        let ours = prolong(passing.iter_mut().map(|one| &mut one.delivery.lease)).await;
        let mut ours = ours.into_iter();
        passing.retain(|_| ours.next().unwrap_or(false));
        if passing.is_empty() {
            return Ok(Vec::new());
        }
        let submissions: Vec<Submission> = passing.iter().map(|one| self.submission(one)).collect();
        loop {
            // Half a lease: what was prolonged before it is still ours behind it.
            let patience = self.from.source.lease() / 2;
            let tried = tokio::time::timeout(patience, self.to.submit.submit(submissions.clone())).await;
            let error = match tried {
                Ok(Ok(submitted)) => return Ok(submitted),
                Ok(Err(error @ BrokerError::Unavailable { .. })) => error,
                Ok(Err(error)) => return Err(error),
                Err(_) => BrokerError::Unavailable {
                    broker: self.to.name.clone(),
                    reason: format!("it took nothing within {patience:?}"),
                },
            };
            if started.elapsed() >= PATIENCE || stop.is_canceled() {
                return Err(error);
            }
            tracing::warn!(%error, "what is on its way is kept and tried again");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = stop.canceled() => {}
            }
            // One that was lost meanwhile is told when it is settled.
            prolong(passing.iter_mut().map(|one| &mut one.delivery.lease)).await;
        }
    }

    fn submission(&self, one: &Passing) -> Submission {
        let Passing { delivery, due, identity } = one;
        Submission {
            task: identity.task_or_made_up(),
            queue: self.queue.clone(),
            priority: delivery.priority.unwrap_or(identity.priority),
            body: delivery.body.clone(),
            content_type: identity.content_type.clone(),
            content_encoding: delivery.content_encoding.clone(),
            headers: delivery.headers_for_next_hop(),
            properties: delivery.properties.clone(),
            dedup_id: identity.dedup_id(delivery.hop().saturating_add(1)),
            not_before: *due,
            expires: identity.expires,
        }
    }

    /// Says to whoever follows them there that tasks are queued.
    async fn tell(&self, passing: &[Passing], submitted: &[Submitted]) {
        let new = passing.iter().zip(submitted).filter(|(_, ended)| **ended == Submitted::Queued);
        let queued: Vec<Event> = new
            .filter_map(|(one, _)| one.identity.task.clone())
            .map(|task| Event {
                task,
                queue: self.queue.clone(),
                fence: Fence(0),
                number: 0,
                time: Timestamp::now(),
                data: EventData::Queued,
            })
            .collect();
        if let Err(error) = self.to.topic.publish(&queued).await {
            tracing::warn!(%error, "the queued events were not published");
        }
    }
}

/// Takes off what the other broker has.
async fn settle(passing: Vec<Passing>, submitted: &[Submitted], tally: &mut Tally) {
    let ended = passing.into_iter().map(|one| one.delivery.lease.settler.settle(Settlement::Ack));
    let ended: Vec<Settled> = stream::iter(ended).buffered(AT_ONCE).collect().await;
    for (settled, submitted) in ended.into_iter().zip(submitted) {
        match settled {
            Settled::Settled => tally.moved += 1,
            Settled::Lost | Settled::Unknown => tally.unsettled += 1,
        }
        if *submitted == Submitted::Duplicate {
            tally.duplicates += 1;
        }
    }
}

fn held(one: Passing) -> Staying {
    Staying { lease: one.delivery.lease, due: one.due }
}

/// Gives back what stays, each for its time.
async fn give_back(staying: Vec<Staying>) {
    let ended = staying.into_iter().map(|held| {
        let wait = |due: Timestamp| Duration::try_from(due.duration_since(Timestamp::now())).ok();
        let after = held.due.and_then(wait).unwrap_or_default();
        held.lease.settler.settle(Settlement::Release { after })
    });
    let ended: Vec<Settled> = stream::iter(ended).buffered(AT_ONCE).collect().await;
    let unknown = ended.iter().filter(|settled| **settled != Settled::Settled).count();
    if unknown > 0 {
        tracing::debug!(unknown, "messages that stay come again when their leases end");
    }
}

/// Prolongs those leases that are in their second half. Says of each whether it is still ours.
async fn prolong<'a>(leases: impl Iterator<Item = &'a mut Lease>) -> Vec<bool> {
    let prolonged = leases.map(|lease| async {
        if lease.until.saturating_duration_since(Instant::now()) > lease.duration / 2 {
            return true;
        }
        match lease.extender.extend(lease.duration).await {
            Ok(Extended::Until(until)) => {
                lease.until = until;
                true
            }
            Ok(Extended::Lost) => false,
            // It may still be ours: the settlement will tell.
            Err(_) => lease.until > Instant::now(),
        }
    });
    stream::iter(prolonged).buffered(AT_ONCE).collect().await
}
