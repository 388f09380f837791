//! `task explain`: why a task does not run, and which of the workers that live could run it.

use std::collections::BTreeSet;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::Open;
use super::asked::Asked;
use super::fit::{Fit, fit};
use crate::broker::{BrokerError, Intake, Presence, QueueInfo, Waiting};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::time;
use crate::cli::watch::{Standing, end_in_words, stands, unknown, waiting_of};
use crate::store::{Record, Status};
use crate::task::{QueueName, TaskId};

const EXAMPLES: &str = "\
Examples:
  longshore task explain last
  longshore task explain last --output json | jq '.workers[] | select(.fits)'

What holds the task comes first: a paused queue, a time that has not come, tasks before it, a
cancel. Then each worker that lives, and what keeps it from running the task: queue, kind, version,
processors, memory, GPUs, platform or another resource. What the task asks for is read with the
[[rules]] of the settings at hand.";

/// Tell why a task does not run, and which workers could run it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Explain {
    /// Id of the task; last: the newest one
    #[arg(value_name = "ID")]
    id: String,
}

impl Explain {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let id = open.resolve(&[self.id]).await?.remove(0);
        let facts = Facts::gather(context, open, &id).await?;
        let (reasons, workers) = (facts.reasons(), facts.fits());
        if context.output.is_json() {
            let asks = facts.asked.task().map(|task| &task.resources);
            return context.output.document(&json!({
                "id": id,
                "status": facts.status(),
                "queue": facts.queue_name(),
                "ahead": facts.message.as_ref().and_then(|message| message.ahead),
                "resources": asks,
                "reasons": reasons,
                "workers": workers,
            }));
        }
        context.output.line(format_args!("{id}  {}", facts.status().as_str()))?;
        reasons.iter().try_for_each(|reason| context.output.line(format_args!("  {reason}")))?;
        workers.iter().try_for_each(|worker| context.output.line(format_args!("  {worker}")))
    }
}

const NONE_FITS: &str = "no worker that lives could run it: \
    it is given back, and refused after worker.unfit_timeout unless one comes";

/// All that decides whether a task runs.
#[derive(Debug)]
struct Facts {
    standing: Standing,
    message: Option<Waiting>,
    asked: Asked,
    cancel: Option<String>,
    queue: Option<QueueInfo>,
    workers: Vec<Presence>,
    now: Timestamp,
}

impl Facts {
    async fn gather(context: &Context, open: &Open, id: &TaskId) -> Result<Self, CliError> {
        // The queue first: a message that is settled in between has left a record.
        let waiting = waiting_of(&open.broker, id).await?.unwrap_or_default();
        let record = open.store.load(id).await?.map(|versioned| versioned.record);
        let message = waiting.iter().max_by_key(|message| message.submitted).cloned();
        let asked = message.as_ref().map(|message| Asked::of(message, context));
        let standing = stands(record, waiting);
        let name = match &standing {
            Standing::Unknown => return Err(unknown(id)),
            Standing::Queued(message) => message.queue.clone(),
            Standing::Known(record) => record.queue.clone(),
        };
        let queues = supported(open.broker.admin.queues().await)?;
        Ok(Self {
            standing,
            message,
            asked: asked.unwrap_or(Asked::Untold),
            cancel: open.broker.topic.cancel_requested(id).await?,
            queue: queues.into_iter().find(|queue| queue.name == name),
            workers: supported(open.broker.fleet.workers().await)?,
            now: Timestamp::now(),
        })
    }

    fn queue_name(&self) -> Option<&QueueName> {
        match &self.standing {
            Standing::Queued(message) => Some(&message.queue),
            Standing::Known(record) => Some(&record.queue),
            Standing::Unknown => None,
        }
    }

    /// Each worker that lives, and whether it could run the task; none where that does not matter any more.
    fn fits(&self) -> Vec<Fit> {
        let matters = !self.is_held_by_a_worker() && !self.status().is_finished();
        let Some(queue) = self.queue_name().filter(|_| matters) else { return Vec::new() };
        let kind = match &self.standing {
            Standing::Known(record) => Some(record.kind.as_str()),
            Standing::Queued(_) | Standing::Unknown => None,
        };
        self.workers.iter().map(|worker| fit(worker, queue, &self.asked, kind)).collect()
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
        if let Some(message) = &self.message {
            if let Some(at) = message.not_before.filter(|at| *at > self.now) {
                reasons.push(format!("it must not start before {}", time(at)));
            }
            if let Some((until, by)) = &message.lease {
                reasons.push(format!("{by} has taken it and holds it until {}", time(*until)));
                return reasons;
            }
        }
        if let Asked::Unreadable(why) = &self.asked {
            reasons.push(format!("it cannot be read and will be parked as a dead letter: {why}"));
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
        let until = record.lease_until.filter(|until| *until >= self.now);
        let leased =
            until.map(|until| format!(", its lease lasts until {}", time(until))).unwrap_or_default();
        let held = record.lease_until.max(record.spooled.as_ref().map(|spooled| spooled.until));
        let lapsed = held.is_some_and(|until| until < self.now);
        let mut reasons = match record.status {
            Status::Staging => vec![format!("{by} prepares it, attempt {}{leased}", record.attempts)],
            Status::Running => vec![format!("{by} runs it, attempt {}{leased}", record.attempts)],
            Status::Uploading => outputs(record, by),
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
        let Some(name) = self.queue_name() else { return reasons };
        if self.queue.as_ref().is_some_and(|queue| queue.intake == Intake::Paused) {
            reasons.push(format!("the queue {name} is paused: longshore queue resume {name} opens it"));
        }
        reasons.extend(self.about_workers(name));
        if let Some(ahead) =
            self.message.as_ref().and_then(|message| message.ahead).filter(|ahead| *ahead > 0)
        {
            let tasks = if ahead == 1 { "1 task stands" } else { &format!("{ahead} tasks stand") };
            reasons.push(format!("{tasks} before it in {name}"));
        }
        reasons
    }

    fn about_workers(&self, name: &QueueName) -> Option<String> {
        let here: Vec<&Presence> =
            self.workers.iter().filter(|worker| worker.queues.contains(name)).collect();
        if here.is_empty() {
            let others = if self.workers.is_empty() {
                "no worker lives here".to_owned()
            } else {
                let names: Vec<String> = self.workers.iter().map(fetches).collect();
                format!("those that live fetch elsewhere: {}", names.join("; "))
            };
            return Some(format!(
                "no worker fetches from {name} ({others}): start one with longshore worker --queue {name}"
            ));
        }
        if here.iter().all(|worker| worker.phase != "running") {
            let phases: BTreeSet<&str> = here.iter().map(|worker| worker.phase.as_str()).collect();
            let phases = phases.into_iter().collect::<Vec<_>>().join(" or ");
            return Some(format!("every worker of {name} is {phases} and takes nothing new"));
        }
        let fits: Vec<Fit> = self.fits().into_iter().filter(|fit| fit.fits).collect();
        if fits.is_empty() {
            return Some(NONE_FITS.to_owned());
        }
        let able = here.iter().filter(|worker| fits.iter().any(|fit| fit.worker == worker.worker));
        let lanes = able.clone().map(|worker| worker.lanes).sum::<u32>();
        able.clone().all(|worker| worker.busy >= worker.lanes).then(|| {
            let workers = match fits.len() {
                1 => "only worker".to_owned(),
                count => format!("{count} workers"),
            };
            format!("all {lanes} slots of the {workers} that could run it are taken")
        })
    }
}

/// What holds the outputs of a task whose container ended.
fn outputs(record: &Record, by: &str) -> Vec<String> {
    let Some(spooled) = &record.spooled else {
        return vec![format!("its container ended; {by} brings its outputs away")];
    };
    let host = record.owner.as_ref().map_or("", |owner| owner.host.as_str());
    let next = spooled.next.map(|next| format!(", again at {}", time(next))).unwrap_or_default();
    let id = &record.id;
    vec![
        format!("its container ended well, but Girder did not take its outputs: {}", spooled.error),
        format!(
            "{by} on {host} keeps them until {} and tries to bring them away (tried {} times{next}); then the task fails",
            time(spooled.until),
            spooled.tries
        ),
        format!(
            "to try now: longshore task upload {id}, with --token or --token-file where the token has expired"
        ),
    ]
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
