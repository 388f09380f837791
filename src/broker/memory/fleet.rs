//! Who works on a hub.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Client, instant_of, lock};
use crate::broker::{BrokerError, Fleet, Presence};

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        let deadline = instant_of(presence.deadline);
        lock(&self.hub.fleet).insert(presence.worker.clone(), (presence.clone(), deadline));
        Ok(())
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        lock(&self.hub.fleet).remove(worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let mut fleet = lock(&self.hub.fleet);
        let now = Instant::now();
        fleet.retain(|_, (_, deadline)| *deadline > now);
        let mut workers: Vec<Presence> = fleet.values().map(|(presence, _)| presence.clone()).collect();
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        Ok(workers)
    }
}
