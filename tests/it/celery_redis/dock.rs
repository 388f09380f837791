//! A Redis server of one test's own, as Celery uses it, for the rules that every broker keeps.

use std::sync::Arc;
use std::time::Duration;

use longshore::broker::BrokerUrl;
use longshore::store::{self, ResultStore};

use crate::contract::dock::{Dock, LONG};
use crate::support::redis::Redis;

/// A Redis with Celery's queues.
pub(crate) struct CeleryRedis {
    pub(crate) redis: Redis,
}

impl Dock for CeleryRedis {
    async fn start() -> Self {
        Self { redis: Redis::start().await }
    }
    fn url(&self) -> BrokerUrl {
        BrokerUrl::parse(&format!("celery+{}", self.redis.url())).unwrap()
    }
    fn short_lease(&self) -> Duration {
        Duration::from_millis(500)
    }
    /// Records are kept as longshore keeps them.
    async fn store(&self) -> Arc<dyn ResultStore> {
        store::open(&BrokerUrl::parse(&self.redis.url()).unwrap(), &self.options("one", &[], LONG))
            .await
            .unwrap()
    }
    /// Every look is one script, as with longshore's own queues.
    fn looks(&self) -> u64 {
        self.redis.looks()
    }
}
