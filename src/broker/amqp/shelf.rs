//! Queues that are read without being emptied: dead letters, cancel requests, paused queues, presences.
//!
//! AMQP lets nobody look into a queue without taking its messages. A reader takes all of them alone, as the queue's only
//! consumer, acknowledges those that are to go, and closes its channel: the rest goes back in its old order.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use rand::RngExt;
use tokio::time::Instant;

use super::Client;
use super::link::{close, is_soft};
use super::wire::{Original, short};
use crate::broker::BrokerError;

/// The shelves.
#[derive(Clone, Copy)]
pub(super) enum Shelf {
    /// Messages that nobody can run.
    Dead,
    /// Tasks that were asked to be canceled.
    Cancels,
    /// Queues that hand nothing out.
    Paused,
    /// Workers.
    Fleet,
}

impl Shelf {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dead => "longshore.dead",
            Self::Cancels => "longshore.cancels",
            Self::Paused => "longshore.paused",
            Self::Fleet => "longshore.fleet",
        }
    }
}

/// What happens to a message on a shelf that was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It stays.
    Keep,
    /// It goes.
    Remove,
}

/// How long a reader waits for the one before him.
const PATIENCE: Duration = Duration::from_secs(10);

impl Client {
    /// Puts a message on a shelf.
    pub(super) async fn shelve(&self, shelf: Shelf, message: &Original) -> Result<(), BrokerError> {
        if self.link.publish("", shelf.name(), message).await? {
            return Ok(());
        }
        self.make(shelf).await?;
        self.link.publish("", shelf.name(), message).await.map(|_| ())
    }

    async fn make(&self, shelf: Shelf) -> Result<(), BrokerError> {
        let declaration = super::link::Declaration { name: shelf.name().to_owned(), arguments: Vec::new() };
        self.link.declare(&declaration).await
    }

    /// Shows every message on a shelf to `look`, the oldest first. Those to be removed are gone when this returns.
    pub(super) async fn browse(
        &self,
        shelf: Shelf,
        mut look: impl FnMut(Original) -> Look + Send,
    ) -> Result<(), BrokerError> {
        // One that seems empty may be in another reader's hands.
        if self.link.ready(shelf.name()).await?.is_none() {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            let channel = self.link.channel().await?;
            let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
            let consuming = channel.basic_consume(
                short(shelf.name()),
                ShortString::default(),
                options,
                FieldTable::default(),
            );
            let mut consumer = match consuming.await {
                Ok(consumer) => consumer,
                Err(error)
                    if is_soft(&error, &AMQPSoftError::ACCESSREFUSED) && started.elapsed() < PATIENCE =>
                {
                    let pause = rand::rng().random_range(5..25);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    continue;
                }
                Err(error) => return Err(self.link.refusal("read a shelf", &error)),
            };
            // Its answer comes behind every message that the shelf had.
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let asked = channel.queue_declare(short(shelf.name()), passive, FieldTable::default());
            self.link.within("read a shelf", asked).await?;
            while let Some(Some(Ok(wired))) = consumer.next().now_or_never() {
                let original =
                    Original { properties: wired.properties.clone(), body: wired.data.clone().into() };
                if look(original) == Look::Remove {
                    let gone = channel.basic_ack(wired.delivery_tag, BasicAckOptions::default());
                    self.link.within("clear a shelf", gone).await?;
                }
            }
            close(channel).await;
            return Ok(());
        }
    }
}
