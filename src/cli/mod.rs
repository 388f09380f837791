//! The command line: what can be typed, and what each command does with brokers, stores and workers.
//!
//! One file per noun. All printing goes through [`output`]; every command ends in `Ok` or a [`CliError`], whose exit
//! code says what went wrong. Called by `main`; nothing calls back into it.

mod context;
mod error;
mod global;
mod output;
mod policy;
mod progress;
mod request;
mod run;
mod watch;
mod worker;

mod broker;
mod config;
mod dead;
mod decode;
mod doctor;
mod events;
mod fleet;
mod generate;
mod queue;
mod redact;
mod schema;
mod streams;
mod submit;
mod task;

use std::process::ExitCode;

use std::time::Duration;

use clap::{Parser, Subcommand};

use context::Context;
use error::CliError;
use global::{Global, Logs};
use output::Output;

const EXAMPLES: &str = "\
Examples:
  longshore worker                                          take tasks from the embedded broker
  longshore submit --wait busybox:latest echo hello         queue a container and wait for its end
  longshore task list                                       what is there and where it stands
  longshore task logs -f last                               follow what the newest task says
  longshore doctor                                          look for what is missing

Exit codes: 0 done, 1 the task failed, 2 wrong usage or settings, 3 broker or store failed.
Settings: /etc/longshore.toml and LONGSHORE_ variables; longshore config show tells them all.";

/// Runs container tasks through a durable queue.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Worker(worker::WorkerCommand),
    Submit(submit::Submit),
    #[command(subcommand)]
    Task(task::TaskCommand),
    Events(events::Events),
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    Decode(decode::Decode),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Schema(schema::SchemaCommand),
    Completions(generate::Completions),
    Man(generate::Man),
}

/// Parses the process's arguments, does what they ask, and says with which code to end.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { format: cli.global.output };
    match cli.run(output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_silent() {
                output.error(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

impl Cli {
    fn run(self, output: Output) -> Result<(), CliError> {
        // These work where the settings are wrong, too.
        match &self.command {
            Command::Completions(completions) => return completions.run(output),
            Command::Man(man) => return man.run(output),
            Command::Schema(schema) => return schema.run(output),
            Command::Config(config::ConfigCommand::Default) => {
                return output.bytes(crate::config::TEMPLATE.as_bytes());
            }
            Command::Config(config::ConfigCommand::Check(check)) => return check.run(&self.global, output),
            _ => {}
        }
        let (flags, logs) = match &self.command {
            Command::Worker(worker) if worker.stays() => (worker.flags(), Logs::Always),
            _ => (Vec::new(), Logs::WhenAsked),
        };
        let loaded = crate::config::load(&self.global.sources(flags))?;
        self.global.start_log(&loaded.settings.log, logs);
        let context = Context { loaded, output };
        if let Command::Config(command) = &self.command {
            return command.run(&context);
        }
        runtime()?.block_on(self.command.run(&context))
    }
}

impl Command {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Run(run) => run.run(context).await,
            Self::Worker(worker) => worker.run(context).await,
            Self::Submit(submit) => submit.run(context).await,
            Self::Task(command) => command.run(context).await,
            Self::Events(events) => events.run(context).await,
            Self::Queue(command) => command.run(context).await,
            Self::Broker(command) => command.run(context).await,
            Self::Dead(command) => command.run(context).await,
            Self::Decode(decode) => decode.run(context),
            Self::Policy(command) => command.run(context),
            Self::Doctor(doctor) => doctor.run(context).await,
            Self::Config(command) => command.run(context),
            Self::Schema(schema) => schema.run(context.output),
            Self::Completions(completions) => completions.run(context.output),
            Self::Man(man) => man.run(context.output),
        }
    }
}

/// Longer than from one heartbeat to the next: a thread that ends between them is one more moment at which an idle worker
/// wakes, and the next heartbeat has to start another one.
const BETWEEN_HEARTBEATS: Duration = Duration::from_secs(20);

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(BETWEEN_HEARTBEATS)
        .build()
        .map_err(|error| CliError::Infrastructure(format!("no threads can be started: {error}")))
}
