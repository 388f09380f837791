//! `submit`: puts tasks into a queue, and waits for them when asked to.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::progress::Shown;
use super::request::{self, ContainerFlags, QueueFlags, TaskFlags};
use super::streams;
use super::watch::{self, Watch};
use crate::broker::{Broker, Submission, Submitted};
use crate::events::{Event, EventData};
use crate::task::{ContentType, Fence, Task, TaskId};

const USAGE: &str = "\
longshore submit [OPTIONS] IMAGE [ARGS]...
       longshore submit [OPTIONS] --file FILE";

const EXAMPLES: &str = "\
Examples:
  longshore submit busybox:latest echo hello
  longshore submit --progress --volume ./data:/data:ro --memory 4g tool:1 --input /data/a.tif
  longshore submit --count 100 --queue nightly --priority 2 busybox:latest true
  longshore submit --file task.json --label study=a

Options stand before the image; all after it is passed to the container. The id is printed as
soon as the task is durably queued. With --wait the exit code is 1 when a task failed.";

/// Put a task into a queue and print its id.
#[derive(Debug, Args)]
#[command(override_usage = USAGE, after_help = format!("{EXAMPLES}\n\n{}", streams::EXAMPLES))]
pub(crate) struct Submit {
    /// Read the task from a file, - being standard input (longshore schema task tells its form)
    #[arg(long, value_name = "FILE", conflicts_with = "words")]
    file: Option<PathBuf>,
    /// Submit it so many times
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    count: u32,
    /// Wait until every task ended, and tell how
    #[arg(long)]
    wait: bool,
    /// Wait, with a progress bar
    #[arg(long)]
    progress: bool,
    /// Wait, and print what the containers say
    #[arg(long)]
    logs: bool,
    /// The image, and what its program is given
    #[arg(value_name = "IMAGE [ARGS]", trailing_var_arg = true)]
    words: Vec<String>,
    #[command(flatten)]
    container: ContainerFlags,
    #[command(flatten)]
    task: TaskFlags,
    #[command(flatten)]
    queue: QueueFlags,
}

impl Submit {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let tasks = self.tasks(context)?;
        let broker = context.broker().await?;
        let submitted = submit(&broker, &tasks).await?;
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id.clone()).collect();
        tell(context, &tasks, &submitted)?;
        if !(self.wait || self.progress || self.logs) {
            return Ok(());
        }
        let store = context.store().await?;
        let shown = Shown::asked(self.progress, self.logs);
        let watch = Watch { broker: &broker, store: store.as_ref(), output: context.output, shown };
        watch::tell_ends(&watch, &ids, None).await
    }

    fn tasks(&self, context: &Context) -> Result<Vec<Task>, CliError> {
        let mut task = match &self.file {
            Some(path) => request::from_file(path, &context.limits())?,
            None => request::from_flags(&self.words, &self.container)?,
        };
        self.task.apply(&mut task)?;
        self.queue.apply(&mut task);
        request::check(&task)?;
        if self.count > 1 && (self.queue.id.is_some() || task.dedup_key.is_some()) {
            return Err(CliError::Usage(
                "--count with --id or a dedup key would be one task: leave one out".to_owned(),
            ));
        }
        let more = (1..self.count).map(|_| Task { id: TaskId::fresh(), ..task.clone() });
        Ok(std::iter::once(task.clone()).chain(more).take(self.count as usize).collect())
    }
}

/// Queues `tasks` and says so to whoever follows them.
pub(crate) async fn submit(broker: &Broker, tasks: &[Task]) -> Result<Vec<Submitted>, CliError> {
    let submissions = tasks.iter().map(|task| Submission::of(task, ContentType::Json, 0)).collect();
    let submitted = broker.submit.submit(submissions).await?;
    let queued: Vec<Event> = tasks
        .iter()
        .zip(&submitted)
        .filter(|(_, submitted)| **submitted == Submitted::Queued)
        .map(|(task, _)| queued(task))
        .collect();
    // The task is queued whether or not its event can be published.
    if let Err(error) = broker.topic.publish(&queued).await {
        tracing::warn!(%error, "the queued events were not published");
    }
    Ok(submitted)
}

fn queued(task: &Task) -> Event {
    Event {
        task: task.id.clone(),
        queue: task.queue.clone(),
        fence: Fence(0),
        number: 0,
        time: Timestamp::now(),
        data: EventData::Queued,
    }
}

fn tell(context: &Context, tasks: &[Task], submitted: &[Submitted]) -> Result<(), CliError> {
    let output = context.output;
    if output.is_json() {
        let rows: Vec<_> = tasks
            .iter()
            .zip(submitted)
            .map(|(task, submitted)| {
                let duplicate = *submitted == Submitted::Duplicate;
                json!({"id": task.id, "queue": task.queue, "duplicate": duplicate})
            })
            .collect();
        return output.document(&json!({ "submitted": rows }));
    }
    for (task, submitted) in tasks.iter().zip(submitted) {
        output.line(&task.id)?;
        if *submitted == Submitted::Duplicate {
            let key = task.dedup_key.as_deref().unwrap_or(task.id.as_str());
            output.note(format_args!("{key} was submitted before: nothing was added"));
        }
    }
    Ok(())
}
