//! `task retry`: a new life for a task that failed or was canceled.

use clap::Args;
use serde_json::json;

use super::Open;
use crate::broker::Submitted;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Shown;
use crate::cli::submit::submit;
use crate::cli::watch::{Standing, Watch, tell_ends, unknown};
use crate::store::{Record, Status};
use crate::task::{Task, TaskId, envelope};

const EXAMPLES: &str = "\
Examples:
  longshore task retry --wait last
  longshore task retry $(longshore task list --status failed --output json | jq -r '.tasks[].id')

The task keeps its id and counts its attempts anew; its earlier result is replaced by the new one.
Tasks that succeeded are not run again: submit them anew. Dead letters come back with longshore
dead requeue. With --wait the exit code is 1 when one did not succeed.";

/// Run tasks again that failed or were canceled.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Retry {
    /// Ids of the tasks; last: the newest one
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Wait until they ended
    #[arg(long)]
    wait: bool,
}

impl Retry {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let ids = open.resolve(&self.ids).await?;
        // All are looked at before any is queued.
        let mut tasks = Vec::with_capacity(ids.len());
        for id in &ids {
            tasks.push(again(context, open, id).await?);
        }
        for task in &tasks {
            open.broker.topic.forget_cancel(&task.id).await?;
        }
        let submitted = submit(&open.broker, &tasks).await?;
        let queued: Vec<&TaskId> = tasks
            .iter()
            .zip(&submitted)
            .filter(|(_, submitted)| **submitted == Submitted::Queued)
            .map(|(task, _)| &task.id)
            .collect();
        if !self.wait {
            return if context.output.is_json() {
                context.output.document(&json!({ "queued": queued }))
            } else {
                queued.iter().try_for_each(|id| context.output.line(id))
            };
        }
        let watch = Watch {
            broker: &open.broker,
            store: open.store.as_ref(),
            output: context.output,
            shown: Shown::Nothing,
        };
        tell_ends(&watch, &ids, None).await
    }
}

/// The task of `id` in its next generation.
async fn again(context: &Context, open: &Open, id: &TaskId) -> Result<Task, CliError> {
    let record = match open.standing(id).await? {
        Standing::Unknown => return Err(unknown(id)),
        Standing::Queued(_) => return Err(CliError::Usage(format!("{id} is queued already"))),
        Standing::Known(record) => record,
    };
    revived(&record, &context.limits())
}

fn revived(record: &Record, limits: &crate::task::Limits) -> Result<Task, CliError> {
    let id = &record.id;
    let usage = |text: String| Err(CliError::Usage(text));
    match record.status {
        Status::Failed | Status::Canceled => {}
        Status::Succeeded => return usage(format!("{id} succeeded: submit it anew to run it again")),
        Status::Dead => {
            return usage(format!("{id} is a dead letter: longshore dead requeue brings it back"));
        }
        Status::Queued
        | Status::Staging
        | Status::Running
        | Status::Uploading
        | Status::Retrying
        | Status::Released => {
            return usage(format!("{id} has not ended: it is {}", record.status.as_str()));
        }
    }
    let Some(kept) = &record.envelope else {
        return usage(format!("the record of {id} does not hold what was submitted: submit it anew"));
    };
    let body = serde_json::to_vec(kept).unwrap_or_default();
    let mut task = envelope::decode(&body, crate::task::ContentType::Json, limits).map_err(|error| {
        CliError::Usage(format!("what was submitted as {id} cannot be read any more: {error}"))
    })?;
    task.generation = record.generation.max(task.generation).next();
    // It was due and valid in its first life.
    task.not_before = None;
    task.expires = None;
    Ok(task)
}
