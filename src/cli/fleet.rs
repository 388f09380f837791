//! `worker list|info|drain|resume`: looks at the workers of a broker and steers them.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::output::{age, time};
use crate::broker::{Broker, Command, Disk, Presence};
use crate::units::Size;

/// What can be asked about workers.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// List the workers that live
    List,
    /// Show everything that a worker says of itself
    Info(Named),
    /// Let a worker finish what it has and take nothing new
    Drain(Named),
    /// Let a drained worker take tasks again
    Resume(Named),
}

/// Which worker.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the worker
    #[arg(value_name = "WORKER")]
    worker: String,
}

impl FleetCommand {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let broker = context.broker().await?;
        match self {
            Self::List => list(context, &broker).await,
            Self::Info(Named { worker }) => info(context, &find(&broker, &worker).await?),
            Self::Drain(Named { worker }) => {
                find(&broker, &worker).await?;
                broker.topic.command(Command::Drain { worker: worker.clone() }).await?;
                told(context, &worker, "asked to drain")
            }
            Self::Resume(Named { worker }) => {
                find(&broker, &worker).await?;
                broker.topic.command(Command::Resume { worker: worker.clone() }).await?;
                told(context, &worker, "asked to resume")
            }
        }
    }
}

/// The presence of the worker of that name.
async fn find(broker: &Broker, name: &str) -> Result<Presence, CliError> {
    let workers = broker.fleet.workers().await?;
    let known: Vec<String> = workers.iter().map(|presence| presence.worker.clone()).collect();
    workers.into_iter().find(|presence| presence.worker == name).ok_or_else(|| {
        let known = if known.is_empty() { "no worker lives".to_owned() } else { known.join(", ") };
        CliError::Usage(format!("no worker {name:?} lives at {}; known are: {known}", broker.name))
    })
}

fn told(context: &Context, worker: &str, what: &str) -> Result<(), CliError> {
    if context.output.is_json() {
        context.output.document(&json!({ "worker": worker, "told": what }))
    } else {
        context.output.line(format_args!("{worker}  {what}"))
    }
}

async fn list(context: &Context, broker: &Broker) -> Result<(), CliError> {
    let workers = broker.fleet.workers().await?;
    let output = context.output;
    if output.is_json() {
        return output.document(&json!({ "workers": workers }));
    }
    if workers.is_empty() {
        output.note(format_args!("no worker lives at {}: longshore worker starts one", broker.name));
        return Ok(());
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = workers
        .iter()
        .map(|worker| {
            vec![
                worker.worker.clone(),
                worker.host.clone(),
                worker.version.clone(),
                worker.phase.clone(),
                format!("{}/{}", worker.busy, worker.lanes),
                worker.pool.gpus.len().to_string(),
                worker.disks.first().map_or_else(|| "-".to_owned(), free),
                queues(worker),
                age(worker.seen, now),
            ]
        })
        .collect();
    let head = ["WORKER", "HOST", "VERSION", "PHASE", "BUSY", "GPUS", "DISK FREE", "QUEUES", "SEEN"];
    output.table(&head, &rows)
}

fn info(context: &Context, worker: &Presence) -> Result<(), CliError> {
    let output = context.output;
    if output.is_json() {
        return output.document(worker);
    }
    let pool = &worker.pool;
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let custom: Vec<String> = pool.custom.iter().map(|(name, amount)| format!("{name} {amount}")).collect();
    let disks: Vec<String> = worker
        .disks
        .iter()
        .map(|disk| format!("{} {} free of {}", disk.path, free(disk), Size::from_bytes(disk.total)))
        .collect();
    let lines = [
        ("worker", worker.worker.clone()),
        ("host", worker.host.clone()),
        ("version", worker.version.clone()),
        ("incarnation", worker.incarnation.clone()),
        ("phase", worker.phase.clone()),
        ("slots", format!("{} of {} busy", worker.busy, worker.lanes)),
        ("queues", queues(worker)),
        ("kinds", worker.kinds.join(", ")),
        ("envelope", format!("up to version {}", worker.envelope)),
        ("platform", or_none(pool.platform.clone())),
        ("cpus", pool.cpus.to_string()),
        ("memory", Size::from_bytes(pool.memory).to_string()),
        ("gpus", or_none(pool.gpus.join(", "))),
        ("custom", or_none(custom.join(", "))),
        ("disks", or_none(disks.join(", "))),
        ("seen", time(worker.seen)),
        ("deadline", time(worker.deadline)),
    ];
    lines.into_iter().try_for_each(|(name, value)| output.line(format_args!("{name:<12} {value}")))
}

fn free(disk: &Disk) -> String {
    Size::from_bytes(disk.free).to_string()
}

fn queues(worker: &Presence) -> String {
    worker.queues.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ")
}
