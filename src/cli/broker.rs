//! `broker init|permissions`: makes ready what a broker must hold, and tells what its users must be allowed to do.

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::{Context, url};
use super::error::CliError;
use crate::broker::nats::permissions::{Permissions, Role};
use crate::broker::{self, nats};
use crate::task::QueueName;

const EXAMPLES: &str = "\
Examples:
  longshore --broker nats://hub broker init --queue default --queue gpu
                                        make and repair the streams and consumers of a namespace
  longshore --broker nats://hub broker permissions --role worker
                                        print what a worker's user must be allowed to do at the server

Workers make what they need by themselves unless the address says manage=no: then somebody who may all
runs broker init once, also after an upgrade. Limits that are too low are raised; nothing is shrunk or
deleted.";

/// Make ready what a broker must hold
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum BrokerCommand {
    Init(Init),
    Permissions(Wanted),
}

/// Make what the first broker must hold, and raise limits that are too low
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// A queue that workers will fetch from; may be given more than once [default: worker.queues]
    #[arg(long = "queue", value_name = "NAME")]
    queues: Vec<QueueName>,
}

/// Print the permissions that a user of a NATS server needs
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// What the user does
    #[arg(long, value_enum)]
    role: Role,
}

impl BrokerCommand {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Init(init) => init.run(context).await,
            Self::Permissions(wanted) => wanted.run(context),
        }
    }
}

impl Init {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut options = context.open_options();
        options.queues = self.queues;
        if options.queues.is_empty() {
            let named = context.settings().worker.queues.iter().map(|name| QueueName::new(name.as_str()));
            let named: Result<Vec<_>, _> = named.collect();
            options.queues = named.map_err(|error| CliError::Usage(format!("worker.queues: {error}")))?;
        }
        let address = url(&context.settings().brokers[0])?;
        context.make_state_dir()?;
        let lines = broker::initialize(&address, &options).await?;
        if context.output.is_json() {
            return context.output.document(&json!({ "broker": address.to_string(), "done": lines }));
        }
        lines.iter().try_for_each(|line| context.output.line(line))
    }
}

impl Wanted {
    fn run(self, context: &Context) -> Result<(), CliError> {
        let address = url(&context.settings().brokers[0])?;
        if !nats::ADAPTER.schemes.contains(&address.scheme()) {
            return Err(CliError::Usage(format!(
                "{address} is no NATS server, whose permissions this prints: name one with --broker nats://host"
            )));
        }
        let permissions = Permissions::of(&address, self.role)?;
        if context.output.is_json() {
            return context.output.document(&permissions);
        }
        context.output.bytes(permissions.as_settings().as_bytes())
    }
}
