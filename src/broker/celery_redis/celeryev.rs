//! Celery's exchange of events, which monitors such as Flower read: channels, one for each kind of event.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::envelope;
use super::side::Side;
use crate::broker::{BrokerError, BrokerUrl, celery};

const EXCHANGE: &str = "celeryev";

/// Publishes Celery's events.
pub struct Celeryev {
    side: Side,
}

impl Celeryev {
    /// Events on the broker at `url`; each has `timeout` to be taken.
    pub fn new(url: &BrokerUrl, timeout: Duration) -> Result<Self, BrokerError> {
        Ok(Self { side: Side::new(url, timeout)? })
    }
}

#[async_trait]
impl celery::Celeryev for Celeryev {
    async fn tell(&self, kind: &str, node: &str, body: Vec<u8>) -> Result<(), BrokerError> {
        let key = kind.replacen('-', ".", 1);
        let message = envelope::of_document((EXCHANGE, &key), &json!({ "hostname": node }), None, &body);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.side.kombu.channel(EXCHANGE, &key)).arg(message);
        let told = async { self.side.link().await?.send(&publish).await };
        told.await.map(drop).map_err(self.side.cannot("tell an event"))
    }
}
