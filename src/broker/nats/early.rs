//! What waits for its time, for whoever moves it to another broker.
//!
//! # Decisions
//! The consumer of what waits is not asked: it hands each message to whoever lives when that is due. A message is read where
//! it lies, and taken off by its place, which misses when it was moved meanwhile. So it needs no lease while its time is
//! far enough away; what is due within [`MARGIN`] is left to its time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Client;
use super::message::{self, Letter, Moved};
use super::names::{Wait, usual_priority};
use crate::broker::message::Lease;
use crate::broker::{BrokerError, Delivery, Extended, Extender, MessageId, Settled, Settlement, Settler};
use crate::nats::{LinkError, Stored, stream};
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;
use crate::task::{PriorityClass, QueueName};

/// What is due so soon is not handed out before its time, nor taken off: a worker may be moving it.
const MARGIN: Duration = Duration::from_secs(10);

/// The places of what is out.
type Out = Arc<Mutex<HashSet<u64>>>;

/// Hands out what waits for its time, each message once at a time.
#[derive(Default)]
pub(super) struct Early {
    out: Out,
}

/// A message that is out, and lies where it lay.
struct Lying {
    client: Arc<Client>,
    out: Out,
    stored: Stored,
    place: (QueueName, PriorityClass),
    due: Timestamp,
}

impl Early {
    /// At most `credit` messages of the client's queues, soonest first of each place.
    pub(super) async fn take(
        &self,
        client: &Arc<Client>,
        credit: usize,
    ) -> Result<Vec<(Timestamp, Delivery)>, LinkError> {
        let stream = client.names.work_stream();
        let mut found = Vec::new();
        for queue in &client.options.queues {
            for class in PriorityClass::ALL {
                let subject = client.names.place(Wait::Time, queue, class);
                let mut next = 1;
                while found.len() < credit
                    && let Some(stored) = client.link.next_of(&stream, &subject, next).await?
                {
                    next = stored.sequence + 1;
                    let due = Letter::read(&stored.headers).due;
                    let Some(due) = due.filter(|due| is_far(*due)) else { continue };
                    if locked(&self.out).insert(stored.sequence) {
                        let (client, out) = (Arc::clone(client), Arc::clone(&self.out));
                        let place = (queue.clone(), class);
                        found.push((due, delivery(Lying { client, out, stored, place, due })));
                    }
                }
            }
        }
        found.sort_by_key(|(due, _)| *due);
        Ok(found)
    }
}

fn is_far(due: Timestamp) -> bool {
    due > Timestamp::now() + MARGIN
}

fn locked(out: &Out) -> MutexGuard<'_, HashSet<u64>> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

fn delivery(lying: Lying) -> Delivery {
    let letter = Letter::read(&lying.stored.headers);
    let (queue, class) = lying.place.clone();
    let lease = lying.client.options.lease;
    let lying = Arc::new(lying);
    let claim = || Box::new(Claim(Arc::clone(&lying)));
    Delivery {
        message: MessageId(letter.message.unwrap_or_else(|| format!("{queue}/{}", lying.stored.sequence))),
        body: lying.stored.body.clone(),
        queue,
        content_type: letter.content_type,
        content_encoding: letter.encoding,
        headers: letter.headers,
        header_order: KeyOrder::Kept,
        properties: Properties::default(),
        priority: Some(letter.priority.unwrap_or_else(|| usual_priority(class))),
        submitted: Some(letter.submitted.unwrap_or(lying.stored.time)),
        redelivered: letter.again,
        lease: Lease { until: Instant::now() + lease, duration: lease, extender: claim(), settler: claim() },
    }
}

impl Lying {
    /// Takes it off, if its time is still far enough away and nobody was faster.
    async fn remove(&self) -> Result<bool, LinkError> {
        if !is_far(self.due) {
            return Ok(false);
        }
        stream::remove(&self.client.link, &self.client.names.work_stream(), self.stored.sequence).await
    }

    /// Puts it elsewhere, and then takes it off.
    async fn put(&self, place: String, change: impl FnOnce(&mut HeaderMap)) -> Result<bool, LinkError> {
        let letter = Letter::read(&self.stored.headers);
        let own = format!("{}/{}", self.place.0, self.stored.sequence);
        let moved = Moved {
            id: format!("early.{}", self.stored.sequence),
            message: letter.message.as_deref().unwrap_or(&own),
            submitted: letter.submitted.unwrap_or(self.stored.time),
            again: letter.again,
        };
        let mut headers = message::moved(&self.stored.headers, &moved);
        change(&mut headers);
        self.client.link.publish(place, headers, self.stored.body.clone()).await?;
        self.remove().await
    }

    async fn settled(&self, settlement: &Settlement) -> Result<bool, LinkError> {
        let names = &self.client.names;
        match settlement {
            Settlement::Ack => self.remove().await,
            Settlement::Retry { after } | Settlement::Release { after } => {
                let due = Timestamp::now().checked_add(*after).unwrap_or(Timestamp::MAX);
                if due.duration_since(self.due).abs() < jiff::SignedDuration::from_secs(1) {
                    // It lies there for that very time.
                    return Ok(true);
                }
                let place = names.place(Wait::Time, &self.place.0, self.place.1);
                self.put(place, |headers| message::set_due(headers, due)).await
            }
            Settlement::DeadLetter { reason } => {
                self.put(names.dead(&self.place.0), |headers| message::set_dead_reason(headers, reason)).await
            }
        }
    }
}

/// A share in a message that is out.
struct Claim(Arc<Lying>);

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        Ok(if is_far(self.0.due) { Extended::Until(Instant::now() + by) } else { Extended::Lost })
    }
}

#[async_trait]
impl Settler for Claim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        let settled = self.0.settled(&settlement).await;
        locked(&self.0.out).remove(&self.0.stored.sequence);
        match settled {
            Ok(true) => Settled::Settled,
            Ok(false) => Settled::Lost,
            Err(error) => {
                let broker = &self.0.client.place.name;
                tracing::warn!(%broker, %error, "a message could not be settled; its time stays as it was");
                Settled::Unknown
            }
        }
    }
}
