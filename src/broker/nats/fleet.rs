//! Who works here: a bucket with one key per worker. The server's buckets tell nobody when a key's age ends, so a presence
//! carries its deadline.

use async_nats::HeaderMap;
use async_trait::async_trait;
use jiff::Timestamp;

use super::names::{Names, bucket_stream, key_subject};
use super::{Client, refusal};
use crate::broker::{BrokerError, Fleet, Presence};
use crate::nats::stream::purge;
use crate::nats::{From, LinkError, Scan};

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        let document = serde_json::to_vec(presence).expect("invariant: a presence has text keys");
        let subject = self.worker_subject(&presence.worker);
        let announced = self.link.publish(subject, HeaderMap::new(), document.into()).await;
        announced.map(drop).map_err(self.cannot("announce a worker"))
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        let stream = bucket_stream(&self.names.workers_bucket());
        let left = purge(&self.link, &stream, &self.worker_subject(worker)).await;
        left.map(drop).map_err(self.cannot("say that a worker left"))
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let cannot = "list its workers";
        let bucket = self.names.workers_bucket();
        let filter = key_subject(&bucket, ">");
        let scan = Scan::whole(&self.link, &bucket_stream(&bucket), &filter, From::Oldest).await;
        let kept = scan.map_err(self.cannot(cannot))?.rest().await.map_err(self.cannot(cannot))?;
        let now = Timestamp::now();
        let mut workers = Vec::with_capacity(kept.len());
        for stored in kept {
            let presence: Presence = serde_json::from_slice(&stored.body).map_err(|error| {
                refusal(&self.place.name, cannot, LinkError::Unreadable(error.to_string()))
            })?;
            // From when the server took it: workers' clocks may differ from ours.
            let lasts = presence.deadline.duration_since(presence.seen);
            if stored.time.checked_add(lasts).is_ok_and(|end| end > now) {
                workers.push(presence);
            }
        }
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        Ok(workers)
    }
}

impl Client {
    fn worker_subject(&self, worker: &str) -> String {
        key_subject(&self.names.workers_bucket(), &Names::worker_key(worker))
    }
}
