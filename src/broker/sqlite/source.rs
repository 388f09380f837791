//! Taking work: looks once, then sleeps until the bell rings, the next timer is due, or a look is due for safety.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use super::claims::{self, ClaimKey, Claimed, Look};
use super::{Client, priority};
use crate::broker::message::Lease;
use crate::broker::{
    BrokerError, Delivery, Extended, Extender, MessageId, Part, Settled, Settlement, Settler, Source,
};
use crate::cancel::CancelScope;
use crate::sqlite::{Signal, Waiter, Work, clock};
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;

/// Fetches for one client.
pub(super) struct Fetcher {
    client: Arc<Client>,
    owner: String,
    /// Kept between fetches, so that a socket is not made for each.
    waiters: Mutex<Vec<Waiter>>,
}

impl Fetcher {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let owner = format!("{}/{}", client.options.worker, client.options.incarnation);
        Self { client, owner, waiters: Mutex::default() }
    }

    fn take_waiter(&self) -> Waiter {
        let kept = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| self.client.database.waiter(Signal::Work))
    }

    fn keep_waiter(&self, waiter: Waiter) {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).push(waiter);
    }

    async fn wait_for_work(
        &self,
        credit: usize,
        stop: &CancelScope,
        waiter: &mut Waiter,
    ) -> Result<Vec<Delivery>, BrokerError> {
        while !stop.is_canceled() {
            waiter.arm();
            let next = match self.look(credit).await? {
                (Look::Found(claimed), until) => {
                    return Ok(claimed.into_iter().map(|claimed| self.delivery(claimed, until)).collect());
                }
                (Look::Nothing { next }, _) => next,
            };
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.canceled() => {}
                () = due => {}
                () = waiter.rung() => {}
            }
        }
        Ok(Vec::new())
    }

    async fn look(&self, credit: usize) -> Result<(Look, Instant), BrokerError> {
        self.client.database.count_look();
        let queues = self.client.options.queues.clone();
        let owner = self.owner.clone();
        let lease = self.client.options.lease;
        // Before the claim: the lease must not seem to last longer than it does.
        let until = Instant::now() + lease;
        let written = self
            .client
            .database
            .write(move |transaction| claims::look(transaction, &queues, credit, lease, &owner));
        Ok((written.await.map_err(self.client.cannot("hand out work"))?, until))
    }

    fn delivery(&self, claimed: Claimed, until: Instant) -> Delivery {
        let claim = || Box::new(Claim { client: Arc::clone(&self.client), key: claimed.key });
        let lease = Lease { until, duration: self.client.options.lease, extender: claim(), settler: claim() };
        Delivery {
            message: MessageId(claimed.key.id.to_string()),
            queue: claimed.queue,
            body: claimed.body,
            content_type: Some(claimed.content_type),
            content_encoding: claimed.content_encoding,
            headers: claimed.headers,
            header_order: KeyOrder::Kept,
            properties: Properties::default(),
            priority: Some(priority(claimed.rank)),
            submitted: Some(clock::timestamp(claimed.submitted)),
            redelivered: claimed.key.token > 1,
            lease,
        }
    }
}

#[async_trait]
impl Source for Fetcher {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.client.options.queues.is_empty() {
            return Err(BrokerError::Refused {
                broker: self.client.name.clone(),
                action: "hand out work",
                reason: "it was opened without queues; name at least one".to_owned(),
            });
        }
        let mut waiter = self.take_waiter();
        let fetched = self.wait_for_work(credit, stop, &mut waiter).await;
        self.keep_waiter(waiter);
        fetched
    }

    fn lease(&self) -> Duration {
        self.client.options.lease
    }

    async fn fetch_delayed(&self, credit: usize) -> Result<Option<Vec<(Timestamp, Delivery)>>, BrokerError> {
        let (queues, owner) = (self.client.options.queues.clone(), self.owner.clone());
        let lease = self.client.options.lease;
        let until = Instant::now() + lease;
        let written = self
            .client
            .database
            .write(move |transaction| claims::early(transaction, &queues, credit, lease, &owner));
        let found = written.await.map_err(self.client.cannot("hand out what is delayed"))?;
        let early = |(due, claimed)| (clock::timestamp(due), self.delivery(claimed, until));
        Ok(Some(found.into_iter().map(early).collect()))
    }
}

/// One half of a lease; which one the trait says.
struct Claim {
    client: Arc<Client>,
    key: ClaimKey,
}

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        let key = self.key;
        let until = Instant::now() + by;
        let shorter = by < self.client.options.lease;
        let written = self.client.database.write(move |transaction| {
            let stood = claims::extend(transaction, key, by)?;
            if stood && shorter {
                // Whoever waits may have set his timer to a later end.
                transaction.ring(Signal::Work);
            }
            Ok(stood)
        });
        let stood = written.await.map_err(self.client.cannot("prolong a lease"))?;
        Ok(if stood { Extended::Until(until) } else { Extended::Lost })
    }
}

#[async_trait]
impl Settler for Claim {
    fn acknowledgement(&self) -> Option<Part> {
        let key = self.key;
        Some(Part::new(Work::new(move |transaction| {
            Ok(claims::settle(transaction, key, &Settlement::Ack)? == Settled::Settled)
        })))
    }

    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        let key = self.key;
        let written =
            self.client.database.write(move |transaction| claims::settle(transaction, key, &settlement));
        written.await.unwrap_or_else(|error| {
            tracing::warn!(broker = %self.client.name, %error, "a message could not be settled; its lease will lapse");
            Settled::Unknown
        })
    }
}
