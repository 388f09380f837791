//! Dead letters: a stream per queue, which nothing trims. An id is the entry's, a slash, and the queue.

use async_trait::async_trait;
use redis::Value;

use super::Client;
use super::message::{Entry, time_of};
use crate::broker::{BrokerError, DeadLetter, DeadLetters, DeadSummary};
use crate::redis::{LinkError, script, value};
use crate::task::{QueueName, TaskId};

script!(DEAD, "lua/common.lua", "lua/dead.lua");

#[async_trait]
impl DeadLetters for Client {
    async fn list(&self, queue: Option<&QueueName>, limit: usize) -> Result<Vec<DeadSummary>, BrokerError> {
        let listed = self.summaries(queue, if limit == 0 { 1_000 } else { limit }).await;
        listed.map_err(self.cannot("list its dead letters"))
    }

    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError> {
        let Some((entry, queue)) = split(id) else { return Ok(None) };
        self.letter(entry, queue).await.map_err(self.cannot("show a dead letter"))
    }

    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError> {
        let Some((entry, queue)) = split(id) else { return Ok(false) };
        let removed = self.link.send(redis::cmd("XDEL").arg(self.dead_stream(&queue)).arg(entry)).await;
        let removed = removed.and_then(|removed| value::int(&removed));
        Ok(removed.map_err(self.cannot("drop a dead letter"))? > 0)
    }
}

impl Client {
    fn dead_stream(&self, queue: &QueueName) -> String {
        format!("{}:dead", self.keys.stem(queue))
    }

    async fn summaries(&self, queue: Option<&QueueName>, most: usize) -> Result<Vec<DeadSummary>, LinkError> {
        let queues = match queue {
            Some(queue) => vec![queue.clone()],
            None => self.queue_names().await?,
        };
        let mut summaries = Vec::new();
        for queue in queues {
            let answer = self.link.call(&DEAD.on(&[self.keys.stem(&queue)]).arg(most)).await?;
            for letter in value::list(answer)? {
                let [id, bytes, fields] = value::row(letter)?;
                let (id, bytes) = (value::text(id)?, value::count(&bytes)?);
                summaries.push((place_of(&id), summary(&id, &queue, bytes, &Entry::read(fields)?)));
            }
        }
        summaries.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        summaries.truncate(most);
        Ok(summaries.into_iter().map(|(_, summary)| summary).collect())
    }

    async fn letter(&self, id: &str, queue: QueueName) -> Result<Option<DeadLetter>, LinkError> {
        let mut range = redis::cmd("XRANGE");
        range.arg(self.dead_stream(&queue)).arg(id).arg(id);
        let Some(found) = value::list(self.link.send(&range).await?)?.pop() else { return Ok(None) };
        let [_, fields]: [Value; 2] = value::row(found)?;
        let entry = Entry::read(fields)?;
        Ok(Some(DeadLetter {
            summary: summary(id, &queue, entry.body.len() as u64, &entry),
            body: entry.body,
            content_type: entry.content_type,
            content_encoding: entry.encoding,
            headers: entry.headers,
            properties: entry.properties,
        }))
    }
}

fn summary(id: &str, queue: &QueueName, bytes: u64, entry: &Entry) -> DeadSummary {
    DeadSummary {
        id: format!("{id}/{queue}"),
        task: entry.task.clone().and_then(|task| TaskId::new(task).ok()),
        queue: queue.clone(),
        reason: entry.dead_reason.clone().unwrap_or_default(),
        parked: time_of(id).unwrap_or_default(),
        bytes,
    }
}

/// Milliseconds and number: ordered by time over all queues.
fn place_of(id: &str) -> Option<(u64, u64)> {
    let (millis, number) = id.split_once('-')?;
    Some((millis.parse().ok()?, number.parse().ok()?))
}

fn split(id: &str) -> Option<(&str, QueueName)> {
    let (entry, queue) = id.split_once('/')?;
    place_of(entry)?;
    Some((entry, QueueName::new(queue).ok()?))
}
