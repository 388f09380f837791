//! `run`: one container task in this process, the whole road through a broker in memory.

use std::future::Future;

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::output::Output;
use super::progress::{Display, Shown};
use super::request::{self, ContainerFlags, TaskFlags};
use super::streams;
use super::watch::end_in_words;
use crate::store::{Outcome, Record};
use crate::worker;

const USAGE: &str = "longshore run [OPTIONS] IMAGE [ARGS]...";

const EXAMPLES: &str = "\
Examples:
  longshore run busybox:latest echo hello
  longshore run --volume ./data:/data:ro --memory 512m --timeout 1h tool:1 /data/a.tif
  longshore run --json busybox:latest true | jq -r .type

Options stand before the image; all after it is passed to the container. What the container says
goes to standard output and standard error. The exit code is the container's own; 125: it could
not be made, 126: its program cannot be run, 127: its program was not found.";

/// Run a container task here and now, without a queue.
#[derive(Debug, Args)]
#[command(override_usage = USAGE, after_help = format!("{EXAMPLES}\n\n{}", streams::EXAMPLES))]
pub(crate) struct Run {
    /// The image, and what its program is given
    #[arg(value_name = "IMAGE [ARGS]", trailing_var_arg = true, required = true)]
    words: Vec<String>,
    /// Print every event as a line of JSON instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    container: ContainerFlags,
    #[command(flatten)]
    task: TaskFlags,
}

impl Run {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let json = self.json || context.output.is_json();
        if json && self.container.streams.uses_our_output() {
            return Err(CliError::Usage(
                "--json: events and a stream to - would mix on standard output; send the stream to stderr or a URL"
                    .to_owned(),
            ));
        }
        let mut task = request::from_flags(&self.words, &self.container)?;
        self.task.apply(&mut task)?;
        request::check(&task)?;
        context.make_state_dir()?;
        let shown = if json { Shown::Events } else { Shown::Everything };
        let mut display = Display::new(context.output, shown);
        let mut told = Ok(());
        let watch = |event: &crate::events::Event| {
            if told.is_ok() {
                told = display.event(event);
            }
        };
        let record = worker::run_once(context.settings(), task, watch, interrupted()).await?;
        display.end();
        told?;
        end(context.output, &record)
    }
}

/// Resolves when a person or the system asks for the end.
fn interrupted() -> impl Future<Output = String> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    async move {
        let Ok((mut int, mut term)) = signals else { return std::future::pending().await };
        tokio::select! {
            _ = int.recv() => "interrupted".to_owned(),
            _ = term.recv() => "terminated".to_owned(),
        }
    }
}

/// Says what is not plain from the container's output, and ends with its code.
fn end(output: Output, record: &Record) -> Result<(), CliError> {
    let code = exit_code(record);
    if code == 0 {
        return Ok(());
    }
    let plain =
        record.details.exit_code.is_some_and(|code| code != 0) && record.details.oom_killed != Some(true);
    if !plain && !output.is_json() {
        output.note(format_args!("longshore: {}", end_in_words(record)));
    }
    Err(CliError::Container(code))
}

/// As `docker run` ends: the container's own code, 125-127 where there was no container or program to have one.
fn exit_code(record: &Record) -> u8 {
    let own = |code: i64| u8::try_from(code & 0xff).ok().filter(|code| *code != 0);
    match &record.outcome {
        Some(Outcome::Succeeded) => 0,
        Some(Outcome::Failed { error }) => {
            record.details.exit_code.and_then(own).or(error.exit_code.and_then(own)).unwrap_or(125)
        }
        // As a shell names the end by SIGINT; the container may never have had a code.
        Some(Outcome::Canceled { .. }) => 130,
        Some(Outcome::Dead { .. }) | None => 125,
    }
}
