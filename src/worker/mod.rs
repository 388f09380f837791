//! The composition root: the only file that knows everybody. Opens brokers and store, makes the handlers, starts the executor.
//!
//! [`serve`] is the worker that stays; [`run_once`] takes one task the same way through a broker in memory.

mod celery;
pub mod handlers;
pub mod instance;
pub mod machine;
mod supervisor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use uuid::Uuid;

use crate::broker::celery::{Pidbox, speaker};
use crate::broker::{self, Broker, BrokerError, BrokerUrl, Command, OpenOptions, Submission};
use crate::cancel::{CancelReason, CancelScope};
use crate::celery::control::{self, About};
use crate::celery::{BackendError, Control, Events};
use crate::config::Settings;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::reporter::LogLimits;
use crate::events::subject::Subject;
use crate::events::{Bus, Event, EventFilter, EventSink, EventStart};
use crate::executor::{self, Executor, Parts};
use crate::girder;
use crate::handler::Identity;
use crate::ledger::Ledger;
use crate::lifecycle::{LifePhase, Lifecycle};
use crate::pipeline::conduit::HostStreams;
use crate::policy::mount::Root;
use crate::policy::rules::BindsSettings;
use crate::store::journal::Journal;
use crate::store::{self, Record, ResultStore, Retention, StoreError};
use crate::task::{ContentType, IdError, Limits, QueueName, Task};

pub use handlers::{HANDLERS, Site};

use instance::InstanceLock;

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where results of Celery tasks go.
    #[error(transparent)]
    Results(#[from] BackendError),
    /// A queue's name.
    #[error("worker.queues: {0}")]
    Queue(#[from] IdError),
    /// The queue of what follows Celery tasks.
    #[error("celery.default_queue: {0}")]
    DefaultQueue(IdError),
    /// A folder.
    #[error("failed to {action} {path}: {reason}")]
    Folder {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A handler.
    #[error("the task kind {kind} cannot be offered: {reason}")]
    Handler {
        /// Which.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// What Girder clients need.
    #[error(transparent)]
    Girder(TaskError),
    /// The task's record cannot be found after its end.
    #[error("the task ended without a record: {0}")]
    NoRecord(String),
}

/// A started worker.
pub struct Worker {
    /// Who it is.
    pub identity: Identity,
    /// The brokers it takes work from, without secrets.
    pub sources: Vec<String>,
    /// Where it records.
    pub store: String,
    /// The queues it fetches from.
    pub queues: Vec<QueueName>,
    /// Slots.
    pub lanes: usize,
    /// Steers its end.
    pub lifecycle: Lifecycle,
    /// What lives here.
    pub ledger: Ledger,
    executor: Executor,
    crew: Crew,
    background: CancelScope,
    _instance: InstanceLock,
}

/// Where its tasks run and talk to.
struct Place {
    lanes: usize,
    host: HostStreams,
    /// Where what waits for Girder's jobs is kept for the next process.
    journals: Option<PathBuf>,
}

/// How long what outlives the attempts may take.
const SOON: Duration = Duration::from_secs(10);

impl Worker {
    /// Opens everything and starts taking work.
    pub async fn start(settings: &Settings) -> Result<Self, WorkerError> {
        let (identity, lock) = instance::identity(settings, "instances")?;
        let options = open_options(settings, &identity)?;
        let (mut sources, mut controls) = (Vec::new(), Vec::new());
        for address in &settings.brokers {
            let url = BrokerUrl::parse(address.expose())?;
            let broker = broker::open(&url, &options).await?;
            let mut sinks = celery::sinks(settings, (&url, &broker)).await?;
            if let Some(speaker) = speaker(&url) {
                let (node, timeout) = (control::node_name(&identity.worker), options.connect_timeout);
                let events = Events::new((speaker.celeryev)(&url, timeout)?, node.clone());
                sinks.push(Arc::new(events.clone()));
                controls.push(((speaker.pidbox)(&url, &node, timeout)?, broker.clone(), events));
            }
            sources.push((broker, sinks));
        }
        let store = store::open(&BrokerUrl::parse(settings.store.expose())?, &options).await?;
        let lanes = settings.worker.concurrency;
        let place =
            Place { lanes, host: HostStreams::process(), journals: Some(settings.state_dir.join("jobs")) };
        let worker = Self::assemble(settings, (sources, store), (identity, lock), place)?;
        for (pidbox, broker, events) in controls {
            worker.heed_celery(settings, (pidbox, broker), events);
        }
        Ok(worker)
    }

    /// Puts itself under Celery's remote control.
    fn heed_celery(&self, settings: &Settings, (pidbox, broker): (Box<dyn Pidbox>, Broker), events: Events) {
        let about = About {
            node: control::node_name(&self.identity.worker),
            queues: self.queues.clone(),
            lanes: self.lanes,
            prefetch: self.lanes + settings.worker.staging_ahead,
            started: Instant::now(),
        };
        self.crew.spawn("heartbeat", events.clone().beat(self.ledger.clone(), self.background.clone()));
        let steered = (self.ledger.clone(), self.lifecycle.clone());
        let control = Control::new(pidbox, broker, steered, (events, about));
        self.crew.spawn("remote control", control.run(self.background.clone()));
    }

    fn assemble(
        settings: &Settings,
        (brokers, store): (Vec<Source>, Arc<dyn ResultStore>),
        (identity, instance): (Identity, InstanceLock),
        Place { lanes, host, journals }: Place,
    ) -> Result<Self, WorkerError> {
        make_folder(&settings.work_dir)?;
        let crew = Crew::new();
        let ledger = Ledger::new();
        let lifecycle = Lifecycle::new();
        let background = CancelScope::new();
        let girder =
            girder::Site::new(settings.girder.clone(), &settings.tls).map_err(WorkerError::Girder)?;
        let site = Site {
            girder: Arc::new(girder),
            host,
            journals,
            settings: settings.clone(),
            crew: crew.clone(),
            ledger: ledger.clone(),
            identity: identity.clone(),
            store: store.clone(),
            background: background.clone(),
        };
        let handlers = HANDLERS.iter().map(|row| (row.build)(&site)).collect::<Result<_, _>>()?;
        let queues = queues(settings)?;
        let described = store.describe();
        if !described.shared && brokers.iter().any(|(broker, _)| broker.capabilities.remote) {
            tracing::warn!(
                store = described.name,
                "effects are not fenced between hosts: let all workers share one store (--store), or run one worker only"
            );
        }
        let jobs: Arc<dyn EventSink> = Arc::new(handlers::job_sink(&site)?);
        let sources: Vec<(Broker, Bus)> = brokers
            .into_iter()
            .map(|(broker, results)| {
                let subject: Arc<dyn EventSink> = Arc::new(Subject::new(broker.topic.clone()));
                let sinks = [subject, jobs.clone()].into_iter().chain(results).collect();
                let bus = Bus::new(sinks, settings.events.chatter_per_second, crew.clone());
                (broker, bus)
            })
            .collect();
        let names = sources.iter().map(|(broker, _)| broker.name.clone()).collect();
        let parts = Parts {
            settings: executor_settings(settings, &identity, lanes, &queues),
            sources,
            store,
            handlers,
            identity: identity.clone(),
            ledger: ledger.clone(),
            lifecycle: lifecycle.clone(),
            crew: crew.clone(),
        };
        let executor = Executor::start(parts);
        Ok(Self {
            identity,
            sources: names,
            store: described.name,
            queues,
            lanes,
            lifecycle,
            ledger,
            executor,
            crew,
            background,
            _instance: instance,
        })
    }

    /// Waits for its end; see [`Lifecycle`]. Whether everything it had was settled.
    pub async fn ended(self) -> bool {
        let settled = self.executor.ended().await;
        self.background.cancel(CancelReason::Interrupted);
        // Removals of containers that ended last, and events behind the last settlement.
        self.crew.dismissed(SOON).await;
        settled
    }
}

/// Runs a worker until a signal ends it: the first drains, the second kills. `ready` is told once it takes work.
/// Whether everything it had was settled.
pub async fn serve(settings: &Settings, ready: impl FnOnce(&Worker)) -> Result<bool, WorkerError> {
    let worker = Worker::start(settings).await?;
    // Before anybody is told: a signal that comes at once must drain it, not kill it.
    let heard = Signals::listen();
    ready(&worker);
    supervisor::ready(&worker);
    let signals = Crew::new();
    signals.spawn("signals", heed_signals(heard, worker.lifecycle.clone()));
    Ok(worker.ended().await)
}

/// What asks a worker to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Hears them from now on; `None`, told in the log, when it cannot.
    fn listen() -> Option<Self> {
        let listen = || {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        };
        let listening: std::io::Result<Self> = listen();
        listening
            .inspect_err(|error| {
                tracing::error!(%error, "signals cannot be heard: this worker ends only when it is killed");
            })
            .ok()
    }
}

async fn heed_signals(signals: Option<Signals>, lifecycle: Lifecycle) {
    let Some(Signals { mut terminate, mut interrupt }) = signals else { return };
    for phase in [LifePhase::Draining, LifePhase::Killed] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if phase == LifePhase::Draining {
            tracing::info!("draining: what runs is finished; a second signal ends at once");
            supervisor::draining();
        } else {
            tracing::warn!("ending at once: what runs is left to others");
        }
        lifecycle.advance(phase);
    }
}

/// Runs `task` in this process, the whole road through a broker in memory. Every event is shown to `watch`;
/// when `interrupt` resolves, the task is canceled. Its record at the end.
pub async fn run_once(
    settings: &Settings,
    task: Task,
    mut watch: impl FnMut(&Event),
    interrupt: impl Future<Output = String>,
) -> Result<Record, WorkerError> {
    // Apart from the workers', whose containers it must not take for its own.
    let (identity, instance) = instance::identity(settings, "runs")?;
    let mut settings = settings.clone();
    // A person typed the mounts, so what may be mounted is what that person may do.
    settings.policy.binds = Some(BindsSettings {
        roots: Some(vec![Root::whole()]),
        denied: Some(Vec::new()),
        protect_worker: Some(false),
    });
    settings.worker.queues = vec![task.queue.to_string()];
    // Somebody waits for it at a terminal: it fails for want of disk rather than wait for it.
    settings.worker.disk_high_water = 1.0;
    let options = open_options(&settings, &identity)?;
    let url = BrokerUrl::parse(&format!("memory:{}", Uuid::now_v7()))?;
    let broker = broker::open(&url, &options).await?;
    let store = store::open(&url, &options).await?;
    // Without descriptors to spare, its output goes where every worker's goes.
    let host = HostStreams::of_one_task().unwrap_or_else(|_| HostStreams::process());
    let stores = (vec![(broker.clone(), Vec::new())], store.clone());
    let place = Place { lanes: 1, host, journals: None };
    let worker = Worker::assemble(&settings, stores, (identity, instance), place)?;
    let filter = EventFilter { task: Some(task.id.clone()), ..EventFilter::default() };
    let mut events = broker.topic.follow(filter, EventStart::Oldest).await?;
    broker.submit.submit(vec![Submission::of(&task, ContentType::Json, 0)]).await?;
    tokio::pin!(interrupt);
    let mut interrupted = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    watch(&event);
                    if event.kind().is_terminal() {
                        break;
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => break,
            },
            reason = &mut interrupt, if !interrupted => {
                interrupted = true;
                broker.topic.command(Command::Cancel { task: task.id.clone(), reason }).await?;
            }
        }
    }
    worker.lifecycle.advance(LifePhase::Draining);
    worker.ended().await;
    let record = store.load(&task.id).await?;
    record.map(|found| found.record).ok_or_else(|| WorkerError::NoRecord(task.id.to_string()))
}

/// A broker, and the sinks for its Celery tasks.
type Source = (Broker, Vec<Arc<dyn EventSink>>);

/// Bounds on messages.
fn limits(settings: &Settings) -> Limits {
    Limits {
        max_bytes: usize::try_from(settings.message.max_bytes.bytes()).unwrap_or(usize::MAX),
        max_depth: settings.message.max_depth,
        max_nodes: settings.message.max_nodes,
    }
}

fn make_folder(path: &Path) -> Result<(), WorkerError> {
    std::fs::create_dir_all(path).map_err(|error| WorkerError::Folder {
        action: "make the folder",
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

/// What adapters need to know, for a worker.
pub fn open_options(settings: &Settings, identity: &Identity) -> Result<OpenOptions, WorkerError> {
    Ok(OpenOptions {
        queues: queues(settings)?,
        worker: identity.worker.to_string(),
        incarnation: identity.incarnation.to_string(),
        lease: settings.worker.lease.get(),
        connect_timeout: settings.connect_timeout.get(),
        event_age: settings.events.age.get(),
        event_count: settings.events.count,
    })
}

fn queues(settings: &Settings) -> Result<Vec<QueueName>, IdError> {
    settings.worker.queues.iter().map(|name| QueueName::new(name.as_str())).collect()
}

fn executor_settings(
    settings: &Settings,
    identity: &Identity,
    lanes: usize,
    queues: &[QueueName],
) -> executor::Settings {
    let worker = &settings.worker;
    executor::Settings {
        lanes,
        staging_ahead: worker.staging_ahead,
        pool: machine::pool(&settings.resources),
        rules: settings.rules.clone(),
        queues: queues.to_vec(),
        limits: limits(settings),
        retry: settings.retry.clone(),
        task_timeout: Some(worker.task_timeout.get()).filter(|limit| !limit.is_zero()),
        poison_limit: worker.poison_limit,
        starvation_after: worker.starvation_after.get(),
        unfit_timeout: worker.unfit_timeout.get(),
        release_damping: worker.release_damping.get(),
        presence_interval: worker.presence_interval.get(),
        retention: Retention {
            succeeded: settings.retention.succeeded.get(),
            failed: settings.retention.failed.get(),
            bytes: settings.retention.bytes.bytes(),
        },
        upkeep_interval: worker.upkeep_interval.get(),
        log: LogLimits {
            log_max: settings.events.log_max.bytes(),
            log_tail: usize::try_from(settings.events.log_tail.bytes()).unwrap_or(usize::MAX),
        },
        work_dir: settings.work_dir.clone(),
        journal: Journal::at(settings.state_dir.join("journal").join(&*identity.instance)),
        disk_high_water: worker.disk_high_water,
        forward_unknown_to: QueueName::new(settings.celery.forward_unknown_to.as_str()).ok(),
        drain_timeout: worker.drain_timeout.get(),
        on_drain_timeout: worker.on_drain_timeout,
        adopt_window: worker.adopt_window.get(),
        spool_wait: worker.spool_wait.get(),
        stop_timeout: worker.stop_timeout.get(),
    }
}
