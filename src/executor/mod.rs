//! Takes work from brokers, runs it on lanes and settles it. The way of a task is in `docs/design.md` §1.
//!
//! One future per delivery walks the whole way: [`intake`] admits it, [`stager`] prepares it, [`queue`] gives it a turn
//! on a lane, [`lane`] runs it, [`settle`] records, publishes and settles. What many of them share lives in [`Context`].

pub mod admission;
mod deferred;
pub mod intake;
pub mod keeper;
pub mod lane;
pub mod queue;
mod replay;
pub mod resources;
pub mod schedule;
pub mod settle;
mod spool;
pub mod stager;
pub mod upkeep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::broker::{Broker, Pool};
use crate::cancel::CancelScope;
use crate::config::types::{OnDrainTimeout, Rule};
use crate::crew::Crew;
use crate::events::Bus;
use crate::events::reporter::LogLimits;
use crate::handler::{Handler, Identity};
use crate::ledger::{Ledger, LivePhase};
use crate::lifecycle::{LifePhase, Lifecycle};
use crate::retry::RetryPolicy;
use crate::store::journal::Journal;
use crate::store::{Owner, ResultStore, Retention};
use crate::task::{Limits, QueueName};

use keeper::Keeper;
use queue::Queue;

/// How an executor behaves; `config/longshore.toml` holds every default.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Slots.
    pub lanes: usize,
    /// Attempts prepared beyond those that run.
    pub staging_ahead: usize,
    /// What tasks draw from.
    pub pool: Pool,
    /// What images take unless a task says it itself; the first that matches counts.
    pub rules: Vec<Rule>,
    /// The queues it fetches from, for others to see.
    pub queues: Vec<QueueName>,
    /// Bounds on messages.
    pub limits: Limits,
    /// Retries of tasks that name none.
    pub retry: RetryPolicy,
    /// Time limit of tasks that name none.
    pub task_timeout: Option<Duration>,
    /// Starts without an outcome after which a task is poison.
    pub poison_limit: u32,
    /// After which a task that does not fit reserves what it waits for.
    pub starvation_after: Duration,
    /// After which a task that fits no live worker fails.
    pub unfit_timeout: Duration,
    /// How long what is released because others may do it stays away.
    pub release_damping: Duration,
    /// How often presence is announced.
    pub presence_interval: Duration,
    /// How long finished records are kept.
    pub retention: Retention,
    /// How often unfinished business is looked for.
    pub upkeep_interval: Duration,
    /// How much of a log is kept.
    pub log: LogLimits,
    /// The file system that staging fills; intake pauses while it is fuller than `disk_high_water`.
    pub work_dir: PathBuf,
    /// Where ends of attempts wait for a store that is away.
    pub journal: Journal,
    /// Share of the file system, 0-1.
    pub disk_high_water: f64,
    /// Where Celery tasks of names that are not ours are passed on to.
    pub forward_unknown_to: Option<QueueName>,
    /// How long running attempts may go on after a drain began.
    pub drain_timeout: Duration,
    /// What becomes of those that still run then.
    pub on_drain_timeout: OnDrainTimeout,
    /// How long what was left running is kept for the next process of this worker.
    pub adopt_window: Duration,
    /// How long outputs that nobody takes are kept and tried again.
    pub spool_wait: Duration,
    /// How long interrupted attempts may take to end.
    pub stop_timeout: Duration,
}

/// What an executor works with.
pub struct Parts {
    /// How it behaves.
    pub settings: Settings,
    /// Where work comes from; each with the bus on which its tasks' events travel.
    pub sources: Vec<(Broker, Bus)>,
    /// What is known of each task.
    pub store: Arc<dyn ResultStore>,
    /// The task kinds.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// Who it is.
    pub identity: Identity,
    /// Live attempts, shared with whoever shows or steers them.
    pub ledger: Ledger,
    /// When it ends.
    pub lifecycle: Lifecycle,
    /// Owner of everything that is spawned.
    pub crew: Crew,
}

/// What every part of the executor shares.
pub struct Context {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn ResultStore>,
    pub(crate) handlers: HashMap<&'static str, Arc<dyn Handler>>,
    pub(crate) identity: Identity,
    pub(crate) owner: Owner,
    pub(crate) ledger: Ledger,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) keeper: Keeper,
    pub(crate) queue: Queue,
    /// Tasks that wait at the broker for their time.
    pub(crate) deferrals: deferred::Deferrals,
    /// Attempts whose outputs wait, to be told of new tokens.
    pub(crate) spooled: spool::Waiters,
    /// Room for attempts from their fetch to the end of their run.
    pub(crate) room: Arc<Semaphore>,
    /// Room for attempts that are being settled.
    pub(crate) settling: Arc<Semaphore>,
}

/// One source of work and the bus of its tasks' events.
pub struct SourceRuntime {
    pub(crate) broker: Broker,
    pub(crate) bus: Bus,
    /// The sink that lies where the records do, and the messages, too: an end is one step there.
    pub(crate) ends_at: Option<&'static str>,
}

/// A running executor.
pub struct Executor {
    context: Arc<Context>,
    /// Ends the keeper, commands and upkeep, after everything else ended.
    background: CancelScope,
    fetching: Crew,
}

/// Attempts that may be settled at the same time: many, so that they share the store's commits.
const SETTLING: usize = 1_024;

impl Executor {
    /// Starts taking work.
    pub fn start(parts: Parts) -> Self {
        let Parts { settings, sources, store, handlers, identity, ledger, lifecycle, crew } = parts;
        let room = settings.lanes + settings.staging_ahead;
        let context = Arc::new(Context {
            keeper: Keeper::new(store.clone()),
            queue: Queue::new(settings.lanes, &settings.pool, settings.starvation_after, crew.clone()),
            deferrals: deferred::Deferrals::default(),
            spooled: spool::Waiters::default(),
            room: Arc::new(Semaphore::new(room)),
            settling: Arc::new(Semaphore::new(SETTLING)),
            owner: Owner {
                worker: identity.worker.to_string(),
                incarnation: identity.incarnation.to_string(),
                instance: identity.instance.to_string(),
                host: identity.host.to_string(),
            },
            handlers: handlers.into_iter().map(|handler| (handler.kind(), handler)).collect(),
            settings,
            store,
            identity,
            ledger,
            lifecycle,
        });
        let background = CancelScope::new();
        let fetching = Crew::new();
        crew.spawn("keeper", context.keeper.clone().run(background.clone()));
        let share = (room / sources.len().max(1)).max(1);
        for (broker, bus) in sources {
            let ends_at = context.store.place().and_then(|place| bus.sink_at(&place));
            let source = Arc::new(SourceRuntime { broker, bus, ends_at });
            let (taking, from) = (context.clone(), source.clone());
            fetching.spawn("fetch", async move {
                replay::run(&taking, &from).await;
                intake::fetch(taking, from, share).await;
            });
            crew.spawn("commands", upkeep::commands(context.clone(), source.clone(), background.clone()));
            crew.spawn("upkeep", upkeep::run(context.clone(), source, background.clone()));
        }
        Self { context, background, fetching }
    }

    /// How many attempts live here, run, wait for a lane, and were stolen so far.
    pub fn load(&self) -> (usize, usize, usize, u64) {
        let (busy, queued, steals) = self.context.queue.load();
        (self.context.ledger.len(), busy, queued, steals)
    }

    /// Waits for a drain to be asked for, then ends as `docs/design.md` §5 says. Whether everything was settled.
    pub async fn ended(self) -> bool {
        let context = &self.context;
        let lifecycle = &context.lifecycle;
        lifecycle.reached(LifePhase::Draining).await;
        let settled = self.drained().await;
        self.background.cancel(crate::cancel::CancelReason::Interrupted);
        settled
    }

    async fn drained(&self) -> bool {
        use crate::cancel::CancelReason::{Interrupted, Left};
        let Context { ledger, lifecycle, settings, .. } = &*self.context;
        ledger.end(&[LivePhase::Staging, LivePhase::Staged], &Interrupted);
        tokio::select! {
            () = self.empty() => return true,
            () = tokio::time::sleep(settings.drain_timeout) => {
                let then = settings.on_drain_timeout;
                tracing::warn!(running = ledger.len(), ?then, "the drain took too long: what runs is ended");
            }
            () = lifecycle.reached(LifePhase::Stopping) => {}
        }
        lifecycle.advance(LifePhase::Stopping);
        let running = match settings.on_drain_timeout {
            OnDrainTimeout::Stop => Interrupted,
            OnDrainTimeout::Leave => Left,
        };
        ledger.end(&[LivePhase::Running], &running);
        ledger.end(&[LivePhase::Staging, LivePhase::Staged], &Interrupted);
        // Their outputs stay here whatever becomes of the others.
        ledger.end(&[LivePhase::Spooled, LivePhase::Uploading], &Left);
        tokio::select! {
            () = self.empty() => true,
            () = tokio::time::sleep(settings.stop_timeout) => false,
            () = lifecycle.reached(LifePhase::Killed) => false,
        }
    }

    /// Waits until nothing is fetched any more and every attempt has gone. Resolves at once when that is so.
    async fn empty(&self) {
        self.fetching.dismissed(Duration::from_secs(365 * 86_400)).await;
    }
}
