//! Listing and steering the queues of a hub, and its dead letters.

use async_trait::async_trait;

use super::Client;
use crate::broker::{
    Admin, BrokerError, DeadLetter, DeadLetters, DeadSummary, Intake, QueueInfo, Waiting, WaitingQuery,
};
use crate::task::QueueName;

#[async_trait]
impl Admin for Client {
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        Ok(self.hub.shelves().queues())
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        self.hub.shelves().set_intake(queue, intake);
        self.hub.ring_work();
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        Ok(self.hub.shelves().purge(queue))
    }

    async fn waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError> {
        Ok(self.hub.shelves().waiting(query))
    }
}

#[async_trait]
impl DeadLetters for Client {
    async fn list(&self, queue: Option<&QueueName>, limit: usize) -> Result<Vec<DeadSummary>, BrokerError> {
        let shelves = self.hub.shelves();
        let summaries = shelves.dead.values().rev().map(|letter| &letter.summary);
        Ok(summaries.filter(|s| queue.is_none_or(|queue| *queue == s.queue)).take(limit).cloned().collect())
    }

    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError> {
        Ok(id.parse().ok().and_then(|id: u64| self.hub.shelves().dead.get(&id).cloned()))
    }

    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError> {
        Ok(id.parse().ok().and_then(|id: u64| self.hub.shelves().dead.remove(&id)).is_some())
    }
}
