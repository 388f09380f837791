//! Whether a worker that lives could run a task, by what both say of themselves. Pure.

use std::fmt;

use serde::Serialize;

use super::asked::Asked;
use crate::broker::Presence;
use crate::executor::resources::lacking;
use crate::handler::Demand;
use crate::task::QueueName;

/// What is to be said of one worker and one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fit {
    /// The worker's name.
    pub(super) worker: String,
    /// Its host.
    pub(super) host: String,
    /// Whether it could run the task once it has a free slot.
    pub(super) fits: bool,
    /// Why not, each thing by itself.
    pub(super) why_not: Vec<String>,
    /// Its slots, and how many are taken.
    pub(super) lanes: u32,
    /// Taken slots.
    pub(super) busy: u32,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, host, fits, why_not, lanes, busy } = self;
        if *fits {
            write!(f, "{worker} on {host} could run it: {busy} of its {lanes} slots are taken")
        } else {
            write!(f, "{worker} on {host} cannot run it: {}", why_not.join("; "))
        }
    }
}

/// Whether `worker` could run what `asked` asks for from `queue`; `kind` is what the record says, where there is one.
pub(super) fn fit(worker: &Presence, queue: &QueueName, asked: &Asked, kind: Option<&str>) -> Fit {
    let mut why_not = Vec::new();
    if !worker.queues.contains(queue) {
        let queues: Vec<&str> = worker.queues.iter().map(QueueName::as_str).collect();
        why_not.push(format!("it fetches from {}, not from {queue}", queues.join(", ")));
    }
    if worker.phase != "running" {
        why_not.push(format!("it is {} and takes nothing new", worker.phase));
    }
    let kind = match asked {
        Asked::Task(task) => {
            let lacks = lacking(&worker.pool, &Demand::of(&task.resources));
            if !lacks.is_empty() {
                why_not.push(format!("the task needs {}", lacks.join(", ")));
            }
            Some(task.kind.as_str())
        }
        Asked::Later(version) => {
            if u64::from(worker.envelope) < *version {
                why_not.push(format!("it reads envelopes up to version {}, not {version}", worker.envelope));
            }
            kind
        }
        Asked::Other(name) => Some(name.as_str()),
        Asked::Unreadable(_) | Asked::Untold => kind,
    };
    if let Some(kind) = kind.filter(|kind| !worker.kinds.iter().any(|known| known == kind)) {
        why_not.push(format!("it knows no tasks of the kind {kind}"));
    }
    Fit {
        worker: worker.worker.clone(),
        host: worker.host.clone(),
        fits: why_not.is_empty(),
        why_not,
        lanes: worker.lanes,
        busy: worker.busy,
    }
}
