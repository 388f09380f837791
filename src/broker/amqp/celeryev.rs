//! Celery's exchange of events, which monitors such as Flower read.

use std::time::Duration;

use async_trait::async_trait;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use tokio::sync::OnceCell;

use super::Address;
use super::link::Link;
use super::wire::Original;
use crate::broker::{BrokerError, BrokerUrl, celery};

const EXCHANGE: &str = "celeryev";

/// Publishes Celery's events over a connection of its own, opened with the first one.
pub struct Celeryev {
    link: Link,
    made: OnceCell<()>,
}

impl Celeryev {
    /// Events on the broker at `url`; each has `timeout` to be taken.
    pub fn new(url: &BrokerUrl, timeout: Duration) -> Result<Self, BrokerError> {
        let address = Address::read(url)?;
        let link = Link::new(address.uri, url.to_string(), "longshore events".to_owned(), timeout);
        Ok(Self { link, made: OnceCell::new() })
    }
}

#[async_trait]
impl celery::Celeryev for Celeryev {
    async fn tell(&self, kind: &str, node: &str, body: Vec<u8>) -> Result<(), BrokerError> {
        self.made.get_or_try_init(|| self.link.exchange(EXCHANGE, ExchangeKind::Topic)).await?;
        let mut headers = FieldTable::default();
        headers.insert("hostname".into(), AMQPValue::LongString(node.into()));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_headers(headers)
            .with_delivery_mode(1)
            .with_priority(0);
        let message = Original { properties, body: body.into() };
        let key = kind.replacen('-', ".", 1);
        let sent = self.link.send(EXCHANGE, &key, &message, BasicPublishOptions::default()).await?;
        self.link.taken(sent).await.map(drop)
    }
}
