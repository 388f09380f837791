//! Celery's events of this worker and its tasks, as Flower and `celery events` read them.
//!
//! Nothing is sent until somebody asks for events by remote control. Events are told once and never hold up a task: a
//! monitor that is away misses them. Arguments of tasks are left out: they may hold tokens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::broker::celery::Celeryev;
use crate::cancel::CancelScope;
use crate::events::{Event, EventData, EventSink, Notice, SinkError};
use crate::ledger::Ledger;
use crate::task::celery::CeleryContext;
use crate::task::{Task, TaskId};

/// How often a worker says that it lives, as Celery's do.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Starts that are remembered, more than one worker runs tasks.
const STARTED: usize = 10_000;

/// Celery's events of one worker on one broker. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    exchange: Box<dyn Celeryev>,
    node: String,
    asked_for: watch::Sender<bool>,
    clock: AtomicU64,
    ended: AtomicU64,
    /// When the tasks that run here were started.
    started: Mutex<HashMap<TaskId, Timestamp>>,
}

impl Events {
    /// The name in outboxes.
    pub const NAME: &'static str = "celeryev";

    /// Events of `node`, off at first.
    pub fn new(exchange: Box<dyn Celeryev>, node: String) -> Self {
        let inner = Inner {
            exchange,
            node,
            asked_for: watch::Sender::new(false),
            clock: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            started: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins or ceases to send. Whether that changed anything.
    pub fn switch(&self, to: Switch) -> bool {
        let on = to == Switch::On;
        self.inner.asked_for.send_if_modified(|now| std::mem::replace(now, on) != on)
    }

    /// Says every two seconds that the worker lives, while events are asked for, until `stop` ends.
    pub async fn beat(self, ledger: Ledger, stop: CancelScope) {
        let mut asked_for = self.inner.asked_for.subscribe();
        loop {
            tokio::select! {
                wanted = becomes(&mut asked_for, Switch::On) => if !wanted { return },
                _ = stop.canceled() => return,
            }
            self.worker("worker-online", &ledger).await;
            let ended = loop {
                tokio::select! {
                    () = tokio::time::sleep(HEARTBEAT) => self.worker("worker-heartbeat", &ledger).await,
                    off = becomes(&mut asked_for, Switch::Off) => break !off,
                    _ = stop.canceled() => break true,
                }
            };
            self.worker("worker-offline", &ledger).await;
            if ended {
                return;
            }
        }
    }

    /// Says once that the worker lives, where events are asked for.
    pub async fn alive(&self, ledger: &Ledger) {
        if *self.inner.asked_for.borrow() {
            self.worker("worker-heartbeat", ledger).await;
        }
    }

    async fn worker(&self, kind: &str, ledger: &Ledger) {
        let facts = json!({
            "freq": HEARTBEAT.as_secs_f64(),
            "active": ledger.len(),
            "processed": self.inner.ended.load(Ordering::Relaxed),
            "loadavg": load(),
            "sw_ident": "longshore",
            "sw_ver": env!("CARGO_PKG_VERSION"),
            "sw_sys": std::env::consts::OS,
        });
        self.tell(kind, facts, Timestamp::now()).await;
    }

    /// Seconds from the start that was told to the end that `event` tells.
    fn ran(&self, event: &Event) -> Option<f64> {
        let mut started = self.inner.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let EventData::Running { .. } = &event.data {
            // Those that were given back to the broker tell no end here.
            if started.len() >= STARTED {
                started.clear();
            }
            started.insert(event.task.clone(), event.time);
        } else if event.kind().is_terminal() {
            let start = started.remove(&event.task)?;
            return Some(event.time.duration_since(start).as_secs_f64());
        }
        None
    }

    async fn tell(&self, kind: &str, facts: Value, at: Timestamp) {
        let inner = &self.inner;
        let mut event = match facts {
            Value::Object(facts) => facts,
            _ => Map::new(),
        };
        event.insert("type".to_owned(), kind.into());
        event.insert("hostname".to_owned(), inner.node.as_str().into());
        event.insert("utcoffset".to_owned(), 0.into());
        event.insert("pid".to_owned(), std::process::id().into());
        event.insert("clock".to_owned(), (inner.clock.fetch_add(1, Ordering::Relaxed) + 1).into());
        event.insert("timestamp".to_owned(), at.as_duration().as_secs_f64().into());
        let body = Value::Object(event).to_string().into_bytes();
        if let Err(error) = inner.exchange.tell(kind, &inner.node, body).await {
            tracing::debug!(%error, kind, "an event for Celery's monitors was not taken");
        }
    }
}

/// Whether events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Waits until events are switched so. `false`: they never will be.
async fn becomes(asked_for: &mut watch::Receiver<bool>, to: Switch) -> bool {
    asked_for.wait_for(|on| *on == (to == Switch::On)).await.is_ok()
}

#[async_trait]
impl EventSink for Events {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn wants(&self, task: &Task) -> bool {
        *self.inner.asked_for.borrow() && task.extra.contains_key(CeleryContext::KEY)
    }

    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        for notice in notices {
            let event = &notice.event;
            if event.kind().is_terminal() {
                self.inner.ended.fetch_add(1, Ordering::Relaxed);
            }
            if !*self.inner.asked_for.borrow() {
                continue;
            }
            let context = notice.task.as_deref().and_then(CeleryContext::of);
            if let Some((kind, facts)) = told(event, context.as_ref(), self.ran(event)) {
                self.tell(kind, facts, event.time).await;
            }
        }
        Ok(())
    }
}

/// The event that Celery tells in this place; none for what it does not tell.
fn told(event: &Event, context: Option<&CeleryContext>, ran: Option<f64>) -> Option<(&'static str, Value)> {
    let uuid = event.task.to_string();
    let told = match &event.data {
        EventData::Staging { .. } => {
            let context = context?;
            let facts = json!({
                "uuid": uuid,
                "name": context.shadow.as_ref().unwrap_or(&context.task),
                "args": "()",
                "kwargs": "{}",
                "root_id": context.root_id,
                "parent_id": context.parent_id,
                "retries": context.retries,
                "eta": null,
                "expires": null,
            });
            ("task-received", facts)
        }
        EventData::Running { .. } => ("task-started", json!({ "uuid": uuid })),
        EventData::Succeeded { .. } => {
            ("task-succeeded", json!({ "uuid": uuid, "result": "None", "runtime": ran }))
        }
        EventData::Failed { error } => ("task-failed", failure(&uuid, &error.message)),
        EventData::Dead { .. } => ("task-rejected", json!({ "uuid": uuid })),
        EventData::Canceled { reason } => {
            let expired = reason.starts_with("it expired");
            (
                "task-revoked",
                json!({ "uuid": uuid, "terminated": !expired, "signum": null, "expired": expired }),
            )
        }
        EventData::Retrying { error, .. } => ("task-retried", failure(&uuid, &error.message)),
        EventData::Queued | EventData::Progress(_) | EventData::Log { .. } => return None,
    };
    Some(told)
}

fn failure(uuid: &str, message: &str) -> Value {
    json!({ "uuid": uuid, "exception": message, "traceback": message })
}

/// The machine's load over 1, 5 and 15 minutes.
fn load() -> Vec<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Fence, QueueName};

    #[test]
    fn a_received_task_is_told_by_its_name_and_without_its_arguments() {
        let context = CeleryContext {
            task: "a.b".to_owned(),
            kwargsrepr: Some("{'token': 'secret'}".to_owned()),
            ..CeleryContext::default()
        };
        let data = EventData::Staging { attempt: 1, worker: "w".to_owned() };
        let task = TaskId::new("t").unwrap();
        let event = Event {
            task,
            queue: QueueName::default(),
            fence: Fence(1),
            number: 0,
            time: Timestamp::now(),
            data,
        };
        let (kind, facts) = told(&event, Some(&context), None).unwrap();
        assert_eq!((kind, &facts["name"], &facts["uuid"]), ("task-received", &json!("a.b"), &json!("t")));
        assert!(!facts.to_string().contains("secret"), "{facts}");
    }
}
