//! Dead letters: one stream, which nothing trims. An id is the letter's place in it.

use std::collections::VecDeque;

use async_trait::async_trait;

use super::Client;
use super::message::Letter;
use crate::broker::{BrokerError, DeadLetter, DeadLetters, DeadSummary};
use crate::nats::stream::remove;
use crate::nats::{From, LinkError, Scan, Stored, header};
use crate::task::QueueName;
use crate::task::message::Properties;

/// Letters that one list holds when no limit is named.
const USUAL: usize = 1_000;

#[async_trait]
impl DeadLetters for Client {
    async fn list(&self, queue: Option<&QueueName>, limit: usize) -> Result<Vec<DeadSummary>, BrokerError> {
        let listed = self.newest_letters(queue, if limit == 0 { USUAL } else { limit }).await;
        listed.map_err(self.cannot("list its dead letters"))
    }

    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError> {
        let Ok(sequence) = id.parse() else { return Ok(None) };
        let found = self.link.at(&self.names.dead_stream(), sequence).await;
        let found = found.map_err(self.cannot("show a dead letter"))?;
        Ok(found.and_then(|stored| self.letter(stored)))
    }

    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError> {
        let Ok(sequence) = id.parse() else { return Ok(false) };
        let dropped = remove(&self.link, &self.names.dead_stream(), sequence).await;
        dropped.map_err(self.cannot("drop a dead letter"))
    }
}

impl Client {
    async fn newest_letters(
        &self,
        queue: Option<&QueueName>,
        most: usize,
    ) -> Result<Vec<DeadSummary>, LinkError> {
        let filter = queue.map_or_else(|| self.names.all_dead(), |queue| self.names.dead(queue));
        let mut scan = Scan::headers(&self.link, &self.names.dead_stream(), &filter, From::Oldest).await?;
        let mut newest = VecDeque::new();
        while let Some(stored) = scan.next().await? {
            let bytes = stored.header(header::SIZE).and_then(|size| size.parse().ok()).unwrap_or_default();
            if let Some(summary) = self.summary(&stored, bytes) {
                newest.push_front(summary);
                newest.truncate(most);
            }
        }
        scan.end().await;
        Ok(newest.into())
    }

    fn summary(&self, stored: &Stored, bytes: u64) -> Option<DeadSummary> {
        let letter = Letter::read(&stored.headers);
        Some(DeadSummary {
            id: stored.sequence.to_string(),
            task: letter.task,
            queue: self.names.read_dead(&stored.subject)?,
            reason: letter.dead_reason.unwrap_or_default(),
            parked: stored.time,
            bytes,
        })
    }

    fn letter(&self, stored: Stored) -> Option<DeadLetter> {
        let summary = self.summary(&stored, stored.body.len() as u64)?;
        let letter = Letter::read(&stored.headers);
        Some(DeadLetter {
            summary,
            body: stored.body,
            content_type: letter.content_type,
            content_encoding: letter.encoding,
            headers: letter.headers,
            properties: Properties::default(),
        })
    }
}
