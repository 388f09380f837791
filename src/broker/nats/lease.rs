//! The two halves of a lease.
//!
//! # Decisions
//! - No message of this server can be fenced: it takes a stale acknowledgement, also when another has the message. So a lease
//!   that has lapsed by this process' own clock is lost, and the server is not asked: what the others do is not disturbed.
//!   A process that stood still between the two can still disturb it; the record's fence guards every effect, as everywhere.
//! - The server knows one acknowledgement time per consumer. A lease that is to last longer is kept by telling it in time
//!   that the message is in progress.
//! - What is given back for later is published to its place among what waits and acknowledged then: delayed naks would stay
//!   in the consumer's account of unacknowledged messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Client;
use super::message::{self, Moved};
use super::names::Wait;
use crate::broker::{BrokerError, Extended, Extender, Settled, Settlement, Settler};
use crate::nats::{AckInfo, LinkError};
use crate::task::{PriorityClass, QueueName};

const ACK: &[u8] = b"+ACK";
const NAK: &[u8] = b"-NAK";
const IN_PROGRESS: &[u8] = b"+WPI";

/// A message that was handed over.
pub(super) struct Held {
    pub(super) client: Arc<Client>,
    pub(super) info: AckInfo,
    pub(super) queue: QueueName,
    pub(super) class: PriorityClass,
    /// Who it is, also when it was moved.
    pub(super) message: String,
    pub(super) submitted: Timestamp,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// How long the server waits for a sign of life.
    pub(super) ack_wait: Duration,
    state: Mutex<State>,
    kept: AtomicBool,
}

struct State {
    until: Instant,
    ended: bool,
}

/// What a message is held with.
pub(super) struct Received {
    pub(super) info: AckInfo,
    pub(super) place: (QueueName, PriorityClass),
    pub(super) message: String,
    pub(super) submitted: Timestamp,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) ack_wait: Duration,
}

impl Held {
    pub(super) fn new(client: &Arc<Client>, received: Received, until: Instant) -> Arc<Self> {
        let Received { info, place: (queue, class), message, submitted, headers, body, ack_wait } = received;
        let (client, state) = (Arc::clone(client), Mutex::new(State { until, ended: false }));
        let kept = AtomicBool::new(false);
        let held = Arc::new(Self {
            client,
            info,
            queue,
            class,
            message,
            submitted,
            headers,
            body,
            ack_wait,
            state,
            kept,
        });
        held.keep_until(until);
        held
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when it is held; `None` once it is not.
    pub(super) fn until(&self) -> Option<Instant> {
        let state = self.state();
        (!state.ended && state.until > Instant::now()).then_some(state.until)
    }

    /// Whether it is ours to settle; nobody asks twice.
    fn take(&self) -> bool {
        let mut state = self.state();
        let ours = !state.ended && state.until > Instant::now();
        state.ended = true;
        ours
    }

    /// Tells the server in time that the message is in progress when the lease is to last longer than it would wait.
    fn keep_until(self: &Arc<Self>, until: Instant) {
        let soon = Instant::now() + self.ack_wait + Duration::from_millis(1);
        if until <= soon || self.kept.swap(true, Ordering::Relaxed) {
            return;
        }
        let held = Arc::clone(self);
        // Ends with the lease.
        tokio::spawn(async move {
            while held.until().is_some() {
                if held
                    .client
                    .link
                    .send(held.info.reply.clone(), Bytes::from_static(IN_PROGRESS))
                    .await
                    .is_err()
                {
                    break;
                }
                tokio::time::sleep(held.ack_wait / 3).await;
            }
            held.kept.store(false, Ordering::Relaxed);
        });
    }

    async fn settled(&self, settlement: &Settlement) -> Result<(), LinkError> {
        let after = match settlement {
            Settlement::Ack => return self.confirm(ACK).await,
            Settlement::Retry { after } | Settlement::Release { after } => *after,
            Settlement::DeadLetter { reason } => return self.park(reason).await,
        };
        if after.is_zero() {
            return self.confirm(NAK).await;
        }
        let due = Timestamp::now().checked_add(after).unwrap_or(Timestamp::MAX);
        let mut headers = self.moved("later");
        message::set_due(&mut headers, due);
        self.publish(self.client.names.place(Wait::Time, &self.queue, self.class), headers).await
    }

    async fn park(&self, reason: &str) -> Result<(), LinkError> {
        let mut headers = self.moved("dead");
        message::set_dead_reason(&mut headers, reason);
        self.publish(self.client.names.dead(&self.queue), headers).await
    }

    fn moved(&self, what: &str) -> HeaderMap {
        let (sequence, delivered) = (self.info.sequence, self.info.delivered);
        let id = format!("{what}.{sequence}.{delivered}");
        let moved = Moved { id, message: &self.message, submitted: self.submitted, again: true };
        message::moved(&self.headers, &moved)
    }

    /// Puts it into its new place, and then takes it from the old one.
    async fn publish(&self, place: String, headers: HeaderMap) -> Result<(), LinkError> {
        self.client.link.publish(place, headers, self.body.clone()).await?;
        self.confirm(ACK).await
    }

    async fn confirm(&self, what: &'static [u8]) -> Result<(), LinkError> {
        self.client.link.confirm(&self.info.reply, what).await
    }

    fn told(&self, ended: Result<(), LinkError>) -> Settled {
        self.client.forget(self.info.sequence);
        match ended {
            Ok(()) => Settled::Settled,
            Err(error) => {
                let broker = &self.client.place.name;
                tracing::warn!(%broker, %error, "a message could not be settled; its lease will lapse");
                Settled::Unknown
            }
        }
    }
}

/// A share in a held message.
pub(super) struct Claim(pub(super) Arc<Held>);

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        let held = &self.0;
        if held.until().is_none() {
            return Ok(Extended::Lost);
        }
        // Before the server reckons: the lease must not seem to last longer than it does.
        let until = Instant::now() + by;
        // Sooner than a lease ends: an answer that got lost must not keep the next try from being made.
        let patience = held.ack_wait / 4;
        let confirmed = tokio::time::timeout(patience, held.confirm(IN_PROGRESS)).await;
        let confirmed = confirmed
            .unwrap_or_else(|_| Err(LinkError::Unavailable(format!("no answer within {patience:?}"))));
        confirmed.map_err(held.client.cannot("prolong a lease"))?;
        {
            let mut state = held.state();
            if state.ended {
                return Ok(Extended::Lost);
            }
            state.until = until;
        }
        held.keep_until(until);
        Ok(Extended::Until(until))
    }
}

#[async_trait]
impl Settler for Claim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        let held = &self.0;
        if !held.take() {
            held.client.forget(held.info.sequence);
            return Settled::Lost;
        }
        held.told(held.settled(&settlement).await)
    }

    fn forwards(&self) -> bool {
        true
    }

    async fn forward(self: Box<Self>, queue: &QueueName) -> Settled {
        let held = &self.0;
        if !held.take() {
            held.client.forget(held.info.sequence);
            return Settled::Lost;
        }
        let place = held.client.names.place(Wait::Turn, queue, held.class);
        held.told(held.publish(place, held.moved("forward")).await)
    }
}
