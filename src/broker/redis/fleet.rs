//! Who works here. A presence ends by the server's clock, so that hosts need not agree on the time.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Client, millis, refusal};
use crate::broker::{BrokerError, Fleet, Presence};
use crate::redis::{LinkError, script, value};

script!(ANNOUNCE, "lua/common.lua", "lua/announce.lua");
script!(WORKERS, "lua/common.lua", "lua/workers.lua");

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        let lasts =
            Duration::try_from(presence.deadline.duration_since(Timestamp::now())).unwrap_or_default();
        let document = serde_json::to_vec(presence).expect("invariant: a presence has text keys");
        let call = ANNOUNCE.on(&self.keys.workers()).arg(&presence.worker).arg(millis(lasts)).arg(document);
        self.link.call(&call).await.map(drop).map_err(self.cannot("announce a worker"))
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        let [deadlines, presences] = self.keys.workers();
        let mut both = redis::pipe();
        both.cmd("ZREM").arg(deadlines).arg(worker).cmd("HDEL").arg(presences).arg(worker);
        self.link.send_all(&both, 2).await.map(drop).map_err(self.cannot("say that a worker left"))
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let answer = self.link.call(&WORKERS.on(&self.keys.workers())).await;
        let documents = answer.and_then(value::list).map_err(self.cannot("list its workers"))?;
        let mut workers = Vec::with_capacity(documents.len());
        for document in documents {
            let bytes = value::bytes(document).map_err(self.cannot("list its workers"))?;
            let presence: Presence = serde_json::from_slice(&bytes).map_err(|error| {
                refusal(&self.place.name, "list its workers", LinkError::Unreadable(error.to_string()))
            })?;
            workers.push(presence);
        }
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        Ok(workers)
    }
}
