//! What only the NATS adapters promise: streams made and repaired, addresses, permissions, plain submissions, survival.

pub(crate) mod dock;
mod plain;
mod protocol;
mod server;
mod survival;
mod users;

use std::time::Duration;

use longshore::broker::{self, Broker, BrokerError, BrokerUrl};

use crate::contract::dock::Dock;
use crate::support::nats::Nats;

/// A client of the queue `default` at this address.
async fn opened(nats: &Nats, address: &str) -> Result<Broker, BrokerError> {
    let options = nats.options("one", &["default"], Duration::from_secs(60));
    broker::open(&BrokerUrl::parse(address).unwrap(), &options).await
}
