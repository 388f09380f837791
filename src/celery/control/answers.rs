//! What a worker under remote control says of its tasks and of itself.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Control;
use crate::broker::{Contents, WaitingQuery};
use crate::ledger::{Deferred, Live, LivePhase, Stamps};
use crate::task::celery::TASKS;
use crate::task::{Fence, Generation, QueueName, TaskId};

/// Whether Celery calls such an attempt active.
pub(super) fn is_active(live: &Live) -> bool {
    use LivePhase::{Running, Settling, Spooled, Uploading};
    matches!(live.phase, Running | Spooled | Uploading | Settling)
}

/// Whether Celery calls such an attempt reserved: taken, not started.
pub(super) fn is_reserved(live: &Live) -> bool {
    matches!(live.phase, LivePhase::Staging | LivePhase::Staged)
}

/// An answer that says why not.
pub(super) fn refused(reason: &str) -> Value {
    json!({ "error": reason })
}

/// The answer to a request for what is fixed here. Celery's own words for a task that is not known.
pub(super) fn fixed(method: &str, arguments: &serde_json::Map<String, Value>) -> Value {
    let task = arguments.get("task_name").and_then(Value::as_str).unwrap_or_default();
    match method {
        "rate_limit" | "time_limit" if !TASKS.iter().any(|(name, _)| *name == task) => {
            refused("unknown task")
        }
        "rate_limit" => {
            refused("this worker limits no rates: its lanes bound what runs (worker.concurrency)")
        }
        "time_limit" => refused(
            "a task's limits are those of its message: send it with others, or set worker.task_timeout",
        ),
        _ => refused("the lanes of this worker are those of its start: start it with another -c"),
    }
}

/// The memory that this process has resident, as Celery prints it.
pub(super) fn memory() -> Value {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages: Option<u64> = pages.and_then(|text| text.split(' ').nth(1)?.parse().ok());
    // Pages of 4 KiB, as on every machine that this is built for.
    let tenths = pages.map(|pages| pages * 4_096 / 100_000);
    tenths.map_or(Value::Null, |tenths| format!("{}.{}MB", tenths / 10, tenths % 10).into())
}

/// The Celery tasks that are known here.
pub(super) fn registered() -> Value {
    TASKS.iter().map(|(name, _)| *name).collect::<Vec<_>>().into()
}

/// As Python prints a text that holds no line breaks.
pub(super) fn python_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let escaped = text.replace('\\', "\\\\");
    let escaped = if quote == '\'' { escaped.replace('\'', "\\'") } else { escaped };
    format!("{quote}{escaped}{quote}")
}

/// Ids, one behind the other.
pub(super) fn listed(ids: &[TaskId]) -> String {
    ids.iter().map(TaskId::to_string).collect::<Vec<_>>().join(", ")
}

/// Stamps as Python prints a map of lists.
pub(super) fn stamps(stamps: &Stamps) -> String {
    let printed = stamps.iter().map(|(header, values)| {
        let values: Vec<String> = values.iter().map(|value| python_text(value)).collect();
        format!("{}: [{}]", python_text(header), values.join(", "))
    });
    format!("{{{}}}", printed.collect::<Vec<_>>().join(", "))
}

/// The name that Celery knows a kind of task by.
fn name_of(kind: &str) -> &str {
    if kind == "docker_run" { TASKS[0].0 } else { kind }
}

impl Control {
    /// What waits until a time that has not come: what this worker gave back until then, and where the broker can list it what others
    /// did.
    pub(super) async fn scheduled(&self) -> Value {
        let told = self.waiting().await.into_iter().map(|waiting| {
            json!({
                "eta": waiting.due.to_string(),
                "priority": 6,
                "request": self.not_started(&waiting),
            })
        });
        told.collect()
    }

    /// Without what was revoked meanwhile: its end is told, only its message is still there.
    async fn waiting(&self) -> Vec<Deferred> {
        let mut all = self.ledger.deferred();
        if self.broker.capabilities.list {
            self.listed(&mut all).await;
        }
        let revoked: HashSet<TaskId> =
            self.broker.topic.cancels().await.unwrap_or_default().into_iter().collect();
        all.retain(|deferred| !revoked.contains(&deferred.task) && !self.is_revoked(&deferred.task));
        all
    }

    /// Adds what the broker lists.
    async fn listed(&self, all: &mut Vec<Deferred>) {
        let mut known: HashSet<TaskId> = all.iter().map(|deferred| deferred.task.clone()).collect();
        for queue in self.queues() {
            let query =
                WaitingQuery { queue: Some(queue), contents: Contents::Given, ..WaitingQuery::default() };
            let found = match self.broker.admin.waiting(&query).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "what waits at the broker could not be listed");
                    continue;
                }
            };
            for waiting in found {
                let Some(due) = waiting.not_before else { continue };
                if known.insert(waiting.task.clone()) {
                    let name = waiting.raw.as_ref().and_then(|raw| raw.header("task")?.text());
                    let kind = name.unwrap_or("unknown").to_owned();
                    all.push(Deferred { task: waiting.task, kind, queue: waiting.queue, due });
                }
            }
        }
    }

    /// A task that waits, as Celery shows one.
    fn not_started(&self, waiting: &Deferred) -> Value {
        let live = Live {
            task: waiting.task.clone(),
            kind: waiting.kind.clone(),
            queue: waiting.queue.clone(),
            generation: Generation::default(),
            attempt: 0,
            fence: Fence::default(),
            message: String::new(),
            phase: LivePhase::Staging,
            since: waiting.due,
        };
        self.request(&live)
    }

    /// The attempts that `wanted` chooses.
    pub(super) fn requests(&self, wanted: fn(&Live) -> bool) -> Value {
        self.ledger.all().iter().filter(|live| wanted(live)).map(|live| self.request(live)).collect()
    }

    /// An attempt as Celery shows one. Arguments are left out: they may hold tokens.
    fn request(&self, live: &Live) -> Value {
        let name = name_of(&live.kind);
        let started = is_active(live).then(|| live.since.as_duration().as_secs_f64());
        json!({
            "id": live.task.to_string(),
            "name": name,
            "args": [],
            "kwargs": {},
            "type": name,
            "hostname": self.about.node,
            "time_start": started,
            "acknowledged": false,
            "delivery_info": {
                "exchange": "",
                "routing_key": live.queue.to_string(),
                "priority": null,
                "redelivered": null,
            },
            "worker_pid": std::process::id(),
        })
    }

    pub(super) async fn query(&self, arguments: &serde_json::Map<String, Value>) -> Value {
        let ids = super::ids(arguments.get("ids"));
        let waiting = if ids.iter().all(|id| self.ledger.find(id).is_some()) {
            Vec::new()
        } else {
            self.waiting().await
        };
        let found = ids.into_iter().filter_map(|id| {
            let told = match self.ledger.find(&id) {
                Some(live) if is_active(&live) => json!(["active", self.request(&live)]),
                Some(live) => json!(["reserved", self.request(&live)]),
                None => {
                    let waiting = waiting.iter().find(|waiting| waiting.task == id)?;
                    json!(["scheduled", self.not_started(waiting)])
                }
            };
            Some((id.to_string(), told))
        });
        Value::Object(found.collect())
    }

    pub(super) fn stats(&self) -> Value {
        let about = &self.about;
        let live = self.ledger.len();
        json!({
            "pid": std::process::id(),
            "clock": self.clock().to_string(),
            "uptime": about.started.elapsed().as_secs(),
            "prefetch_count": about.prefetch,
            "pool": {
                "implementation": "longshore",
                "max-concurrency": about.lanes,
                "processes": [std::process::id()],
                "live": live,
            },
            "broker": { "url": self.pidbox.broker() },
            "sw_ident": "longshore",
            "sw_ver": env!("CARGO_PKG_VERSION"),
        })
    }

    pub(super) fn report(&self) -> Value {
        let queues: Vec<String> = self.queues().iter().map(ToString::to_string).collect();
        let text = format!(
            "software -> longshore:{}\nbroker -> {}\nqueues -> {}\nslots -> {}\n",
            env!("CARGO_PKG_VERSION"),
            self.pidbox.broker(),
            queues.join(", "),
            self.about.lanes
        );
        json!({ "ok": text })
    }

    pub(super) fn conf(&self) -> Value {
        json!({
            "broker_url": self.pidbox.broker(),
            "worker_concurrency": self.about.lanes,
            "timezone": "UTC",
            "enable_utc": true,
            "accept_content": ["json"],
        })
    }

    pub(super) fn active_queues(&self) -> Value {
        let queue = |name: &str| {
            json!({
                "name": name,
                "exchange": { "name": name, "type": "direct", "durable": true, "auto_delete": false },
                "routing_key": name,
                "durable": true,
                "exclusive": false,
                "auto_delete": false,
                "no_ack": false,
            })
        };
        self.queues().iter().map(|name| queue(name.as_str())).collect()
    }

    /// What it fetches from now.
    fn queues(&self) -> Vec<QueueName> {
        self.broker.source.queues().unwrap_or_else(|| self.about.queues.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        assert_eq!(python_text("a"), "'a'");
        assert_eq!(python_text("it's"), "\"it's\"");
        assert_eq!(python_text("\\'\""), "'\\\\\\'\"'");
    }
}
