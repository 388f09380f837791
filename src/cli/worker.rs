//! `worker`: takes tasks until a signal ends it. `worker list` and its siblings, which ask about workers, are in `fleet`.

use clap::Args;
use figment::value::Value;
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::fleet::FleetCommand;
use crate::config::Flag;
use crate::units::Span;
use crate::worker::{self, Worker};

const EXAMPLES: &str = "\
Examples:
  longshore worker
  longshore worker --queue gpu --queue default --concurrency 4 --name quay-3
  longshore --broker sqlite:///srv/longshore.db worker
  longshore --broker amqp://hub// worker -Q celery -c 4 -n quay -l info -Ofair
  longshore --broker redis://hub worker list

One line is printed when the worker takes tasks. The first SIGTERM or SIGINT drains it: it takes
nothing new and ends when what runs has ended, at the latest after the drain's time. A second
one ends it at once. Exit codes: 0 drained, 2 wrong usage or settings, 3 something was left
behind, or broker or store failed.";

/// Take tasks and run them until a signal ends it, or look at workers and steer them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct WorkerCommand {
    /// Queue to take tasks from, default unless given; can be repeated
    #[arg(short = 'Q', long, visible_alias = "queues", value_name = "NAME", value_delimiter = ',')]
    queue: Vec<String>,
    /// Tasks that run at once; 0: one for each processor
    #[arg(short, long, value_name = "N")]
    concurrency: Option<u32>,
    /// Its name among all workers; the host's unless given
    #[arg(short, long, visible_alias = "hostname", value_name = "NAME")]
    name: Option<String>,
    /// How long running tasks may go on after the first signal
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<Span>,
    /// Accepted for a Celery worker's command line, without effect: slots are always shared fairly
    #[arg(short = 'O', value_name = "fair", value_parser = ["fair"], hide = true)]
    optimization: Option<String>,
    /// Accepted for a Celery worker's command line, without effect: worker.staging_ahead says what is taken ahead
    #[arg(long, value_name = "N", hide = true)]
    prefetch_multiplier: Option<u32>,
    #[command(subcommand)]
    fleet: Option<FleetCommand>,
}

impl WorkerCommand {
    /// Whether it is to take tasks itself.
    pub(crate) fn stays(&self) -> bool {
        self.fleet.is_none()
    }

    /// What the flags set.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        if !self.queue.is_empty() {
            let names: Vec<Value> = self.queue.iter().map(|name| Value::from(name.as_str())).collect();
            flags.push(Flag { flag: "--queue", key: "worker.queues", value: Value::from(names) });
        }
        if let Some(lanes) = self.concurrency {
            flags.push(Flag { flag: "--concurrency", key: "worker.concurrency", value: Value::from(lanes) });
        }
        if let Some(name) = &self.name {
            flags.push(Flag { flag: "--name", key: "worker.name", value: Value::from(name.as_str()) });
        }
        if let Some(time) = self.drain_timeout {
            let value = Value::from(time.to_string());
            flags.push(Flag { flag: "--drain-timeout", key: "worker.drain_timeout", value });
        }
        flags
    }

    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        // Not left to the parser: it would take flags for all commands, such as --config, for the worker's own.
        if !self.stays() && !self.flags().is_empty() {
            let text =
                "flags of a worker that starts stand before a command about workers: leave one of them out";
            return Err(CliError::Usage(text.to_owned()));
        }
        if let Some(command) = self.fleet {
            return command.run(context).await;
        }
        context.make_state_dir()?;
        let output = context.output;
        let mut told = Ok(());
        let settled = worker::serve(context.settings(), |worker| told = ready(context, worker)).await?;
        told?;
        if settled {
            Ok(())
        } else {
            let text = "tasks were left behind; other workers take them over when their leases end";
            if !output.is_json() {
                output.dim("the worker ended");
            }
            Err(CliError::Infrastructure(text.to_owned()))
        }
    }
}

fn ready(context: &Context, worker: &Worker) -> Result<(), CliError> {
    let queues: Vec<&str> = worker.queues.iter().map(AsRef::as_ref).collect();
    let name = worker.identity.worker.as_ref();
    if context.output.is_json() {
        return context.output.json_line(&json!({
            "ready": true,
            "worker": name,
            "queues": queues,
            "brokers": worker.sources,
            "store": worker.store,
            "lanes": worker.lanes,
        }));
    }
    context.output.line(format_args!(
        "{name} is ready: {} slots, queues {} of {}",
        worker.lanes,
        queues.join(", "),
        worker.sources.join(", ")
    ))
}
