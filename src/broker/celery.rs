//! What Celery's programs say to each other beside tasks: remote control, events for monitors, answers to callers.
//!
//! The traits of the three, and a row for each adapter whose broker carries them. What is said there is told in `crate::celery`.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::{BrokerError, BrokerUrl, amqp, celery_redis};

/// The adapters of brokers that Celery uses, by URL scheme.
pub const SPEAKERS: &[Speaker] = &[
    Speaker {
        schemes: amqp::ADAPTER.schemes,
        unnamed: Unnamed::Rpc,
        pidbox: |url, node, timeout| Ok(Box::new(amqp::Pidbox::new(url, node, timeout)?)),
        celeryev: |url, timeout| Ok(Box::new(amqp::Celeryev::new(url, timeout)?)),
        answers: |url, timeout| Ok(Box::new(amqp::Answers::new(url, timeout)?)),
    },
    Speaker {
        schemes: celery_redis::ADAPTER.schemes,
        unnamed: Unnamed::Nowhere,
        pidbox: |url, node, timeout| Ok(Box::new(celery_redis::Pidbox::new(url, node, timeout)?)),
        celeryev: |url, timeout| Ok(Box::new(celery_redis::Celeryev::new(url, timeout)?)),
        answers: |url, timeout| Ok(Box::new(celery_redis::Answers::new(url, timeout)?)),
    },
];

/// How the broker at `url` carries what Celery's programs say; `None` where it does not.
pub fn speaker(url: &BrokerUrl) -> Option<&'static Speaker> {
    SPEAKERS.iter().find(|speaker| speaker.schemes.contains(&url.scheme()))
}

/// What was opened, or why not.
pub type Opened<T> = Result<Box<T>, BrokerError>;

/// How one kind of broker carries it.
pub struct Speaker {
    /// The URL schemes that it is for.
    pub schemes: &'static [&'static str],
    /// Where results go when no backend is named.
    pub unnamed: Unnamed,
    /// The mailbox of a node; each answer has so long to be taken.
    pub pidbox: fn(&BrokerUrl, &str, Duration) -> Opened<dyn Pidbox>,
    /// The exchange of events; each has so long to be taken.
    pub celeryev: fn(&BrokerUrl, Duration) -> Opened<dyn Celeryev>,
    /// The answers; each has so long to be taken.
    pub answers: fn(&BrokerUrl, Duration) -> Opened<dyn Answers>,
}

impl fmt::Debug for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Speaker").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

/// Where results go when no backend is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// To the queue that each message names, as girder_worker has it on AMQP.
    Rpc,
    /// Nowhere. On Redis callers of every backend name a queue, and most read none: answers would pile up there.
    Nowhere,
}

/// A worker's mailbox of remote control.
#[async_trait]
pub trait Pidbox: Send + Sync {
    /// The broker, without secrets.
    fn broker(&self) -> &str;
    /// Requests as they come, but those whose sender waits no longer; the stream ends when the connection breaks.
    async fn requests(&self) -> Result<BoxStream<'static, Bytes>, BrokerError>;
    /// Answers the request with `ticket`, where its sender reads answers with `routing_key`. Nobody is told when that
    /// sender has gone.
    async fn answer(
        &self,
        routing_key: &str,
        ticket: &str,
        clock: u64,
        body: Vec<u8>,
    ) -> Result<(), BrokerError>;
}

/// Celery's exchange of events.
#[async_trait]
pub trait Celeryev: Send + Sync {
    /// Publishes the event `body` of the type `kind`, such as `task-started`, as `node`. Monitors that are away miss it.
    async fn tell(&self, kind: &str, node: &str, body: Vec<u8>) -> Result<(), BrokerError>;
}

/// Answers to callers.
#[async_trait]
pub trait Answers: Send + Sync {
    /// Puts a JSON document into `queue` as Celery's `rpc://` does; returns when the server has taken it. Nobody is told when
    /// its caller is gone.
    async fn send(&self, queue: &str, correlation: &str, body: Vec<u8>) -> Result<(), BrokerError>;
}
