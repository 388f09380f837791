//! What a worker does beside its tasks: hears commands, says that it lives, completes others' unfinished business.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;

use super::{Context, SourceRuntime, deferred, settle};
use crate::broker::{Command, Presence};
use crate::cancel::{CancelReason, CancelScope};
use crate::lifecycle::LifePhase;
use crate::store::RecordQuery;
use crate::task::{Task, TaskId};

/// Between two tries to hear commands.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Records completed in one round.
const OWING: usize = 500;

/// Hears commands and carries them out until `stop` ends.
pub(super) async fn commands(context: Arc<Context>, source: Arc<SourceRuntime>, stop: CancelScope) {
    while !stop.is_canceled() {
        let hearing = async {
            match source.broker.topic.commands().await {
                Ok(mut commands) => {
                    recheck(&context, &source).await;
                    let mut ending = FuturesUnordered::new();
                    loop {
                        let command = tokio::select! {
                            command = commands.next() => command,
                            Some(()) = ending.next() => continue,
                        };
                        match command {
                            Some(Ok(Command::Cancel { task, reason })) => {
                                if !cancel_live(&context, &task, &reason) {
                                    let context = &context;
                                    ending
                                        .push(async move { deferred::cancel(context, &task, reason).await });
                                }
                            }
                            Some(Ok(command)) => obey(&context, command),
                            Some(Err(error)) => tracing::warn!(%error, "a command could not be heard"),
                            None => break,
                        }
                    }
                    // What was begun is ended, whatever became of the connection.
                    while ending.next().await.is_some() {}
                }
                Err(error) => tracing::warn!(%error, "commands cannot be heard"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        };
        tokio::select! {
            () = hearing => {}
            _ = stop.canceled() => {}
        }
    }
}

/// A cancel may have been sent while nobody listened.
async fn recheck(context: &Arc<Context>, source: &SourceRuntime) {
    for live in context.ledger.all() {
        if let Ok(Some(reason)) = source.broker.topic.cancel_requested(&live.task).await {
            context.ledger.cancel(&live.task, CancelReason::Canceled(reason));
        }
    }
    let Ok(canceled) = source.broker.topic.cancels().await else { return };
    for task in context.deferrals.among(canceled) {
        if let Ok(Some(reason)) = source.broker.topic.cancel_requested(&task).await {
            deferred::cancel(context, &task, reason).await;
        }
    }
}

/// Cancels a live attempt. `false`: there is none here.
fn cancel_live(context: &Context, task: &TaskId, reason: &str) -> bool {
    let is_live = context.ledger.cancel(task, CancelReason::Canceled(reason.to_owned()));
    if is_live {
        tracing::info!(%task, "canceled");
    }
    is_live
}

fn obey(context: &Context, command: Command) {
    match command {
        Command::Cancel { task, reason } => {
            cancel_live(context, &task, &reason);
        }
        Command::Upload { task, token } => {
            let with = if token.is_some() { "a new token" } else { "the token it had" };
            if context.spooled.wake(&task, token) {
                tracing::info!(%task, with, "asked to bring its outputs away");
            }
        }
        Command::Drain { worker } if *worker == *context.identity.worker => {
            tracing::info!("asked to drain");
            context.lifecycle.advance(LifePhase::Paused);
        }
        Command::Resume { worker } if *worker == *context.identity.worker => {
            let resumed = context.lifecycle.resume();
            tracing::info!(resumed, "asked to resume");
        }
        Command::Drain { .. } | Command::Resume { .. } => {}
    }
}

/// Announces this worker and completes unfinished business until `stop` ends.
pub(super) async fn run(context: Arc<Context>, source: Arc<SourceRuntime>, stop: CancelScope) {
    let mut announce = tokio::time::interval(context.settings.presence_interval);
    let mut upkeep = tokio::time::interval(context.settings.upkeep_interval);
    announce.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = announce.tick() => {
                if let Err(error) = source.broker.fleet.announce(&presence(&context, &source)).await {
                    tracing::debug!(%error, "presence could not be announced");
                }
            }
            _ = upkeep.tick() => tidy(&context, &source).await,
            _ = stop.canceled() => break,
        }
    }
    if let Err(error) = source.broker.fleet.leave(&context.identity.worker).await {
        tracing::debug!(%error, "leaving could not be announced");
    }
}

/// Completes open outboxes whose owner is gone and sweeps old records.
async fn tidy(context: &Arc<Context>, source: &Arc<SourceRuntime>) {
    let query = RecordQuery { owing: true, limit: OWING, ..RecordQuery::default() };
    match context.store.list(&query).await {
        Ok(records) => {
            for record in
                records.iter().filter(|record| record.source.as_deref() == Some(&source.broker.name))
            {
                if context.ledger.find(&record.id).is_none()
                    && settle::complete_outbox(context, source, record).await
                {
                    tracing::info!(task = %record.id, "told the end of a task whose worker had died");
                }
            }
        }
        Err(error) => tracing::debug!(%error, "unfinished business could not be listed"),
    }
    match context.store.sweep(&context.settings.retention).await {
        Ok(0) => {}
        Ok(swept) => tracing::info!(swept, "old records were removed"),
        Err(error) => tracing::debug!(%error, "old records could not be swept"),
    }
}

/// What this worker says of itself now.
pub(super) fn presence(context: &Context, source: &SourceRuntime) -> Presence {
    let settings = &context.settings;
    let mut kinds: Vec<String> = context.handlers.keys().map(|kind| (*kind).to_owned()).collect();
    kinds.sort_unstable();
    let now = Timestamp::now();
    let (busy, _, _) = context.queue.load();
    Presence {
        worker: context.identity.worker.to_string(),
        incarnation: context.identity.incarnation.to_string(),
        host: context.identity.host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kinds,
        envelope: Task::VERSION,
        queues: source.broker.source.queues().unwrap_or_else(|| settings.queues.clone()),
        lanes: u32::try_from(settings.lanes).unwrap_or(u32::MAX),
        busy: u32::try_from(busy).unwrap_or(u32::MAX),
        pool: settings.pool.clone(),
        disks: super::stager::disk(&settings.work_dir).into_iter().collect(),
        phase: phase(context).to_owned(),
        seen: now,
        deadline: now + settings.presence_interval * 3,
    }
}

/// What [`Presence::phase`] says.
fn phase(context: &Context) -> &'static str {
    match context.lifecycle.phase() {
        LifePhase::Running if super::stager::is_short_of_disk(&context.settings) => "short of disk",
        phase => phase.as_str(),
    }
}
