//! `task logs`: what the container and the worker said.

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::Open;
use crate::broker::BrokerError;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::progress::{Display, Shown};
use crate::cli::watch::{Standing, gone, unknown};
use crate::events::{Event, EventData, EventFilter, EventStart};
use crate::store::Record;
use crate::task::{Fence, TaskId};

const EXAMPLES: &str = "\
Examples:
  longshore task logs last
  longshore task logs --follow last 2>/dev/null | grep error
  longshore task logs last --output json | jq -r .data.text

The container's standard output goes to standard output; its standard error and the worker's notes
go to standard error. Of a task that was tried again, all attempts are shown, each after a line that
names it. Events are kept for events.age; after that, the end of the log stands in the record.";

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

impl Logs {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let id = open.resolve(&[self.id]).await?.remove(0);
        let filter = EventFilter { task: Some(id.clone()), ..EventFilter::default() };
        let topic = &open.broker.topic;
        let replays = open.broker.capabilities.replay;
        // Followed before the record is read, so that no end can fall between.
        let start = if replays { EventStart::Oldest } else { EventStart::Now };
        let followed = if self.follow { Some(topic.follow(filter.clone(), start).await?) } else { None };
        let finished = match open.standing(&id).await? {
            Standing::Unknown => return Err(unknown(&id)),
            Standing::Known(record) if record.status.is_finished() => Some(*record),
            Standing::Known(_) | Standing::Queued(_) => None,
        };
        let mut told = Told::new(context);
        match (followed, finished) {
            (Some(events), None) => follow(open, &id, events, &mut told).await?,
            (_, Some(record)) if !replays => return tail(context, &record),
            (_, finished) => {
                let mut events = topic.replay(filter, EventStart::Oldest).await?;
                while let Some(event) = events.next().await {
                    told.event(&event?)?;
                }
                if let Some(record) = finished.filter(|_| told.lines == 0) {
                    return tail(context, &record);
                }
            }
        }
        Ok(())
    }
}

/// Tells what happens until the task ends.
async fn follow(
    open: &Open,
    id: &TaskId,
    mut events: BoxStream<'static, Result<Event, BrokerError>>,
    told: &mut Told,
) -> Result<(), CliError> {
    let mut gone = std::pin::pin!(gone(&open.broker, open.store.as_ref(), id));
    loop {
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            why = &mut gone => return Err(why),
        };
        let Some(event) = event else { return Ok(()) };
        let event = event?;
        told.event(&event)?;
        if event.kind().is_terminal()
            && let Standing::Known(record) = open.standing(id).await?
            && record.status.is_finished()
            && is_last(&record, &event)
        {
            return Ok(());
        }
    }
}

/// What was told so far.
struct Told {
    output: Output,
    display: Display,
    lines: u64,
    attempt: Option<Fence>,
}

impl Told {
    fn new(context: &Context) -> Self {
        let shown = if context.output.is_json() { Shown::Events } else { Shown::Logs };
        Self { output: context.output, display: Display::new(context.output, shown), lines: 0, attempt: None }
    }

    fn event(&mut self, event: &Event) -> Result<(), CliError> {
        match &event.data {
            EventData::Log { .. } => {
                self.lines += 1;
                self.display.event(event)
            }
            EventData::Staging { attempt, worker } => {
                let earlier = self.attempt.replace(event.fence);
                if earlier.is_some_and(|earlier| earlier < event.fence) && !self.output.is_json() {
                    self.output.dim(format_args!("-- attempt {attempt}, by {worker}"));
                }
                Ok(())
            }
            EventData::Queued
            | EventData::Running { .. }
            | EventData::Progress(_)
            | EventData::Succeeded { .. }
            | EventData::Failed { .. }
            | EventData::Canceled { .. }
            | EventData::Retrying { .. }
            | EventData::Dead { .. } => Ok(()),
        }
    }
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
