//! Taking work: waits for the hub's bell or the next timer, and never looks in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use super::shelves::{ClaimKey, Claimed};
use super::{Client, Hub, timestamp_of};
use crate::broker::message::Lease;
use crate::broker::{
    BrokerError, Delivery, Extended, Extender, MessageId, Settled, Settlement, Settler, Source,
};
use crate::cancel::CancelScope;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;

#[async_trait]
impl Source for Client {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.options.queues.is_empty() {
            return Err(BrokerError::Refused {
                broker: self.hub.name.clone(),
                action: "hand out work",
                reason: "it was opened without queues; name at least one".to_owned(),
            });
        }
        let mut work = self.hub.work.subscribe();
        while !stop.is_canceled() {
            work.mark_unchanged();
            let (deliveries, next_due) = self.look(credit);
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.canceled() => {}
                () = due => {}
                // Never an error: the hub that we hold owns the sender.
                _ = work.changed() => {}
            }
        }
        Ok(Vec::new())
    }

    fn lease(&self) -> Duration {
        self.options.lease
    }

    async fn fetch_delayed(&self, credit: usize) -> Result<Option<Vec<(Timestamp, Delivery)>>, BrokerError> {
        let until = Instant::now() + self.options.lease;
        let owner = self.owner();
        let claimed = self.hub.shelves().claim_early(&self.options.queues, credit, until, &owner);
        let early = |(due, claimed)| (timestamp_of(due), self.delivery(claimed, until));
        Ok(Some(claimed.into_iter().map(early).collect()))
    }
}

impl Client {
    fn owner(&self) -> String {
        format!("{}/{}", self.options.worker, self.options.incarnation)
    }

    fn look(&self, credit: usize) -> (Vec<Delivery>, Option<Instant>) {
        self.hub.looks.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let until = now + self.options.lease;
        let owner = self.owner();
        let (claimed, next_due, promoted) = {
            let mut shelves = self.hub.shelves();
            let promoted = shelves.promote(now);
            (shelves.claim(&self.options.queues, credit, until, &owner), shelves.next_due(), promoted)
        };
        // What became ready may be of a queue that only others fetch from.
        if promoted {
            self.hub.ring_work();
        }
        let deliveries = claimed.into_iter().map(|claimed| self.delivery(claimed, until)).collect();
        (deliveries, next_due)
    }

    fn delivery(&self, claimed: Claimed, until: Instant) -> Delivery {
        let submission = claimed.submission;
        let priority = Some(submission.priority);
        let key = ClaimKey { id: claimed.id, token: claimed.token };
        let claim = || Box::new(Claim { hub: Arc::clone(&self.hub), key });
        Delivery {
            message: MessageId(claimed.id.to_string()),
            queue: submission.queue,
            body: submission.body,
            content_type: Some(submission.content_type),
            content_encoding: submission.content_encoding,
            headers: submission.headers,
            header_order: KeyOrder::Kept,
            properties: Properties::default(),
            priority,
            submitted: Some(claimed.submitted),
            redelivered: claimed.redelivered,
            lease: Lease { until, duration: self.options.lease, extender: claim(), settler: claim() },
        }
    }
}

/// One half of a lease; which one the trait says.
struct Claim {
    hub: Arc<Hub>,
    key: ClaimKey,
}

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        let until = Instant::now() + by;
        let mut shelves = self.hub.shelves();
        let next_due = shelves.next_due();
        let extended = shelves.extend(self.key, until);
        // Whoever waits has set his timer to what was due next.
        if next_due.is_some_and(|due| until < due) {
            self.hub.ring_work();
        }
        Ok(extended)
    }
}

#[async_trait]
impl Settler for Claim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        let gives_back = matches!(settlement, Settlement::Retry { .. } | Settlement::Release { .. });
        let settled = self.hub.shelves().settle(self.key, settlement, Instant::now());
        if gives_back {
            self.hub.ring_work();
        }
        settled
    }
}
