//! Celery's native delayed delivery: where its producers use quorum queues, what has a time waits in a ladder of exchanges and queues
//! and not at a worker. Workers are who makes the ladder and ties their queues to it; without it such a message is lost at once.
//!
//! Declared as kombu 5.5 and later do it (`kombu/transport/native_delayed_delivery.py`): level n waits 2^n seconds, and a message
//! climbs down by the binary digits of its delay, with which its routing key begins.
//!
//! # Decisions
//! - A work queue is tied to the ladder's end itself, and not through its exchange, whose kind only its maker knows. RabbitMQ gives a
//!   queue one copy of a message, however many ways lead there; so a Python worker beside changes nothing.
//! - AMQP does not tell what kind a queue is. Declared as a plain quorum queue, one that is such stays as it is, and anything else
//!   answers 406. One with more arguments counts as classic: `delayed_delivery=on` says it.

use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::link::{close, is_soft, table};
use super::wire::{long, short};
use super::{Client, DelayedDelivery, QueueType};
use crate::broker::BrokerError;
use crate::task::QueueName;

/// The levels of the ladder.
const LEVELS: u32 = 28;
/// Its end.
const DELIVERY: &str = "celery_delayed_delivery";

/// The arguments of a plain quorum queue.
pub(super) fn quorum() -> Vec<(&'static str, AMQPValue)> {
    vec![("x-queue-type", long("quorum"))]
}

fn level_name(level: u32) -> String {
    format!("celery_delayed_{level}")
}

/// What a message of a level meets when its digit there is `digit`: the digits before it are any.
fn digit_key(level: u32, digit: char) -> String {
    format!("{}{digit}.#", "*.".repeat((LEVELS - 1 - level) as usize))
}

impl Client {
    /// What kind a work queue is that somebody made.
    pub(super) async fn kind_of(&self, queue: &QueueName) -> Result<QueueType, BrokerError> {
        // Where it makes no difference, nothing is asked.
        if self.address.delayed_delivery != DelayedDelivery::AsQueues {
            return Ok(QueueType::Classic);
        }
        let channel = self.link.channel().await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(short(queue.as_str()), options, table(&quorum()));
        match tokio::time::timeout(self.options.connect_timeout, asked).await {
            Ok(Ok(_)) => {
                close(channel).await;
                Ok(QueueType::Quorum)
            }
            Ok(Err(error))
                if is_soft(&error, &AMQPSoftError::PRECONDITIONFAILED)
                    || is_soft(&error, &AMQPSoftError::ACCESSREFUSED)
                    || is_soft(&error, &AMQPSoftError::RESOURCELOCKED) =>
            {
                Ok(QueueType::Classic)
            }
            Ok(Err(error)) => Err(self.link.refusal("look at a queue", &error)),
            Err(_) => Err(self.link.unavailable("no answer to a question about a queue".to_owned())),
        }
    }

    /// Makes the ladder and ties `queue` to it, where producers use it.
    pub(super) async fn delay_natively(&self, queue: &QueueName, kind: QueueType) -> Result<(), BrokerError> {
        let wanted = match (self.address.delayed_delivery, kind) {
            (DelayedDelivery::On, _) | (DelayedDelivery::AsQueues, QueueType::Quorum) => true,
            (DelayedDelivery::Off, _) | (DelayedDelivery::AsQueues, QueueType::Classic) => false,
        };
        if !wanted {
            return Ok(());
        }
        let channel = self.link.channel().await?;
        self.make_exchange(&channel, DELIVERY).await?;
        let tied = channel.queue_bind(
            short(queue.as_str()),
            short(DELIVERY),
            short(&format!("#.{queue}")),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.link.within("tie a queue to Celery's delayed delivery", tied).await?;
        self.ladder_made.get_or_try_init(|| self.make_ladder(&channel)).await?;
        close(channel).await;
        Ok(())
    }

    /// From its end to its top, where producers publish: until all of it stands they are refused, and nothing falls through.
    async fn make_ladder(&self, channel: &Channel) -> Result<(), BrokerError> {
        let mut next = DELIVERY.to_owned();
        for level in 0..LEVELS {
            self.make_level(channel, level, &next).await?;
            next = level_name(level);
        }
        Ok(())
    }

    async fn make_exchange(&self, channel: &Channel, name: &str) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let made = channel.exchange_declare(short(name), ExchangeKind::Topic, options, FieldTable::default());
        self.link.within("make Celery's delayed delivery", made).await
    }

    async fn make_level(&self, channel: &Channel, level: u32, next: &str) -> Result<(), BrokerError> {
        let name = level_name(level);
        let arguments = [
            ("x-queue-type", long("quorum")),
            ("x-overflow", long("reject-publish")),
            ("x-message-ttl", AMQPValue::LongLongInt(1_000_i64 << level)),
            ("x-dead-letter-exchange", long(next)),
            ("x-dead-letter-strategy", long("at-least-once")),
        ];
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let made = channel.queue_declare(short(&name), options, table(&arguments));
        self.link.within("make Celery's delayed delivery", made).await?;
        self.make_exchange(channel, &name).await?;
        let waits = channel.queue_bind(
            short(&name),
            short(&name),
            short(&digit_key(level, '1')),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.link.within("make Celery's delayed delivery", waits).await?;
        let passes = channel.exchange_bind(
            short(next),
            short(&name),
            short(&digit_key(level, '0')),
            ExchangeBindOptions::default(),
            FieldTable::default(),
        );
        self.link.within("make Celery's delayed delivery", passes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_looks_at_its_own_digit() {
        assert_eq!(digit_key(27, '1'), "1.#");
        assert_eq!(digit_key(26, '0'), "*.0.#");
        assert_eq!(digit_key(0, '1').matches("*.").count(), 27);
    }
}
