//! Dead letters, on a shelf with their bytes and their reason.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::types::AMQPValue;
use uuid::Uuid;

use super::shelf::{Look, Shelf};
use super::wire::{DEAD_AT, DEAD_ID, DEAD_QUEUE, DEAD_REASON, Original, TASK, long};
use super::{Client, lock};
use crate::broker::{BrokerError, DeadLetter, DeadLetters, DeadSummary};
use crate::task::{QueueName, TaskId};

/// Longest reason that is kept: headers must fit one frame.
const REASON: usize = 8 << 10;

impl Client {
    /// Parks a message.
    pub(super) async fn park(
        &self,
        queue: &QueueName,
        original: &Original,
        reason: &str,
    ) -> Result<(), BrokerError> {
        let cut = reason.floor_char_boundary(REASON);
        let letter = original.copy(vec![
            (DEAD_ID, long(&Uuid::now_v7().to_string())),
            (DEAD_REASON, long(&reason[..cut])),
            (DEAD_QUEUE, long(queue.as_str())),
            (DEAD_AT, AMQPValue::LongLongInt(Timestamp::now().as_millisecond())),
        ]);
        self.shelve(Shelf::Dead, &letter).await
    }

    /// Every dead letter, the oldest first.
    pub(super) async fn letters(&self) -> Result<Vec<(DeadSummary, Original)>, BrokerError> {
        let found = Arc::new(Mutex::new(Vec::new()));
        let into = found.clone();
        self.browse(Shelf::Dead, move |original| {
            if let Some(summary) = summary(&original) {
                lock(&into).push((summary, original));
            }
            Look::Keep
        })
        .await?;
        let mut all = std::mem::take(&mut *lock(&found));
        all.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        Ok(all)
    }
}

fn summary(original: &Original) -> Option<DeadSummary> {
    Some(DeadSummary {
        id: original.text(DEAD_ID)?,
        task: original.text(TASK).or_else(|| original.text("id")).and_then(|id| TaskId::new(id).ok()),
        queue: QueueName::new(original.text(DEAD_QUEUE)?).ok()?,
        reason: original.text(DEAD_REASON).unwrap_or_default(),
        parked: Timestamp::from_millisecond(original.number(DEAD_AT)?).ok()?,
        bytes: original.body.len() as u64,
    })
}

#[async_trait]
impl DeadLetters for Client {
    async fn list(&self, queue: Option<&QueueName>, limit: usize) -> Result<Vec<DeadSummary>, BrokerError> {
        let all = self.letters().await?.into_iter().rev().map(|(summary, _)| summary);
        Ok(all.filter(|summary| queue.is_none_or(|queue| summary.queue == *queue)).take(limit).collect())
    }

    async fn show(&self, id: &str) -> Result<Option<DeadLetter>, BrokerError> {
        let found = self.letters().await?.into_iter().find(|(summary, _)| summary.id == id);
        Ok(found.map(|(summary, original)| DeadLetter {
            summary,
            headers: original.headers(),
            content_type: original.properties.content_type().as_ref().map(ToString::to_string),
            content_encoding: original.properties.content_encoding().as_ref().map(ToString::to_string),
            properties: original.answer(),
            body: original.body,
        }))
    }

    async fn drop_letter(&self, id: &str) -> Result<bool, BrokerError> {
        let mut dropped = false;
        self.browse(Shelf::Dead, |original| {
            let is_it = original.text(DEAD_ID).as_deref() == Some(id);
            dropped |= is_it;
            if is_it { Look::Remove } else { Look::Keep }
        })
        .await?;
        Ok(dropped)
    }
}
