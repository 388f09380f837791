//! `task cancel`: asks for the end of tasks, wherever they are.

use clap::Args;
use serde_json::json;

use super::Open;
use crate::broker::Command;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Shown;
use crate::cli::watch::{Standing, Watch, tell_ends, unknown};
use crate::units::Span;

const EXAMPLES: &str = "\
Examples:
  longshore task cancel last
  longshore task cancel --wait --timeout 30s --reason 'wrong input' 0192e1c4-5f7a-7cc3-98c4-dc0c0c07398f

The request is durable: a queued task is dropped when a worker meets it, and never starts. A running
container gets its stop signal, and is killed after docker.stop_grace. With --wait the exit code is
0 when they ended, however that was, and 3 when they did not in time.";

/// Ask for the end of tasks, wherever they are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Cancel {
    /// Ids of the tasks; last: the newest one
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "canceled from the command line")]
    reason: String,
    /// Wait until they ended
    #[arg(long)]
    wait: bool,
    /// Wait for so much time only
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Span>,
}

impl Cancel {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let ids = open.resolve(&self.ids).await?;
        let mut asked = Vec::new();
        for id in &ids {
            match open.standing(id).await? {
                Standing::Unknown => return Err(unknown(id)),
                Standing::Known(record) if record.status.is_finished() => {
                    context.output.note(format_args!("{id} had already {}", ended(record.status)));
                    continue;
                }
                Standing::Known(_) | Standing::Queued(_) => {}
            }
            let command = Command::Cancel { task: id.clone(), reason: self.reason.clone() };
            open.broker.topic.command(command).await?;
            asked.push(id.clone());
        }
        if !self.wait {
            return if context.output.is_json() {
                context.output.document(&json!({ "canceling": asked }))
            } else {
                asked.iter().try_for_each(|id| context.output.line(format_args!("{id}  is being canceled")))
            };
        }
        let watch = Watch {
            broker: &open.broker,
            store: open.store.as_ref(),
            output: context.output,
            shown: Shown::Nothing,
        };
        match tell_ends(&watch, &asked, self.timeout.map(Span::get)).await {
            // Not to succeed is what was asked for.
            Err(CliError::TaskFailed(_)) => Ok(()),
            other => other,
        }
    }
}

fn ended(status: crate::store::Status) -> String {
    use crate::store::Status;
    match status {
        Status::Canceled => "been canceled".to_owned(),
        Status::Dead => "been parked as a dead letter".to_owned(),
        Status::Queued
        | Status::Staging
        | Status::Running
        | Status::Uploading
        | Status::Retrying
        | Status::Released
        | Status::Succeeded
        | Status::Failed => status.as_str().to_owned(),
    }
}
