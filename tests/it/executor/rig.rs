//! An executor over memory, and a handler whose every step a test decides.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use longshore::broker::{self, Broker, BrokerUrl, OpenOptions, Pool, Submission};
use longshore::cancel::CancelReason;
use longshore::celery::Successors;
use longshore::config::types::OnDrainTimeout;
use longshore::crew::Crew;
use longshore::error::TaskError;
use longshore::events::reporter::LogLimits;
use longshore::events::subject::Subject;
use longshore::events::{Bus, Event, EventFilter, EventSink, EventStart, Notice, SinkError};
use longshore::executor::{Executor, Parts, Settings};
use longshore::handler::{Admit, Attempt, Demand, Handler, Identity, Remains, Slot, Spool, Staged, spooled};
use longshore::ledger::Ledger;
use longshore::lifecycle::{LifePhase, Lifecycle};
use longshore::ping::Ping;
use longshore::retry::RetryPolicy;
use longshore::store::journal::Journal;
use longshore::store::{self, Record, ResultStore, Retention};
use longshore::task::{ArgMap, ContentType, Fence, Limits, QueueName, Secret, Task, TaskId};
use longshore::units::Span;
use serde_json::Value;
use tokio::sync::Semaphore;

/// What a scripted task was seen to do: `(task, step)`.
pub(crate) type Steps = Arc<Mutex<Vec<(String, &'static str)>>>;

/// A handler whose tasks run until the test lets them, and that notes every step.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) steps: Steps,
    /// One permit lets one task stage.
    pub(crate) may_stage: Arc<Semaphore>,
    /// One permit lets one task end well.
    pub(crate) may_end: Arc<Semaphore>,
    /// One permit lets the outputs of one task with the label `spool` be taken; until then they wait.
    pub(crate) may_upload: Arc<Semaphore>,
    /// The tokens with which outputs were tried.
    pub(crate) tokens: Arc<Mutex<Vec<Option<String>>>>,
    /// What happens at the end, by task label `end`.
    pub(crate) panics: bool,
}

impl Scripted {
    pub(crate) const KIND: &'static str = "scripted";

    pub(crate) fn free() -> Self {
        Self {
            steps: Steps::default(),
            may_stage: Arc::new(Semaphore::new(1_000_000)),
            may_end: Arc::new(Semaphore::new(1_000_000)),
            may_upload: Arc::new(Semaphore::new(0)),
            tokens: Arc::default(),
            panics: false,
        }
    }
    pub(crate) fn held() -> Self {
        Self { may_end: Arc::new(Semaphore::new(0)), ..Self::free() }
    }
    fn note(&self, task: &TaskId, step: &'static str) {
        self.steps.lock().unwrap().push((task.to_string(), step));
    }
    pub(crate) fn count(&self, step: &str) -> usize {
        self.steps.lock().unwrap().iter().filter(|(_, seen)| *seen == step).count()
    }
}

#[async_trait]
impl Handler for Scripted {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn demand(&self, task: &Task) -> Result<Demand, TaskError> {
        Ok(Demand::of(&task.resources))
    }
    async fn admit(&self, task: &Task) -> Result<Admit, TaskError> {
        Ok(match task.labels.get("admit") {
            Some(reason) => Admit::Canceled(reason.clone()),
            None => Admit::Start,
        })
    }
    async fn stage(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        self.note(&attempt.task().id, "stage");
        tokio::select! {
            permit = self.may_stage.acquire() => permit.unwrap().forget(),
            _ = attempt.scope().canceled() => return Err(TaskError::retryable("x", "ended while staging")),
        }
        Ok(Box::new(Prepared { script: self.clone(), attempt }))
    }
    async fn remains(&self, task: &Task, _: Fence, _: &str) -> Result<Remains, TaskError> {
        let is_kept = task.labels.contains_key("spool") && self.count("forget") == 0;
        Ok(if is_kept { Remains::Spooled } else { Remains::Nothing })
    }
    fn spool(&self) -> Option<&dyn Spool> {
        Some(self)
    }
}

pub(crate) fn away() -> TaskError {
    TaskError::retryable("girder_unavailable", "nobody takes it")
}

#[async_trait]
impl Spool for Scripted {
    async fn reopen(&self, attempt: &Attempt) -> Result<(), TaskError> {
        self.note(&attempt.task().id, "reopen");
        Ok(())
    }
    async fn upload(&self, attempt: &Attempt, token: Option<Secret>) -> Result<Value, TaskError> {
        self.note(&attempt.task().id, "upload");
        self.tokens.lock().unwrap().push(token.map(|token| token.expose().to_owned()));
        if attempt.task().labels["spool"] == "forbidden" {
            return Err(TaskError::permanent("girder_forbidden", "not yours"));
        }
        match self.may_upload.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(spooled(&away())),
        }
        Ok(Value::from("brought"))
    }
    async fn forget(&self, attempt: &Attempt) {
        self.note(&attempt.task().id, "forget");
    }
}

struct Prepared {
    script: Scripted,
    attempt: Attempt,
}

#[async_trait]
impl Staged for Prepared {
    async fn run(self: Box<Self>, _: Slot) -> Result<Value, TaskError> {
        let Self { script, attempt } = *self;
        let task = attempt.task().clone();
        script.note(&task.id, "run");
        attempt.report().running(None);
        assert!(!(script.panics && attempt.number() == 1), "scripted panic");
        tokio::select! {
            permit = script.may_end.acquire() => permit.unwrap().forget(),
            reason = attempt.scope().canceled() => {
                script.note(&task.id, match reason {
                    CancelReason::Canceled(_) => "canceled",
                    CancelReason::TimedOut(_) => "timed out",
                    CancelReason::Interrupted => "interrupted",
                    CancelReason::Left => "left",
                    CancelReason::LeaseLost => "lost",
                });
                if task.labels.contains_key("lingers") {
                    script.may_end.acquire().await.unwrap().forget();
                }
                return Err(TaskError::permanent("ended", "its scope ended"));
            }
        }
        script.note(&task.id, "end");
        match task.labels.get("fail").map(String::as_str) {
            Some("retryable") => Err(TaskError::retryable("flaky", "it was flaky")),
            Some("once") if attempt.number() == 1 => Err(TaskError::retryable("flaky", "it was flaky")),
            Some("permanent") => Err(TaskError::permanent("broken", "it is broken")),
            _ if task.labels.contains_key("spool") => Err(spooled(&away()).with_exit_code(0)),
            _ => Ok(Value::from("done")),
        }
    }
    async fn discard(self: Box<Self>) {
        self.script.note(&self.attempt.task().id, "discard");
    }
}

/// A sink that refuses while it is told to, and that learns from the task whether it must hear of it.
#[derive(Default)]
pub(crate) struct Moody {
    pub(crate) refuses: std::sync::atomic::AtomicBool,
    pub(crate) told: Mutex<Vec<Event>>,
    /// The tasks that came with what was told last.
    pub(crate) tasks: Mutex<Vec<Option<Arc<Task>>>>,
}

#[async_trait]
impl EventSink for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }
    fn wants(&self, task: &Task) -> bool {
        !task.labels.contains_key("private")
    }
    fn knows_by_event(&self) -> bool {
        false
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        if self.refuses.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(SinkError { sink: "moody", reason: "not now".to_owned() });
        }
        *self.tasks.lock().unwrap() = notices.iter().map(|notice| notice.task.clone()).collect();
        self.told.lock().unwrap().extend(notices.iter().map(|notice| (*notice.event).clone()));
        Ok(())
    }
}

/// A broker and store in memory, on which workers are started.
pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) store: Arc<dyn ResultStore>,
    pub(crate) moody: Arc<Moody>,
}

pub(crate) struct Running {
    pub(crate) executor: Executor,
    pub(crate) lifecycle: Lifecycle,
}

impl Running {
    /// Drains it and waits for its end. Whether all was settled.
    pub(crate) async fn drained(self) -> bool {
        self.lifecycle.advance(LifePhase::Draining);
        self.executor.ended().await
    }
}

pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn settings(lanes: usize) -> Settings {
    Settings {
        lanes,
        staging_ahead: lanes,
        pool: Pool { cpus: 4.0, memory: 1 << 30, platform: "linux/amd64".to_owned(), ..Pool::default() },
        rules: Vec::new(),
        queues: vec![QueueName::default()],
        limits: Limits::default(),
        retry: RetryPolicy { backoff: Span::seconds(5), ..RetryPolicy::default() },
        task_timeout: None,
        poison_limit: 3,
        starvation_after: Duration::from_secs(30),
        unfit_timeout: Duration::from_secs(600),
        release_damping: Duration::from_secs(5),
        presence_interval: Duration::from_secs(15),
        retention: Retention { succeeded: Duration::MAX, failed: Duration::MAX, bytes: 0 },
        upkeep_interval: Duration::from_secs(30),
        log: LogLimits::default(),
        work_dir: PathBuf::from("/proc"),
        journal: Journal::at(PathBuf::from("/nonexistent/journal")),
        disk_high_water: 1.0,
        forward_unknown_to: None,
        drain_timeout: Duration::from_secs(60),
        on_drain_timeout: OnDrainTimeout::Stop,
        adopt_window: Duration::from_secs(300),
        spool_wait: Duration::from_secs(3_600),
        stop_timeout: Duration::from_secs(10),
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let url = BrokerUrl::parse(&format!("memory:{}", TaskId::fresh())).unwrap();
        let options = options("rig");
        let broker = broker::open(&url, &options).await.unwrap();
        let store = store::open(&url, &options).await.unwrap();
        Self { broker, store, moody: Arc::default() }
    }

    pub(crate) fn start(&self, name: &str, handler: &Scripted, settings: Settings) -> Running {
        let (lifecycle, crew) = (Lifecycle::new(), Crew::new());
        let sinks: Vec<Arc<dyn EventSink>> =
            vec![Arc::new(Subject::new(self.broker.topic.clone())), self.moody.clone(), self.successors()];
        let identity = Identity {
            worker: name.into(),
            instance: name.into(),
            incarnation: TaskId::fresh().as_str().into(),
            host: "here".into(),
        };
        let executor = Executor::start(Parts {
            settings,
            sources: vec![(self.broker.clone(), Bus::new(sinks, 1_000.0, crew.clone()))],
            store: self.store.clone(),
            handlers: vec![Arc::new(handler.clone()), Arc::new(Ping)],
            identity,
            ledger: Ledger::new(),
            lifecycle: lifecycle.clone(),
            crew,
        });
        Running { executor, lifecycle }
    }

    fn successors(&self) -> Arc<dyn EventSink> {
        let default_queue = QueueName::new("celery").unwrap();
        Arc::new(Successors::new(self.broker.clone(), default_queue, Limits::default()))
    }

    pub(crate) async fn submit(&self, task: &Task) {
        self.broker.submit.submit(vec![Submission::of(task, ContentType::Json, 0)]).await.unwrap();
    }

    /// Waits until the task's record says what `wanted` asks for.
    pub(crate) async fn until(&self, task: &Task, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        for _ in 0..20_000 {
            if let Some(found) = self.store.load(&task.id).await.unwrap()
                && wanted(&found.record)
            {
                return found.record;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {what}: {:?}", self.store.load(&task.id).await);
    }

    pub(crate) async fn finished(&self, task: &Task) -> Record {
        self.until(task, "finished", |record| record.status.is_finished()).await
    }

    /// Every event of the task so far, in words.
    pub(crate) async fn told(&self, task: &Task) -> Vec<&'static str> {
        use futures_util::StreamExt;
        let filter = EventFilter { task: Some(task.id.clone()), ..EventFilter::default() };
        let mut events = self.broker.topic.follow(filter, EventStart::Oldest).await.unwrap();
        let mut told = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(1), events.next()).await {
            told.push(event.unwrap().kind().as_str());
        }
        told
    }

    /// How many messages wait or are leased.
    pub(crate) async fn messages(&self) -> usize {
        self.broker.admin.waiting(&broker::WaitingQuery::default()).await.unwrap().len()
    }
}

pub(crate) fn options(worker: &str) -> OpenOptions {
    OpenOptions {
        queues: vec![QueueName::default()],
        worker: worker.to_owned(),
        incarnation: TaskId::fresh().to_string(),
        lease: LEASE,
        connect_timeout: Duration::from_secs(5),
        event_age: Duration::from_secs(3_600),
        event_count: 1_000_000,
    }
}

pub(crate) fn task(labels: &[(&str, &str)]) -> Task {
    let mut task = Task::new(Scripted::KIND, ArgMap::new());
    task.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    task
}
