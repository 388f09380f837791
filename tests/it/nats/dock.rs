//! A NATS server of one test's own, for the rules that every broker and store keeps.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore::broker::{self, Broker, BrokerUrl};

use crate::contract::dock::{Counting, Dock};
use crate::support::nats::Nats;

impl Dock for Nats {
    async fn start() -> Self {
        Self::start().await
    }
    fn url(&self) -> BrokerUrl {
        BrokerUrl::parse(&self.url()).unwrap()
    }
    fn short_lease(&self) -> Duration {
        Duration::from_millis(500)
    }
    fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }
    async fn client(&self, worker: &str, queues: &[&str], lease: Duration) -> Broker {
        let mut broker = broker::open(&Dock::url(self), &self.options(worker, queues, lease)).await.unwrap();
        broker.source = Arc::new(Counting { source: broker.source, looks: self.looks.clone() });
        broker
    }
}
