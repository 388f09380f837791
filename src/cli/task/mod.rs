//! `task …`: looks at tasks, waits for them, ends them, runs them again, helps their outputs on. One file per verb.

mod asked;
mod cancel;
mod explain;
mod fit;
mod list;
mod logs;
mod retry;
mod show;
mod upload;
mod wait;

use std::sync::Arc;

use clap::Subcommand;

use super::context::Context;
use super::error::CliError;
use super::watch;
use crate::broker::Broker;
use crate::store::ResultStore;
use crate::task::TaskId;

const EXAMPLES: &str = "\
Examples:
  longshore task list --status failed --since 1d     what went wrong since yesterday
  longshore task show last                           all that is recorded of the newest task
  longshore task logs --follow last                  what it says, while it says it
  longshore task explain last                        why it does not run

Tasks are named by the id that submit prints; last is the newest one.";

/// Look at tasks, wait for them, cancel or retry them.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum TaskCommand {
    List(list::List),
    Show(show::Show),
    Wait(wait::Wait),
    Logs(logs::Logs),
    Cancel(cancel::Cancel),
    Retry(retry::Retry),
    Upload(upload::Upload),
    Explain(explain::Explain),
}

impl TaskCommand {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let open = Open { broker: context.broker().await?, store: context.store().await? };
        match self {
            Self::List(list) => list.run(context, &open).await,
            Self::Show(show) => show.run(context, &open).await,
            Self::Wait(wait) => wait.run(context, &open).await,
            Self::Logs(logs) => logs.run(context, &open).await,
            Self::Cancel(cancel) => cancel.run(context, &open).await,
            Self::Retry(retry) => retry.run(context, &open).await,
            Self::Upload(upload) => upload.run(context, &open).await,
            Self::Explain(explain) => explain.run(context, &open).await,
        }
    }
}

/// The opened broker and store.
struct Open {
    broker: Broker,
    store: Arc<dyn ResultStore>,
}

impl Open {
    /// The ids that the texts mean.
    async fn resolve(&self, texts: &[String]) -> Result<Vec<TaskId>, CliError> {
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            ids.push(watch::resolve(&self.broker, self.store.as_ref(), text).await?);
        }
        Ok(ids)
    }

    /// Where `id` stands.
    async fn standing(&self, id: &TaskId) -> Result<watch::Standing, CliError> {
        watch::standing(&self.broker, self.store.as_ref(), id).await
    }
}
