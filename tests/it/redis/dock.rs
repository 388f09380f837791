//! A Redis server of one test's own, for the rules that every broker and store keeps.

use std::time::Duration;

use longshore::broker::BrokerUrl;

use crate::contract::dock::Dock;
use crate::support::redis::Redis;

impl Dock for Redis {
    async fn start() -> Self {
        Self::start().await
    }
    fn url(&self) -> BrokerUrl {
        BrokerUrl::parse(&self.url()).unwrap()
    }
    fn short_lease(&self) -> Duration {
        Duration::from_millis(500)
    }
    /// Every look is one script; nothing else calls one while a fetch is idle.
    fn looks(&self) -> u64 {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}
