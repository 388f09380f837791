//! Dead letters.

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};

use super::{Client, count, headers, limit, queue_name, task_id};
use crate::broker::{BrokerError, DeadLetter, DeadLetters, DeadSummary};
use crate::sqlite::clock;
use crate::task::QueueName;
use crate::task::message::Properties;

#[async_trait]
impl DeadLetters for Client {
    async fn list(&self, queue: Option<&QueueName>, most: usize) -> Result<Vec<DeadSummary>, BrokerError> {
        let queue = queue.map(|queue| queue.as_str().to_owned());
        let read = self.database.read_long(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, task, queue, reason, parked, length(body) FROM dead
                 WHERE ?1 IS NULL OR queue = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            statement.query_map(params![queue, limit(most)], summary)?.collect()
        });
        read.await.map_err(self.cannot("list its dead letters"))
    }

    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError> {
        let Ok(id) = id.parse::<i64>() else { return Ok(None) };
        let read = self.database.read_long(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, task, queue, reason, parked, length(body), content_type, content_encoding, headers, body
                 FROM dead WHERE id = ?1",
            )?;
            statement.query_row([id], letter).optional()
        });
        read.await.map_err(self.cannot("show a dead letter"))
    }

    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError> {
        let Ok(id) = id.parse::<i64>() else { return Ok(false) };
        let written = self
            .database
            .write(move |transaction| transaction.statement("DELETE FROM dead WHERE id = ?1")?.execute([id]));
        written.await.map(|removed| removed > 0).map_err(self.cannot("drop a dead letter"))
    }
}

fn summary(row: &Row<'_>) -> rusqlite::Result<DeadSummary> {
    Ok(DeadSummary {
        id: row.get::<_, i64>(0)?.to_string(),
        task: Some(task_id(row.get(1)?)?),
        queue: queue_name(row.get(2)?)?,
        reason: row.get(3)?,
        parked: clock::timestamp(row.get(4)?),
        bytes: count(row.get(5)?),
    })
}

fn letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        summary: summary(row)?,
        content_type: Some(row.get(6)?),
        content_encoding: row.get(7)?,
        headers: headers(row.get(8)?)?,
        properties: Properties::default(),
        body: Bytes::copy_from_slice(row.get_ref(9)?.as_blob()?),
    })
}
