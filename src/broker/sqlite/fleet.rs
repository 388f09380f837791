//! Who works here: one row per worker, forgotten after its deadline.

use async_trait::async_trait;
use rusqlite::params;

use super::{Client, unreadable};
use crate::broker::{BrokerError, Fleet, Presence};
use crate::sqlite::clock;

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        let worker = presence.worker.clone();
        let deadline = presence.deadline.as_microsecond();
        let document = serde_json::to_string(presence).expect("invariant: a presence has text keys");
        let written = self.database.write(move |transaction| {
            transaction.statement("DELETE FROM workers WHERE deadline <= ?1")?.execute([clock::wall()])?;
            transaction
                .statement("INSERT OR REPLACE INTO workers (worker, deadline, presence) VALUES (?1, ?2, ?3)")?
                .execute(params![worker, deadline, document])
        });
        written.await.map(drop).map_err(self.cannot("announce a worker"))
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        let worker = worker.to_owned();
        let written = self.database.write(move |transaction| {
            transaction.statement("DELETE FROM workers WHERE worker = ?1")?.execute([&worker])
        });
        written.await.map(drop).map_err(self.cannot("say that a worker left"))
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let read = self.database.read_long(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT presence FROM workers WHERE deadline > ?1 ORDER BY worker")?;
            let rows = statement.query_map([clock::wall()], |row| row.get::<_, String>(0))?;
            rows.map(|text| serde_json::from_str(&text?).map_err(unreadable)).collect()
        });
        read.await.map_err(self.cannot("list its workers"))
    }
}
