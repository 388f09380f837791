//! `task logs`: what the container and the worker said.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;

use super::Open;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::{Display, Shown};
use crate::cli::watch::{Standing, unknown};
use crate::events::{Event, EventData, EventFilter, EventStart};
use crate::store::Record;
use crate::task::TaskId;

const EXAMPLES: &str = "\
The container's standard output goes to standard output; its standard error and the worker's notes go to standard
error. Of a task that was tried again, the last attempt is shown once it has begun. Events are kept for events.age;
after that, the end of the log stands in the record.";

/// Print what a task said.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Logs {
    /// Id of the task; last: the newest one
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the task ends
    #[arg(short, long)]
    follow: bool,
}

/// A replay that says nothing for so long is over: brokers do not tell where the past ends.
const QUIET: Duration = Duration::from_millis(400);

impl Logs {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let id = open.resolve(&[self.id]).await?.remove(0);
        let filter = EventFilter { task: Some(id.clone()), ..EventFilter::default() };
        let mut events = open.broker.topic.follow(filter, EventStart::Oldest).await?;
        let record = match open.standing(&id).await? {
            Standing::Unknown => return Err(unknown(&id)),
            Standing::Queued(_) => None,
            Standing::Known(record) => Some(*record),
        };
        let mut finished = record.as_ref().filter(|record| record.status.is_finished()).cloned();
        let shown = if context.output.is_json() { Shown::Events } else { Shown::Logs };
        let mut display = Display::new(context.output, shown);
        let mut lines = 0_u64;
        loop {
            let waits = self.follow && finished.is_none();
            let next = if waits {
                Ok(events.next().await)
            } else {
                tokio::time::timeout(QUIET, events.next()).await
            };
            let Ok(Some(event)) = next else { break };
            let event = event?;
            if matches!(event.data, EventData::Log { .. }) {
                lines += 1;
                display.event(&event)?;
            }
            if event.kind().is_terminal() {
                if finished.is_none() {
                    finished = is_finished(open, &id).await?;
                }
                if finished.as_ref().is_some_and(|record| is_last(record, &event)) {
                    break;
                }
            }
        }
        match finished {
            Some(record) if lines == 0 => tail(context, &record),
            _ => Ok(()),
        }
    }
}

async fn is_finished(open: &Open, id: &TaskId) -> Result<Option<Record>, CliError> {
    Ok(match open.standing(id).await? {
        Standing::Known(record) if record.status.is_finished() => Some(*record),
        _ => None,
    })
}

/// Whether nothing of the task can follow `event`.
fn is_last(record: &Record, event: &Event) -> bool {
    event.fence >= record.fence
}

/// The events are gone: the record has the end of the log.
fn tail(context: &Context, record: &Record) -> Result<(), CliError> {
    if record.details.log_tail.is_empty() {
        return Ok(());
    }
    context.output.dim("the events are gone; this is the end of the log as the record has it");
    record.details.log_tail.lines().try_for_each(|line| context.output.line(line))
}
