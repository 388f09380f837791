//! Listing and steering queues, as far as AMQP lets one.

use std::collections::BTreeSet;

use async_trait::async_trait;
use lapin::options::QueuePurgeOptions;

use super::link::close;
use super::wire::short;
use super::{Client, lock};
use crate::broker::{Admin, BrokerError, Fleet, Intake, QueueInfo, Waiting, WaitingQuery};
use crate::task::QueueName;

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
        for custody in self.holds.custody() {
            if let Ok(name) = QueueName::new(custody) {
                let intake = Intake::Paused;
                queues.push(QueueInfo {
                    name,
                    ready: 0,
                    leased: 1,
                    delayed: 0,
                    dead: 0,
                    intake,
                    oldest: None,
                });
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
