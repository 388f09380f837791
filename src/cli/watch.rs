//! Waits for tasks to end: woken by their events, sure by their records.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::json;

use super::error::CliError;
use super::output::Output;
use super::progress::{Display, Shown};
use crate::broker::{Broker, BrokerError, Contents, Waiting, WaitingQuery};
use crate::events::{EventFilter, EventStart};
use crate::store::{Outcome, Record, ResultStore, Status};
use crate::task::TaskId;

/// What is needed to wait.
pub(crate) struct Watch<'a> {
    /// Whose events wake us.
    pub(crate) broker: &'a Broker,
    /// Whose records count.
    pub(crate) store: &'a dyn ResultStore,
    /// Where results go.
    pub(crate) output: Output,
    /// What is shown meanwhile.
    pub(crate) shown: Shown,
}

/// Where a task stands: its record, unless it has been queued anew since.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// It is in a queue and no worker has met it in this life.
    Queued(Waiting),
    /// A worker has met it.
    Known(Box<Record>),
    /// Neither queue nor store know it.
    Unknown,
}

/// Where `id` stands.
pub(crate) async fn standing(
    broker: &Broker,
    store: &dyn ResultStore,
    id: &TaskId,
) -> Result<Standing, CliError> {
    // The queue first: a message that is settled in between has left a record.
    let waiting = waiting_of(broker, id).await?.unwrap_or_default();
    let record = store.load(id).await?.map(|versioned| versioned.record);
    Ok(stands(record, waiting))
}

/// The messages of `id`; `None` where the broker cannot list them.
pub(crate) async fn waiting_of(broker: &Broker, id: &TaskId) -> Result<Option<Vec<Waiting>>, CliError> {
    let query = WaitingQuery {
        task: Some(id.clone()),
        limit: 10,
        contents: Contents::Given,
        ..WaitingQuery::default()
    };
    match broker.admin.waiting(&query).await {
        Ok(waiting) => Ok(Some(waiting)),
        Err(BrokerError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Between two looks whether a task that is waited for still exists: nobody tells that it was purged.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Between two looks whether outputs are kept for later: they are for minutes, if not for days.
const LOOK_FOR_KEPT: Duration = Duration::from_secs(6);

/// Resolves when neither a message nor a record of `id` is left, seen twice, since a broker may be moving the message
/// when it is looked for. Never where the broker cannot list messages.
pub(crate) async fn gone(broker: &Broker, store: &dyn ResultStore, id: &TaskId) -> CliError {
    let mut missed = 0;
    while missed < 2 {
        tokio::time::sleep(LOOK_EVERY).await;
        match is_gone(broker, store, id).await {
            Ok(true) => missed += 1,
            Ok(false) => missed = 0,
            Err(error) => return error,
        }
    }
    CliError::Infrastructure(format!(
        "{id} is gone: it was purged from its queue, or its record was removed, so that nobody can tell how it ended"
    ))
}

async fn is_gone(broker: &Broker, store: &dyn ResultStore, id: &TaskId) -> Result<bool, CliError> {
    let waiting = waiting_of(broker, id).await?;
    Ok(waiting.is_some_and(|waiting| waiting.is_empty()) && store.load(id).await?.is_none())
}

/// A finished record and a message that was submitted after its end: the task lives anew.
pub(crate) fn stands(record: Option<Record>, waiting: Vec<Waiting>) -> Standing {
    let newest = waiting.into_iter().max_by_key(|message| message.submitted);
    match (record, newest) {
        (Some(record), Some(message))
            if record.status.is_finished()
                && record.times.finished.is_some_and(|finished| message.submitted >= finished) =>
        {
            Standing::Queued(message)
        }
        (Some(record), _) => Standing::Known(Box::new(record)),
        (None, Some(message)) => Standing::Queued(message),
        (None, None) => Standing::Unknown,
    }
}

/// Waits for every one of `ids`, tells how each ended, and fails when one did not end well.
pub(crate) async fn tell_ends(
    watch: &Watch<'_>,
    ids: &[TaskId],
    timeout: Option<Duration>,
) -> Result<(), CliError> {
    let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let mut ends: BTreeMap<usize, Record> = BTreeMap::new();
    for (n, id) in ids.iter().enumerate() {
        let end = until_finished(watch, id);
        let record = match deadline {
            None => end.await?,
            Some(deadline) => tokio::time::timeout_at(deadline, end).await.map_err(|_| {
                CliError::Infrastructure(format!(
                    "{id} has not ended in time; longshore task explain {id} tells why"
                ))
            })??,
        };
        if !watch.output.is_json() {
            tell_end(watch.output, &record)?;
        }
        ends.insert(n, record);
    }
    if watch.output.is_json() {
        let records: Vec<Record> = ends.values().map(Record::shown).collect();
        watch.output.document(&json!({ "tasks": records }))?;
    }
    if ends.values().all(|record| record.status == Status::Succeeded) {
        Ok(())
    } else {
        Err(CliError::TaskFailed(String::new()))
    }
}

/// One line: what became of it.
fn tell_end(output: Output, record: &Record) -> Result<(), CliError> {
    output.line(format_args!("{}  {}", record.id, end_in_words(record)))
}

/// What became of a finished task.
pub(crate) fn end_in_words(record: &Record) -> String {
    match &record.outcome {
        Some(Outcome::Succeeded) => "succeeded".to_owned(),
        Some(Outcome::Failed { error }) => format!("failed: {error}"),
        Some(Outcome::Canceled { reason }) => format!("canceled: {reason}"),
        Some(Outcome::Dead { reason }) => format!("dead: {reason}"),
        None => record.status.as_str().to_owned(),
    }
}

/// Waits until `id` ended in its present life; shows its events meanwhile.
async fn until_finished(watch: &Watch<'_>, id: &TaskId) -> Result<Record, CliError> {
    let filter = EventFilter { task: Some(id.clone()), ..EventFilter::default() };
    // Followed before the record is read, so that no end can fall between.
    let start = if watch.broker.capabilities.replay { EventStart::Oldest } else { EventStart::Now };
    let mut events = watch.broker.topic.follow(filter, start).await?;
    let mut display = Display::new(watch.output, watch.shown);
    match standing(watch.broker, watch.store, id).await? {
        Standing::Known(record) if record.status.is_finished() => return Ok(*record),
        Standing::Unknown if is_gone(watch.broker, watch.store, id).await? => return Err(unknown(id)),
        Standing::Known(_) | Standing::Queued(_) | Standing::Unknown => {}
    }
    let mut gone = std::pin::pin!(gone(watch.broker, watch.store, id));
    let mut waits = std::pin::pin!(waits(watch.store, id));
    let mut told = false;
    loop {
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            why = &mut gone => return Err(why),
            why = &mut waits, if !told => {
                watch.output.note(why?);
                told = true;
                continue;
            }
        };
        let Some(event) = event else { break };
        let event = event?;
        display.event(&event)?;
        if event.kind().is_terminal()
            && let Standing::Known(record) = standing(watch.broker, watch.store, id).await?
            && record.status.is_finished()
        {
            display.end();
            return Ok(*record);
        }
    }
    Err(CliError::Infrastructure(format!("the broker {} ended the stream of events", watch.broker.name)))
}

/// Resolves when the outputs of `id` wait until somebody takes them, and says why.
async fn waits(store: &dyn ResultStore, id: &TaskId) -> Result<String, CliError> {
    loop {
        let record = store.load(id).await?.map(|versioned| versioned.record);
        if let Some(spooled) = record.and_then(|record| record.spooled) {
            let until = crate::cli::output::time(spooled.until);
            return Ok(format!(
                "{id}: its container ended, its outputs wait until {until}: {}; longshore task explain {id} tells more",
                spooled.error
            ));
        }
        tokio::time::sleep(LOOK_FOR_KEPT).await;
    }
}

/// No such task.
pub(crate) fn unknown(id: &TaskId) -> CliError {
    CliError::Usage(format!(
        "no task {id} is known: it was never submitted here, was purged, or its record is older than the retention; \
         longshore task list tells which there are"
    ))
}

/// The id that `text` means: `last` is the newest task.
pub(crate) async fn resolve(
    broker: &Broker,
    store: &dyn ResultStore,
    text: &str,
) -> Result<TaskId, CliError> {
    if text != "last" {
        return TaskId::new(text).map_err(|error| CliError::Usage(error.to_string()));
    }
    let waiting = broker.admin.waiting(&WaitingQuery::default()).await?;
    let records = store.list(&crate::store::RecordQuery::default()).await?;
    let queued = waiting.into_iter().map(|message| (message.submitted, message.task));
    let known = records.into_iter().map(|record| (submitted(&record), record.id));
    queued
        .chain(known)
        .max()
        .map(|(_, id)| id)
        .ok_or_else(|| CliError::Usage("there is no task yet: longshore submit makes one".to_owned()))
}

/// When a task was submitted, as well as its record tells.
pub(crate) fn submitted(record: &Record) -> Timestamp {
    let times = &record.times;
    times.queued.or(times.admitted).or(times.changed).unwrap_or(Timestamp::UNIX_EPOCH)
}
