//! Queues that keep a message for a while and then hand it back: custody of running tasks, and delays.
//!
//! Both dead-letter into the work queue when their TTL has passed. A custody queue holds the only copy of one task; it is
//! renewed by a new copy, after which the older is taken, and deleted when the task is settled.
//!
//! # Decisions
//! `x-expires` counts from the last declaration, not from the last message, and deletes without dead-lettering: so it
//! is always longer than the TTL, and every publication declares the queue again first.

use std::time::Duration;

use jiff::Timestamp;
use lapin::options::{BasicGetOptions, QueueDeleteOptions};
use lapin::types::AMQPValue;

use super::link::{Declaration, close};
use super::wire::{DUE, Original, RENEWAL, digest, short};
use super::{Client, lock};
use crate::broker::BrokerError;
use crate::task::QueueName;

/// Longest delay of one queue: about 24 days; a longer one is made of several.
const LONGEST: u64 = 1 << 31;
/// What a delay queue outlives its messages by.
const SLACK: u64 = 600_000;

/// What became of a renewal.
pub(super) enum Renewed {
    /// The new copy stands alone.
    Yes,
    /// The older copy had gone back to the work queue before.
    TooLate,
}

impl Client {
    /// The custody queue of a message.
    pub(super) fn custody_name(queue: &QueueName, identity: &str) -> String {
        format!("longshore.custody.{}.{}", cut(queue), digest(identity.as_bytes()))
    }

    /// Puts the first copy into custody.
    pub(super) async fn take_custody(
        &self,
        custody: &str,
        queue: &QueueName,
        copy: &Original,
    ) -> Result<(), BrokerError> {
        let lease = millis(self.options.lease);
        self.keep(custody, queue, lease, lease * 4).await?;
        self.publish_there(custody, copy).await
    }

    /// Publishes a new copy, then takes the older one. `renewal` counts up with each.
    pub(super) async fn renew_custody(
        &self,
        custody: &str,
        queue: &QueueName,
        copy: &Original,
        renewal: i64,
    ) -> Result<Renewed, BrokerError> {
        self.take_custody(custody, queue, copy).await?;
        let channel = self.link.channel().await?;
        let got = channel.basic_get(short(custody), BasicGetOptions::default());
        let got = self.link.within("renew a lease", got).await?;
        let mut renewed = Renewed::TooLate;
        if let Some(message) = got {
            let older = Original { properties: message.delivery.properties.clone(), body: Vec::new().into() };
            if older.number(RENEWAL).unwrap_or(0) < renewal {
                let acked = message.delivery.acker.ack(lapin::options::BasicAckOptions::default());
                self.link.within("renew a lease", acked).await?;
                renewed = Renewed::Yes;
            }
        }
        // What was not taken goes back with the channel.
        close(channel).await;
        Ok(renewed)
    }

    /// Deletes a custody queue. Whether it still held its copy.
    pub(super) async fn drop_custody(&self, custody: &str) -> Result<bool, BrokerError> {
        let channel = self.link.channel().await?;
        let deleted = channel.queue_delete(short(custody), QueueDeleteOptions::default());
        let held = self.link.within("settle a message", deleted).await?;
        close(channel).await;
        Ok(held > 0)
    }

    /// Sends `copy` to `queue` at `due`: through a delay queue, or at once when that has passed.
    pub(super) async fn send_at(
        &self,
        queue: &QueueName,
        due: Timestamp,
        copy: &Original,
    ) -> Result<(), BrokerError> {
        let left = due.as_millisecond() - Timestamp::now().as_millisecond();
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else {
            self.declare_work_queue(queue).await?;
            return self.publish_there(queue.as_str(), copy).await;
        };
        self.declare_work_queue(queue).await?;
        let ttl = rounded(left);
        let name = format!("longshore.delay.{}.{ttl}", cut(queue));
        lock(&self.delays).insert((queue.clone(), name.clone()));
        self.keep(&name, queue, ttl, ttl + SLACK).await?;
        let due = AMQPValue::LongLongInt(due.as_millisecond());
        let mut copy = copy.clone();
        let mut headers = copy.properties.headers().clone().unwrap_or_default();
        headers.insert(DUE.into(), due);
        copy.properties = copy.properties.with_headers(headers);
        self.publish_there(&name, &copy).await
    }

    async fn keep(&self, name: &str, queue: &QueueName, ttl: u64, expires: u64) -> Result<(), BrokerError> {
        let number = |n: u64| AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(i64::MAX));
        let arguments = vec![
            ("x-message-ttl", number(ttl)),
            ("x-expires", number(expires)),
            ("x-dead-letter-exchange", super::wire::long("")),
            ("x-dead-letter-routing-key", super::wire::long(queue.as_str())),
        ];
        self.link.declare(&Declaration { name: name.to_owned(), arguments }).await
    }

    async fn publish_there(&self, queue: &str, copy: &Original) -> Result<(), BrokerError> {
        if self.link.publish("", queue, copy).await? {
            return Ok(());
        }
        Err(self.link.unavailable(format!("the queue {queue} was deleted meanwhile")))
    }
}

/// A queue's name as a part of another, cut so that the whole fits.
fn cut(queue: &QueueName) -> String {
    let name = queue.as_str();
    if name.len() <= 150 { name.to_owned() } else { digest(name.as_bytes()) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(LONGEST).clamp(1, LONGEST)
}

/// At most `left`, in two digits, so that few queues serve all delays.
fn rounded(left: u64) -> u64 {
    let left = left.min(LONGEST);
    let mut unit = 1;
    while left / unit >= 100 {
        unit *= 10;
    }
    left / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_rounded_down_to_two_digits_and_bounded() {
        for (left, ttl) in [(1, 1), (99, 99), (400, 400), (1_234, 1_200), (86_399_999, 86_000_000)] {
            assert_eq!(rounded(left), ttl);
        }
        assert!(rounded(u64::MAX) <= LONGEST);
    }
}
