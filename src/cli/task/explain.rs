//! `task explain`: why a task does not run.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::Open;
use crate::broker::{BrokerError, Intake, Presence, QueueInfo};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::time;
use crate::cli::watch::{Standing, end_in_words, unknown};
use crate::store::{Record, Status};
use crate::task::{QueueName, TaskId};

/// Tell why a task does not run.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Id of the task; last: the newest one
    #[arg(value_name = "ID")]
    id: String,
}

impl Explain {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let id = open.resolve(&[self.id]).await?.remove(0);
        let facts = Facts::gather(open, &id).await?;
        let reasons = facts.reasons();
        if context.output.is_json() {
            return context
                .output
                .document(&json!({ "id": id, "status": facts.status(), "reasons": reasons }));
        }
        context.output.line(format_args!("{id}  {}", facts.status().as_str()))?;
        reasons.iter().try_for_each(|reason| context.output.line(format_args!("  {reason}")))
    }
}

/// All that decides whether a task runs.
#[derive(Debug)]
struct Facts {
    standing: Standing,
    cancel: Option<String>,
    queue: Option<QueueInfo>,
    workers: Vec<Presence>,
    now: Timestamp,
}

impl Facts {
    async fn gather(open: &Open, id: &TaskId) -> Result<Self, CliError> {
        let standing = open.standing(id).await?;
        let name = match &standing {
            Standing::Unknown => return Err(unknown(id)),
            Standing::Queued(message) => message.queue.clone(),
            Standing::Known(record) => record.queue.clone(),
        };
        let queues = supported(open.broker.admin.queues().await)?;
        Ok(Self {
            standing,
            cancel: open.broker.topic.cancel_requested(id).await?,
            queue: queues.into_iter().find(|queue| queue.name == name),
            workers: supported(open.broker.fleet.workers().await)?,
            now: Timestamp::now(),
        })
    }

    fn status(&self) -> Status {
        match &self.standing {
            Standing::Known(record) => record.status,
            Standing::Queued(_) | Standing::Unknown => Status::Queued,
        }
    }

    /// One sentence for each thing that holds the task, the hardest first.
    fn reasons(&self) -> Vec<String> {
        let mut reasons = match &self.standing {
            Standing::Known(record) if record.status.is_finished() => return finished(record),
            Standing::Known(record) => self.met(record),
            Standing::Queued(_) | Standing::Unknown => Vec::new(),
        };
        if let Some(reason) = &self.cancel {
            reasons.push(format!("it is to be canceled ({reason}), as soon as a worker meets it"));
        }
        if self.is_held_by_a_worker() {
            return reasons;
        }
        if let Standing::Queued(message) = &self.standing {
            if let Some(at) = message.not_before.filter(|at| *at > self.now) {
                reasons.push(format!("it must not start before {}", time(at)));
            }
            if let Some((until, by)) = &message.lease {
                reasons.push(format!("{by} has taken it and holds it until {}", time(*until)));
                return reasons;
            }
        }
        reasons.extend(self.about_the_queue());
        if reasons.is_empty() {
            reasons.push(
                "nothing holds it: a worker should take it at once; longshore doctor looks closer".to_owned(),
            );
        }
        reasons
    }

    fn is_held_by_a_worker(&self) -> bool {
        matches!(self.status(), Status::Staging | Status::Running | Status::Uploading)
    }

    /// What the record of a task that has not ended tells.
    fn met(&self, record: &Record) -> Vec<String> {
        let by = record.owner.as_ref().map_or("a worker", |owner| owner.worker.as_str());
        let why = record.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let lapsed = record.lease_until.is_some_and(|until| until < self.now);
        let mut reasons = match record.status {
            Status::Staging => vec![format!("{by} prepares it, attempt {}", record.attempts)],
            Status::Running => vec![format!("{by} runs it, attempt {}", record.attempts)],
            Status::Uploading => vec![format!("its container ended; {by} brings its outputs away")],
            Status::Retrying => vec![format!("attempt {} failed{why}; it is tried again", record.attempts)],
            Status::Released => vec![format!("{by} gave it back{why}")],
            Status::Queued | Status::Succeeded | Status::Failed | Status::Canceled | Status::Dead => {
                Vec::new()
            }
        };
        if self.is_held_by_a_worker() && lapsed {
            reasons.push(format!(
                "{by} has not been heard of since its lease ended; another worker will take it over"
            ));
        }
        reasons
    }

    fn about_the_queue(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let name = match &self.standing {
            Standing::Queued(message) => &message.queue,
            Standing::Known(record) => &record.queue,
            Standing::Unknown => return reasons,
        };
        if self.queue.as_ref().is_some_and(|queue| queue.intake == Intake::Paused) {
            reasons.push(format!("the queue {name} is paused: longshore queue resume {name} opens it"));
        }
        reasons.extend(self.about_workers(name));
        if let Standing::Queued(message) = &self.standing
            && let Some(ahead) = message.ahead.filter(|ahead| *ahead > 0)
        {
            reasons.push(format!("{ahead} tasks stand before it in {name}"));
        }
        reasons
    }

    fn about_workers(&self, name: &QueueName) -> Vec<String> {
        let here: Vec<&Presence> =
            self.workers.iter().filter(|worker| worker.queues.contains(name)).collect();
        if here.is_empty() {
            let others = if self.workers.is_empty() {
                "no worker lives here".to_owned()
            } else {
                let names: Vec<String> = self.workers.iter().map(fetches).collect();
                format!("those that live fetch elsewhere: {}", names.join("; "))
            };
            return vec![format!(
                "no worker fetches from {name} ({others}): start one with longshore worker --queue {name}"
            )];
        }
        if let Standing::Known(record) = &self.standing
            && !here.iter().any(|worker| worker.kinds.contains(&record.kind))
        {
            return vec![format!("no worker of {name} knows the kind {}: upgrade one", record.kind)];
        }
        if here.iter().all(|worker| worker.phase != "running") {
            return vec![format!("every worker of {name} is stopping and takes nothing new")];
        }
        if here.iter().all(|worker| worker.busy >= worker.lanes) {
            let lanes: u32 = here.iter().map(|worker| worker.lanes).sum();
            return vec![format!("all {lanes} slots of the {} workers of {name} are taken", here.len())];
        }
        Vec::new()
    }
}

fn fetches(worker: &Presence) -> String {
    let queues: Vec<&str> = worker.queues.iter().map(QueueName::as_str).collect();
    format!("{} from {}", worker.worker, queues.join(", "))
}

fn finished(record: &Record) -> Vec<String> {
    let at = record.times.finished.map(|at| format!(" at {}", time(at))).unwrap_or_default();
    vec![format!("it has ended{at}: {}", end_in_words(record))]
}

/// What a broker cannot tell is left out.
fn supported<T>(answer: Result<Vec<T>, BrokerError>) -> Result<Vec<T>, CliError> {
    match answer {
        Ok(found) => Ok(found),
        Err(BrokerError::Unsupported { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
