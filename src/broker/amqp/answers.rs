//! Answers to callers: published to a queue that the caller made, whether it is still there or not.

use std::time::Duration;

use async_trait::async_trait;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::FieldTable;

use super::Address;
use super::link::Link;
use super::wire::{Original, short};
use crate::broker::{BrokerError, BrokerUrl, celery};

/// Publishes answers over a connection of its own, opened with the first one.
pub struct Answers {
    link: Link,
}

impl Answers {
    /// Answers on the broker at `url`; each has `timeout` to be taken.
    pub fn new(url: &BrokerUrl, timeout: Duration) -> Result<Self, BrokerError> {
        let address = Address::read(url)?;
        Ok(Self { link: Link::new(address.uri, url.to_string(), "longshore results".to_owned(), timeout) })
    }
}

#[async_trait]
impl celery::Answers for Answers {
    async fn send(&self, queue: &str, correlation: &str, body: Vec<u8>) -> Result<(), BrokerError> {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_headers(FieldTable::default())
            .with_delivery_mode(1)
            .with_priority(0)
            .with_correlation_id(short(correlation));
        let message = Original { properties, body: body.into() };
        let sent = self.link.send("", queue, &message, BasicPublishOptions::default()).await?;
        self.link.taken(sent).await.map(drop)
    }
}
