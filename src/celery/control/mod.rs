//! Celery's remote control: hears the requests that producers, `celery inspect` and Girder send to all workers, and answers
//! as a Celery worker does.
//!
//! Owns what a request means ([`Control::obey`]) and when it is for us; [`crate::broker::celery::Pidbox`] owns the wire.
//! Answers hold no arguments, tokens or settings of the environment. A revoke becomes a cancel of the broker's topic, which
//! stands on the broker and is asked for before a task starts. Called by `worker`.

mod answers;
mod revoke;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use regex::RegexBuilder;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::event::{Events, Switch};
use crate::broker::celery::Pidbox;
use crate::broker::{Broker, Chosen, Command, Intake};
use crate::cancel::CancelScope;
use crate::ledger::Ledger;
use crate::lifecycle::{LifePhase, Lifecycle};
use crate::task::{QueueName, TaskId};
use revoke::{Terminate, terminates};

/// Revoked ids that are remembered for others, as many as a Celery worker remembers.
const REMEMBERED: usize = 50_000;
/// Ids that one request may revoke, or that one greeting may add.
const AT_ONCE: usize = 1_000;
/// Bytes that the pattern of a request may take once it is compiled.
const PATTERN: usize = 1 << 20;
/// Before the mailbox is opened again after its connection broke.
const AGAIN: Duration = Duration::from_secs(2);

/// A worker under remote control.
pub struct Control {
    /// Its mailbox.
    pub pidbox: Box<dyn Pidbox>,
    /// Where cancels go.
    pub broker: Broker,
    /// What lives here.
    pub ledger: Ledger,
    /// What a shutdown advances.
    pub lifecycle: Lifecycle,
    /// What it tells monitors.
    pub events: Events,
    /// What it says of itself.
    pub about: About,
    memory: Memory,
}

/// What a worker says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name as Celery knows it: `name@host`.
    pub node: String,
    /// The queues that it fetches from.
    pub queues: Vec<QueueName>,
    /// Slots.
    pub lanes: usize,
    /// How many messages it takes at most at a time.
    pub prefetch: usize,
    /// When it started.
    pub started: Instant,
}

/// What was heard so far.
#[derive(Default)]
struct Memory {
    clock: AtomicU64,
    revoked: Mutex<Revoked>,
}

#[derive(Default)]
struct Revoked {
    order: VecDeque<TaskId>,
    known: HashSet<TaskId>,
}

impl Revoked {
    /// Whether it is new.
    fn add(&mut self, id: &TaskId) -> bool {
        if !self.known.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id.clone());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// What decides whether a request is for us. Python workers ask themselves about revoked tasks ten times a second, and
/// everybody hears it: nothing else of such a request is looked at.
#[derive(Deserialize)]
struct Addressed {
    #[serde(default)]
    destination: Option<Vec<String>>,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    matcher: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
    #[serde(default)]
    ticket: Option<String>,
    #[serde(default)]
    reply_to: Option<ReplyTo>,
}

#[derive(Deserialize)]
struct ReplyTo {
    #[serde(default)]
    routing_key: String,
}

/// The node name of the worker `name`: as it is where it names its host, else apart from a Python worker's on that host.
pub fn node_name(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("longshore@{name}") }
}

impl Control {
    /// Puts it together.
    pub fn new(
        pidbox: Box<dyn Pidbox>,
        broker: Broker,
        (ledger, lifecycle): (Ledger, Lifecycle),
        (events, about): (Events, About),
    ) -> Self {
        Self { pidbox, broker, ledger, lifecycle, events, about, memory: Memory::default() }
    }

    /// Hears and answers until `stop` ends.
    pub async fn run(self, stop: CancelScope) {
        tokio::select! {
            () = self.recall() => {}
            _ = stop.canceled() => return,
        }
        while !stop.is_canceled() {
            let hearing = async {
                match self.pidbox.requests().await {
                    Ok(mut requests) => {
                        while let Some(body) = requests.next().await {
                            self.hear(&body).await;
                        }
                        tracing::debug!(broker = self.pidbox.broker(), "remote control broke off");
                    }
                    Err(error) => tracing::warn!(%error, "Celery's remote control cannot be heard"),
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = hearing => {}
                _ = stop.canceled() => {}
            }
        }
    }

    async fn hear(&self, body: &[u8]) {
        self.memory.clock.fetch_add(1, Ordering::Relaxed);
        if !is_for(&self.about.node, body) {
            return;
        }
        let Ok(request) = serde_json::from_slice::<Request>(body) else {
            tracing::debug!("a request of Celery's remote control is malformed: passed over");
            return;
        };
        let value = self.obey(&request.method, &request.arguments.unwrap_or_default()).await;
        if let (Some(ticket), Some(to), Some(value)) = (request.ticket, request.reply_to, value) {
            let mut answer = Map::new();
            answer.insert(self.about.node.clone(), value);
            let body = Value::Object(answer).to_string().into_bytes();
            if let Err(error) = self.pidbox.answer(&to.routing_key, &ticket, self.clock(), body).await {
                tracing::debug!(%error, method = request.method, "an answer of remote control was not taken");
            }
        }
    }

    /// Does what `method` asks for. What it answers, where it answers.
    async fn obey(&self, method: &str, arguments: &Map<String, Value>) -> Option<Value> {
        let answer = match method {
            "ping" => json!({ "ok": "pong" }),
            "active" => self.requests(answers::is_active),
            "reserved" => self.requests(answers::is_reserved),
            "scheduled" => self.scheduled().await,
            "revoked" => self.revoked(),
            "registered" => answers::registered(),
            "stats" => self.stats(),
            "report" => self.report(),
            "query_task" => self.query(arguments).await,
            "hello" => return self.greeted(arguments).await,
            "conf" => self.conf(),
            "clock" => json!({ "clock": self.clock() }),
            "active_queues" => self.active_queues(),
            "revoke" => self.revoke(arguments, terminates(arguments)).await,
            "terminate" => self.revoke(arguments, Terminate::Yes).await,
            "revoke_by_stamped_headers" => self.revoke_stamps(arguments),
            "add_consumer" => self.consume(arguments, Intake::Open).await,
            "cancel_consumer" => self.consume(arguments, Intake::Paused).await,
            "pool_grow" | "pool_shrink" | "autoscale" | "rate_limit" | "time_limit" => {
                answers::fixed(method, arguments)
            }
            "memsample" => answers::memory(),
            "heartbeat" => {
                self.events.alive(&self.ledger).await;
                Value::Null
            }
            "enable_events" => self.switch(Switch::On),
            "disable_events" => self.switch(Switch::Off),
            "shutdown" => {
                tracing::info!("asked by Celery's remote control to shut down");
                self.lifecycle.advance(LifePhase::Draining);
                return None;
            }
            unknown => answers::refused(&format!("KeyError({})", answers::python_text(unknown))),
        };
        Some(answer)
    }

    fn switch(&self, to: Switch) -> Value {
        let word = if to == Switch::On { "enabled" } else { "disabled" };
        let already = if self.events.switch(to) { "" } else { "already " };
        json!({ "ok": format!("task events {already}{word}") })
    }

    /// Takes work from a queue from now on, or no more.
    async fn consume(&self, arguments: &Map<String, Value>, intake: Intake) -> Value {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let queue = match QueueName::new(text("queue").unwrap_or_default()) {
            Ok(queue) => queue,
            Err(error) => return answers::refused(&format!("the argument queue: {error}")),
        };
        if text("exchange").is_some_and(|exchange| exchange != queue.as_str()) {
            return answers::refused(
                "queues are read here, not exchanges: bind the queue to the exchange at the broker first",
            );
        }
        match (self.broker.source.choose(&queue, intake).await, intake) {
            (Ok(Chosen::Changed | Chosen::Already), Intake::Open) => {
                json!({ "ok": format!("add consumer {queue}") })
            }
            (Ok(Chosen::Changed | Chosen::Already), Intake::Paused) => {
                json!({ "ok": format!("no longer consuming from {queue}") })
            }
            (Ok(Chosen::Fixed), _) => {
                answers::refused("the queues of this worker are those of its start: start it with others")
            }
            (Err(error), _) => answers::refused(&error.to_string()),
        }
    }

    fn clock(&self) -> u64 {
        self.memory.clock.load(Ordering::Relaxed)
    }

    fn revoked(&self) -> Value {
        let revoked = self.memory.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.order.iter().map(TaskId::to_string).collect::<Vec<_>>().into()
    }

    fn is_revoked(&self, id: &TaskId) -> bool {
        self.memory.revoked.lock().unwrap_or_else(PoisonError::into_inner).known.contains(id)
    }

    /// Whether the task was not known to be revoked.
    fn remember(&self, id: &TaskId) -> bool {
        self.memory.revoked.lock().unwrap_or_else(PoisonError::into_inner).add(id)
    }

    async fn cancel(&self, id: &TaskId) {
        let command = Command::Cancel { task: id.clone(), reason: "revoked through Celery".to_owned() };
        if let Err(error) = self.broker.topic.command(command).await {
            tracing::warn!(task = %id, %error, "a revoked task could not be canceled: it is asked for again");
            let mut revoked = self.memory.revoked.lock().unwrap_or_else(PoisonError::into_inner);
            revoked.known.remove(id);
            revoked.order.retain(|known| known != id);
        }
    }

    /// What was revoked before this process began stands at the broker.
    async fn recall(&self) {
        match self.broker.topic.cancels().await {
            Ok(revoked) => {
                for id in &revoked {
                    self.remember(id);
                }
            }
            Err(error) => tracing::debug!(%error, "what was revoked earlier cannot be asked for"),
        }
    }

    /// Another worker starts, and tells what it knows to be revoked.
    async fn greeted(&self, arguments: &Map<String, Value>) -> Option<Value> {
        if arguments.get("from_node").and_then(Value::as_str) == Some(self.about.node.as_str()) {
            return None;
        }
        // Others that heard the same have put it down meanwhile.
        self.recall().await;
        for id in ids(arguments.get("revoked")) {
            if self.remember(&id) {
                self.cancel(&id).await;
            }
        }
        Some(json!({ "revoked": self.revoked(), "clock": self.clock() }))
    }
}

/// A task id, a list of them, or a map that has them as keys; at most so many as may be revoked at once.
fn ids(value: Option<&Value>) -> Vec<TaskId> {
    let id = |text: &str| TaskId::new(text).ok();
    match value {
        Some(Value::String(text)) => id(text).into_iter().collect(),
        Some(Value::Array(all)) => {
            all.iter().filter_map(Value::as_str).filter_map(id).take(AT_ONCE).collect()
        }
        Some(Value::Object(all)) => all.keys().filter_map(|text| id(text)).take(AT_ONCE).collect(),
        _ => Vec::new(),
    }
}

/// Whether the request in `body` is meant for `node`: by its list of nodes, its pattern, or because it is for all.
fn is_for(node: &str, body: &[u8]) -> bool {
    let Ok(to) = serde_json::from_slice::<Addressed>(body) else { return false };
    match (&to.destination, &to.pattern, to.matcher.as_deref()) {
        (Some(nodes), _, _) if !nodes.is_empty() => nodes.iter().any(|named| named == node),
        (_, Some(pattern), Some("glob")) => {
            globset::Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(node))
        }
        // Python matches from the beginning, and not to the end.
        (_, Some(pattern), Some("pcre")) => match RegexBuilder::new(pattern).size_limit(PATTERN).build() {
            Ok(regex) => regex.find(node).is_some_and(|found| found.start() == 0),
            Err(error) => {
                tracing::debug!(%error, "a request of Celery's remote control has a pattern that is not read here");
                false
            }
        },
        // Another kind of pattern: a worker that is not sure is not meant.
        (_, Some(_), Some(_)) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_heard_by_those_it_names_and_by_all_when_it_names_none() {
        let heard = |request: Value| is_for("longshore@quay", request.to_string().as_bytes());
        assert!(heard(json!({ "method": "ping", "destination": null, "pattern": null, "matcher": null })));
        assert!(heard(json!({ "method": "ping", "destination": ["longshore@quay"] })));
        assert!(!heard(json!({ "method": "revoked", "destination": ["celery@quay"] })));
        assert!(heard(json!({ "method": "ping", "pattern": "longshore@*", "matcher": "glob" })));
        assert!(!heard(json!({ "method": "ping", "pattern": "celery@*", "matcher": "glob" })));
        assert!(heard(json!({ "method": "ping", "pattern": "long.+@", "matcher": "pcre" })));
        assert!(heard(json!({ "method": "ping", "pattern": "celery@|longshore@", "matcher": "pcre" })));
        for pattern in ["quay", "^celery@", "long(", "(?=longshore)"] {
            assert!(!heard(json!({ "method": "ping", "pattern": pattern, "matcher": "pcre" })), "{pattern}");
        }
        assert!(!heard(json!({ "method": "ping", "pattern": "longshore@quay", "matcher": "sql" })));
        assert!(!is_for("longshore@quay", b"{"));
    }

    #[test]
    fn what_was_revoked_is_remembered_once_and_within_bounds() {
        let mut revoked = Revoked::default();
        for n in 0..=REMEMBERED {
            assert!(revoked.add(&TaskId::new(format!("t{n}")).unwrap()));
        }
        assert_eq!((revoked.order.len(), revoked.known.len()), (REMEMBERED, REMEMBERED));
        assert!(!revoked.add(&TaskId::new(format!("t{REMEMBERED}")).unwrap()));
    }

    #[test]
    fn ids_are_read_from_every_form_that_celery_sends() {
        let read = |value: Value| ids(Some(&value)).len();
        assert_eq!((read(json!("a")), read(json!(["a", "b"])), read(json!({ "a": 1.0 }))), (1, 2, 1));
        assert_eq!((read(json!(null)), read(json!(7))), (0, 0));
        assert_eq!(ids(Some(&Value::from(vec!["a"; AT_ONCE + 1]))).len(), AT_ONCE);
    }
}
