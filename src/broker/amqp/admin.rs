//! Listing and steering queues, as far as AMQP lets one.

use std::collections::BTreeSet;

use async_trait::async_trait;
use lapin::options::QueuePurgeOptions;

use super::link::close;
use super::wire::short;
use super::{Client, lock};
use crate::broker::{Admin, BrokerError, Fleet, Intake, MessageId, QueueInfo, Waiting, WaitingQuery};
use crate::task::QueueName;

/// A custody queue as lists show one.
fn in_custody(name: String, kept: u64) -> Option<QueueInfo> {
    let name = QueueName::new(name).ok()?;
    let intake = Intake::Paused;
    Some(QueueInfo { name, ready: 0, leased: kept, delayed: 0, dead: 0, intake, oldest: None })
}

#[async_trait]
impl Admin for Client {
    /// The queues that are named here or that a worker fetches from; and the custody queues that are held here, each with
    /// the one message in it.
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        self.listen().await?;
        let mut names: BTreeSet<QueueName> = lock(&self.known).clone();
        names.extend(self.options.queues.iter().cloned());
        for presence in self.workers().await? {
            names.extend(presence.queues);
        }
        let letters = self.letters().await?;
        names.extend(letters.iter().map(|(summary, _)| summary.queue.clone()));
        let delays = lock(&self.delays).clone();
        let mut queues = Vec::new();
        for name in names {
            let Some(ready) = self.link.ready(name.as_str()).await? else { continue };
            let mut delayed = 0;
            for (_, delay) in delays.iter().filter(|(queue, _)| *queue == name) {
                delayed += u64::from(self.link.ready(delay).await?.unwrap_or(0));
            }
            let paused = self.listener.is_paused(&name);
            queues.push(QueueInfo {
                ready: u64::from(ready),
                leased: self.holds.count(&name),
                delayed,
                dead: letters.iter().filter(|(summary, _)| summary.queue == name).count() as u64,
                intake: if paused { Intake::Paused } else { Intake::Open },
                oldest: None,
                name,
            });
        }
        queues.extend(self.holds.custody().into_iter().filter_map(|name| in_custody(name, 1)));
        Ok(queues)
    }

    async fn custody(&self, held: &[(QueueName, MessageId)]) -> Result<Vec<QueueInfo>, BrokerError> {
        let mut queues = Vec::new();
        for (queue, message) in held {
            let name = Self::custody_name(queue, &message.0);
            if let Some(kept) = self.link.ready(&name).await? {
                queues.extend(in_custody(name, u64::from(kept)));
            }
        }
        Ok(queues)
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        self.steer(queue, intake).await
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let mut names = vec![queue.to_string()];
        names.extend(
            lock(&self.delays)
                .iter()
                .filter(|(leads_to, _)| leads_to == queue)
                .map(|(_, delay)| delay.clone()),
        );
        let mut purged = 0;
        for name in names {
            if self.link.ready(&name).await?.is_none() {
                continue;
            }
            let channel = self.link.channel().await?;
            let gone = channel.queue_purge(short(&name), QueuePurgeOptions::default());
            purged += u64::from(self.link.within("purge a queue", gone).await?);
            close(channel).await;
        }
        Ok(purged)
    }

    async fn waiting(&self, _query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError> {
        Err(self.unsupported("list what waits: AMQP shows nobody a message without taking it"))
    }
}
