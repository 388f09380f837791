//! `events`: what happens, as lines of JSON.

use clap::Args;
use futures_util::StreamExt;
use jiff::Timestamp;

use super::context::Context;
use super::error::CliError;
use super::watch;
use crate::events::{EventFilter, EventKind, EventStart, cloudevent};
use crate::task::QueueName;
use crate::units::Span;

const EXAMPLES: &str = "\
Examples:
  longshore events --follow
  longshore events --task last
  longshore events --since 1h --kind failed --kind dead | jq -r .subject

Each line is a CloudEvent 1.0 in JSON; longshore schema event tells its form. Without --follow the
command ends with the newest event; events are kept for events.age.";

/// Print events as lines of JSON.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Events {
    /// Only of this task; last: the newest one
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Only of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only of this kind, such as progress or failed; can be repeated
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<EventKind>,
    /// Begin at this time, or so much time ago; with the oldest that is kept unless given
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// Go on with what happens from now; without --since begin there
    #[arg(short, long)]
    follow: bool,
}

fn kind(text: &str) -> Result<EventKind, String> {
    EventKind::parse(text).ok_or_else(|| {
        let known: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        format!("{text:?} is no kind of event: choose of {}", known.join(", "))
    })
}

/// A time such as 2026-11-23T10:00:00Z, or a duration before now such as 10m.
pub(crate) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let refused =
        || format!("{text:?} is neither a time such as 2026-11-23T10:00:00Z nor a duration such as 10m");
    let span: Span = text.parse().map_err(|_| refused())?;
    Timestamp::now().checked_sub(span.get()).map_err(|_| refused())
}

impl Events {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let broker = context.broker().await?;
        let task = match &self.task {
            None => None,
            Some(text) => Some(watch::resolve(&broker, context.store().await?.as_ref(), text).await?),
        };
        let start = match (self.since, self.follow) {
            (Some(time), _) => EventStart::Since(time),
            (None, true) if task.is_none() => EventStart::Now,
            (None, _) => EventStart::Oldest,
        };
        let filter = EventFilter { task, queue: self.queue, kinds: self.kind };
        let mut events = if self.follow {
            broker.topic.follow(filter, start).await?
        } else {
            broker.topic.replay(filter, start).await?
        };
        while let Some(event) = events.next().await {
            let mut line = cloudevent::encode(&event?);
            line.push(b'\n');
            context.output.bytes(&line)?;
        }
        Ok(())
    }
}
