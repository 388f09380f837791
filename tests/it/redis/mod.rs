//! What only the Redis adapters promise: scripts that survive, warnings, sockets, passwords and TLS, plain submissions.

pub(crate) mod dock;
mod fleet;
mod protocol;
mod server;
mod survival;

use std::time::Duration;

use longshore::broker::{self, Broker, BrokerError, BrokerUrl};

use crate::contract::dock::Dock;
use crate::support::redis::Redis;

/// A client of the queue `default` at this address.
async fn opened(redis: &Redis, address: &str) -> Result<Broker, BrokerError> {
    let options = redis.options("one", &["default"], Duration::from_secs(60));
    broker::open(&BrokerUrl::parse(address).unwrap(), &options).await
}
