//! What a task kind must be able to do, and what it is given for one attempt.
//!
//! The executor knows kinds only through [`Handler`] and [`Staged`]; `docker/` and `ping` implement them.
//! A row of `worker::HANDLERS` makes a kind known.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::cancel::CancelScope;
use crate::error::TaskError;
use crate::events::reporter::{LogLimits, Reporter};
use crate::task::{Fence, Resources, Secret, Task};
use crate::units::Size;

/// A task kind.
#[async_trait]
pub trait Handler: Send + Sync {
    /// The name that tasks call it by.
    fn kind(&self) -> &'static str;
    /// Checks the arguments and says what the task takes from the pool. No I/O.
    fn demand(&self, task: &Task) -> Result<Demand, TaskError>;
    /// Whether the task should start at all; may ask others, such as Girder about its job.
    async fn admit(&self, task: &Task) -> Result<Admit, TaskError>;
    /// Prepares the inputs. Ends soon after the attempt's scope ends; what it made by then it removes itself.
    async fn stage(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError>;
    /// Whether an earlier process of `instance` left something of the attempt with `fence` that [`Handler::adopt`] can go
    /// on with. What it left and cannot be gone on with is removed. An error: that cannot be known now.
    async fn remains(&self, _task: &Task, _fence: Fence, _instance: &str) -> Result<Remains, TaskError> {
        Ok(Remains::Nothing)
    }
    /// Goes on with what [`Handler::remains`] found: with the events behind the last one that was told, and without doing
    /// again what was done. The result is always run, never discarded but for another attempt's sake.
    async fn adopt(&self, _attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        Err(gone())
    }
    /// Who brings outputs away that were [`spooled`]; none where that cannot be.
    fn spool(&self) -> Option<&dyn Spool> {
        None
    }
}

/// Outputs of attempts whose work is done: kept until somebody takes them.
#[async_trait]
pub trait Spool: Send + Sync {
    /// Goes on telling of an attempt that an earlier process spooled.
    async fn reopen(&self, attempt: &Attempt) -> Result<(), TaskError>;
    /// Brings the outputs of `attempt` away; `token` stands for the task's own from now on. What was brought is not brought
    /// again. [`spooled`] says that it is to be tried later. Dropping the future breaks a transfer off, and no more.
    async fn upload(&self, attempt: &Attempt, token: Option<Secret>) -> Result<Value, TaskError>;
    /// Removes what is kept of `attempt`, once its end is recorded.
    async fn forget(&self, attempt: &Attempt);
}

/// What an earlier process left of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// Something that can be gone on with.
    Adoptable,
    /// Outputs that [`Handler::spool`] can bring away.
    Spooled,
    /// Nothing, by now.
    Nothing,
}

/// The code of [`left`].
pub const LEFT: &str = "left";

/// How [`Staged::run`] says that the attempt runs on and can be adopted; only after
/// [`CancelReason::Left`](crate::cancel::CancelReason::Left).
pub fn left() -> TaskError {
    TaskError::retryable(LEFT, "it runs on without its worker, for the worker's next process")
}

/// What the code of [`spooled`] begins with.
const SPOOLED: &str = "spooled:";

/// How [`Staged::run`] and [`Spool::upload`] say that the work is done but for outputs that nobody took because of `why`:
/// they are kept, to be brought away later.
pub fn spooled(why: &TaskError) -> TaskError {
    TaskError { code: format!("{SPOOLED}{}", why.code), ..why.clone() }
}

/// Why outputs were not taken, when `error` says that they are kept.
pub fn outstanding(error: &TaskError) -> Option<TaskError> {
    let code = error.code.strip_prefix(SPOOLED)?.to_owned();
    Some(TaskError { code, ..error.clone() })
}

/// The code of [`gone`].
pub const GONE: &str = "not_adopted";

/// How an adopted attempt says that what was left of it went before it could be gone on with, as a container does whose removal
/// had been under way: the task is begun anew, uncharged.
pub fn gone() -> TaskError {
    TaskError::retryable(GONE, "what an earlier process of the worker left of the attempt is gone")
}

/// A prepared attempt: it either runs or is discarded.
#[async_trait]
pub trait Staged: Send {
    /// Runs to the end, finishes and cleans up. Ends soon after the attempt's scope ends.
    async fn run(self: Box<Self>, slot: Slot) -> Result<Value, TaskError>;
    /// Cleans up without having run.
    async fn discard(self: Box<Self>);
}

/// Whether a task should start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It should.
    Start,
    /// Somebody canceled it where we did not hear of it.
    Canceled(String),
}

/// What a task takes from the worker-wide pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Processors.
    pub cpus: f64,
    /// Bytes.
    pub memory: u64,
    /// Whole devices.
    pub gpus: u32,
    /// `os/arch`, when only that will do.
    pub platform: Option<String>,
    /// Amounts of the resources that the settings name.
    pub custom: BTreeMap<String, u64>,
}

impl Demand {
    /// What `resources` ask for.
    pub fn of(resources: &Resources) -> Self {
        Self {
            cpus: resources.cpus.unwrap_or(0.0),
            memory: resources.memory.map_or(0, Size::bytes),
            gpus: resources.gpus.unwrap_or(0),
            platform: resources.platform.clone(),
            custom: resources.custom.clone(),
        }
    }
}

/// Where an attempt runs and what it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The lane.
    pub lane: usize,
    /// Device ids that no other attempt holds meanwhile.
    pub gpus: Vec<String>,
}

/// Tells whether an attempt is still the current one of its task.
#[async_trait]
pub trait FenceGate: Send + Sync {
    /// An error when another attempt has begun, or when that cannot be known any more.
    async fn check(&self) -> Result<(), TaskError>;
}

/// One charged try of a task. Cheap to clone.
#[derive(Clone)]
pub struct Attempt {
    inner: Arc<Inner>,
}

struct Inner {
    task: Arc<Task>,
    number: u32,
    fence: Fence,
    scope: CancelScope,
    report: Reporter,
    gate: Box<dyn FenceGate>,
    identity: Identity,
    rest: Mutex<Rest>,
}

/// What is to be done once the end of an attempt is recorded.
enum Rest {
    /// Nobody records it: nothing waits.
    AtOnce,
    /// This, in its order.
    Later(Vec<BoxFuture<'static, ()>>),
}

/// Who runs attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The worker's name, unique among those that live.
    pub worker: Arc<str>,
    /// Stays the same over restarts: labels what this worker owns on its host.
    pub instance: Arc<str>,
    /// Changes with each start of the process.
    pub incarnation: Arc<str>,
    /// The host.
    pub host: Arc<str>,
}

impl Attempt {
    /// Puts an attempt together; the executor's intake does.
    pub fn new(
        task: Arc<Task>,
        (number, fence): (u32, Fence),
        scope: CancelScope,
        report: Reporter,
        (gate, identity): (Box<dyn FenceGate>, Identity),
    ) -> Self {
        let rest = Mutex::new(Rest::AtOnce);
        Self { inner: Arc::new(Inner { task, number, fence, scope, report, gate, identity, rest }) }
    }

    /// Says that the end will be recorded: [`Attempt::rest`] waits until then. Whoever calls it calls
    /// [`Attempt::finish_rest`], too.
    pub(crate) fn will_be_recorded(&self) {
        *self.lock_rest() = Rest::Later(Vec::new());
    }

    /// Does `work` once the end of the attempt is recorded: what the next process would go on with, should this one die
    /// before. At once where nobody records it.
    pub async fn rest(&self, work: impl Future<Output = ()> + Send + 'static) {
        {
            let mut rest = self.lock_rest();
            match &mut *rest {
                Rest::Later(waiting) => return waiting.push(Box::pin(work)),
                Rest::AtOnce => {}
            }
        }
        work.await;
    }

    /// Does what waited for the record.
    pub(crate) async fn finish_rest(&self) {
        let rest = std::mem::replace(&mut *self.lock_rest(), Rest::AtOnce);
        match rest {
            Rest::Later(waiting) => {
                for work in waiting {
                    work.await;
                }
            }
            Rest::AtOnce => {}
        }
    }

    fn lock_rest(&self) -> MutexGuard<'_, Rest> {
        self.inner.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do.
    pub fn task(&self) -> &Arc<Task> {
        &self.inner.task
    }
    /// Counts from 1.
    pub fn number(&self) -> u32 {
        self.inner.number
    }
    /// Its fence.
    pub fn fence(&self) -> Fence {
        self.inner.fence
    }
    /// Ends when the attempt must end, with the reason.
    pub fn scope(&self) -> &CancelScope {
        &self.inner.scope
    }
    /// Tells what happens.
    pub fn report(&self) -> &Reporter {
        &self.inner.report
    }
    /// The worker's name.
    pub fn worker(&self) -> &str {
        &self.inner.identity.worker
    }
    /// The worker's stable instance id.
    pub fn instance(&self) -> &str {
        &self.inner.identity.instance
    }
    /// Whether this is still the current attempt: asked before a container is created and an upload finalised.
    pub async fn check_fence(&self) -> Result<(), TaskError> {
        self.inner.gate.check().await
    }

    /// An attempt that belongs to no worker: its fence always holds and its events go nowhere but into its details.
    pub fn detached(task: Task) -> Self {
        struct Open;
        #[async_trait]
        impl FenceGate for Open {
            async fn check(&self) -> Result<(), TaskError> {
                Ok(())
            }
        }
        let fence = Fence::after(Fence(0), jiff::Timestamp::now());
        let task = Arc::new(task);
        let report = Reporter::new(task.clone(), fence, crate::events::Bus::silent(), LogLimits::default());
        let here: Arc<str> = Arc::from("detached");
        let identity =
            Identity { worker: here.clone(), instance: here.clone(), incarnation: here.clone(), host: here };
        Self::new(task, (1, fence), CancelScope::new(), report, (Box::new(Open), identity))
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("task", &self.inner.task.id)
            .field("number", &self.inner.number)
            .field("fence", &self.inner.fence)
            .finish_non_exhaustive()
    }
}
