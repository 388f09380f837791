//! Who works here: presences on a shelf.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::BasicProperties;

use super::Client;
use super::shelf::{Look, Shelf};
use super::wire::Original;
use crate::broker::{BrokerError, Fleet, Presence};

impl Client {
    /// Removes what the worker said before, and what stopped being true.
    async fn forget_worker(&self, worker: &str, but: Option<&Presence>) -> Result<(), BrokerError> {
        self.browse(Shelf::Fleet, |original| match presence(&original) {
            Some(found) if Some(&found) == but => Look::Keep,
            Some(found) if found.worker != worker && found.deadline > Timestamp::now() => Look::Keep,
            Some(_) | None => Look::Remove,
        })
        .await
    }
}

fn presence(original: &Original) -> Option<Presence> {
    serde_json::from_slice(&original.body).ok()
}

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        let body = serde_json::to_vec(presence).expect("invariant: a presence is plain data");
        let message =
            Original { properties: BasicProperties::default().with_delivery_mode(1), body: body.into() };
        self.shelve(Shelf::Fleet, &message).await?;
        self.forget_worker(&presence.worker, Some(presence)).await
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        self.forget_worker(worker, None).await
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let mut newest: BTreeMap<String, Presence> = BTreeMap::new();
        self.browse(Shelf::Fleet, |original| {
            if let Some(found) = presence(&original).filter(|found| found.deadline > Timestamp::now())
                && newest.get(&found.worker).is_none_or(|known| known.seen <= found.seen)
            {
                newest.insert(found.worker.clone(), found);
            }
            Look::Keep
        })
        .await?;
        Ok(newest.into_values().collect())
    }
}
