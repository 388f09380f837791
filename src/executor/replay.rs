//! Brings ends that a former process of this worker could not record to the store, before new work is taken.
//!
//! Each goes in under the fence that its attempt had: what was taken over meanwhile stays with whoever took it. Then the
//! outbox is served as of any finished record; the message comes again by itself and finds its task finished.

use std::sync::Arc;
use std::time::Duration;

use super::{Context, SourceRuntime, settle};
use crate::lifecycle::LifePhase;
use crate::store::{Expected, Put, Record, StoreError};

/// Between two tries while the store is still away.
const AGAIN: Duration = Duration::from_secs(1);

/// Replays what waits of the tasks of `source`. Returns when nothing waits any more, or a drain began.
pub(super) async fn run(context: &Arc<Context>, source: &SourceRuntime) {
    let kept = match context.settings.journal.kept().await {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!(%error, "ends that wait for the store cannot be read: their tasks will be run again");
            return;
        }
    };
    for record in kept.iter().filter(|record| record.source.as_deref() == Some(&source.broker.name)) {
        loop {
            match bring(context, record).await {
                Ok(Brought::Stored) => {
                    tracing::info!(task = %record.id, "recorded an end that had waited for the store");
                    settle::complete_outbox(context, source, record).await;
                }
                Ok(Brought::Overtaken) => {
                    tracing::info!(task = %record.id, "an end that had waited for the store was overtaken");
                }
                Ok(Brought::Raced) => continue,
                Err(error) => {
                    tracing::warn!(task = %record.id, %error, "its end still waits for the store");
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => continue,
                        () = context.lifecycle.reached(LifePhase::Draining) => return,
                    }
                }
            }
            break;
        }
        settle::forget(context, &record.id).await;
    }
}

/// What became of an end.
enum Brought {
    Stored,
    Overtaken,
    /// The record changed in between.
    Raced,
}

async fn bring(context: &Context, record: &Record) -> Result<Brought, StoreError> {
    let expected = match context.store.load(&record.id).await? {
        Some(found) if found.record.fence != record.fence || found.record.status.is_finished() => {
            return Ok(Brought::Overtaken);
        }
        Some(found) => Expected::At(found.revision),
        None => Expected::Absent,
    };
    Ok(match context.store.put(record, expected).await? {
        Put::Stored(_) => Brought::Stored,
        Put::Conflict(_) => Brought::Raced,
    })
}
