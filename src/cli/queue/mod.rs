//! `queue …`: looks at queues, halts, empties and moves them.

mod moving;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use crate::broker::{Broker, Intake, MessageId, QueueInfo, WaitingQuery};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::age;
use crate::store::{RecordQuery, Status};
use crate::task::QueueName;

const EXAMPLES: &str = "\
Examples:
  longshore queue list                  what is ready, leased, delayed and dead in each queue
  longshore queue pause nightly         keep what is queued where it is; what runs goes on
  longshore queue resume nightly        hand it out again
  longshore queue purge nightly         tell how many would go; --yes removes them
  longshore queue move redis://old redis://new --queue nightly

A queue comes into being with the first task that is submitted to it, and workers fetch from those
that they name: longshore worker --queue nightly.";

/// Look at queues, halt, empty and move them.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum QueueCommand {
    /// List queues and what is in them
    List,
    /// Hand out nothing of a queue any more; what runs goes on
    Pause(Named),
    /// Hand out again
    Resume(Named),
    Purge(Purge),
    Move(moving::Move),
}

/// Which queue.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the queue
    #[arg(value_name = "QUEUE")]
    queue: QueueName,
}

/// Remove every task that waits in a queue, for good; what workers hold stays
#[derive(Debug, Args)]
pub(crate) struct Purge {
    /// Name of the queue
    #[arg(value_name = "QUEUE")]
    queue: QueueName,
    /// Do it; without it, only tell how many tasks would be gone
    #[arg(long)]
    yes: bool,
}

impl QueueCommand {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::List => list(context).await,
            Self::Pause(named) => set(context, named.queue, Intake::Paused).await,
            Self::Resume(named) => set(context, named.queue, Intake::Open).await,
            Self::Purge(purge) => purge.run(context).await,
            Self::Move(moving) => moving.run(context).await,
        }
    }
}

async fn list(context: &Context) -> Result<(), CliError> {
    let broker = context.broker().await?;
    let mut queues = broker.admin.queues().await?;
    queues.extend(in_custody(context, &broker).await?);
    let output = context.output;
    if output.is_json() {
        return output.document(&json!({ "queues": queues }));
    }
    if queues.is_empty() {
        output.note("there are no queues yet: longshore submit makes one");
        return Ok(());
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = queues
        .iter()
        .map(|queue| {
            vec![
                queue.name.to_string(),
                match queue.intake {
                    Intake::Open => "open".to_owned(),
                    Intake::Paused => "paused".to_owned(),
                },
                queue.ready.to_string(),
                queue.leased.to_string(),
                queue.delayed.to_string(),
                queue.dead.to_string(),
                queue.oldest.map_or_else(|| "-".to_owned(), |oldest| age(oldest, now)),
            ]
        })
        .collect();
    output.table(&["QUEUE", "INTAKE", "READY", "LEASED", "DELAYED", "DEAD", "OLDEST"], &rows)
}

/// Running tasks whose messages are looked for.
const RUNNING: usize = 1_000;

/// Where the messages of running tasks are kept, on a broker that cannot list them: their records name them.
async fn in_custody(context: &Context, broker: &Broker) -> Result<Vec<QueueInfo>, CliError> {
    if broker.capabilities.list {
        return Ok(Vec::new());
    }
    let running = RecordQuery {
        status: vec![Status::Staging, Status::Running, Status::Uploading],
        limit: RUNNING,
        ..RecordQuery::default()
    };
    let records = context.store().await?.list(&running).await?;
    let held: Vec<(QueueName, MessageId)> = records
        .into_iter()
        .filter(|record| record.source.as_deref() == Some(&broker.name))
        .filter_map(|record| Some((record.queue, MessageId(record.message?))))
        .collect();
    Ok(broker.admin.custody(&held).await?)
}

async fn set(context: &Context, queue: QueueName, intake: Intake) -> Result<(), CliError> {
    context.broker().await?.admin.set_intake(&queue, intake).await?;
    if context.output.is_json() {
        context.output.document(&json!({ "queue": queue, "intake": intake }))
    } else {
        let word = match intake {
            Intake::Open => "open",
            Intake::Paused => "paused",
        };
        context.output.line(format_args!("{queue}  is {word}"))
    }
}

impl Purge {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        let broker = context.broker().await?;
        let queue = self.queue;
        if !self.yes {
            let query = WaitingQuery { queue: Some(queue.clone()), ..WaitingQuery::default() };
            let count = broker.admin.waiting(&query).await?.iter().filter(|m| m.lease.is_none()).count();
            return Err(CliError::Usage(format!(
                "{count} tasks wait in {queue} and would be gone for good: add --yes to remove them"
            )));
        }
        let removed = broker.admin.purge(&queue).await?;
        if context.output.is_json() {
            context.output.document(&json!({ "queue": queue, "removed": removed }))
        } else {
            context.output.line(format_args!("{queue}  {removed} removed"))
        }
    }
}
