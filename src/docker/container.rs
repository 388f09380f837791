//! One container of ours from creation to removal. Removed by its id only, whatever happens, and never by a name or
//! pattern; the removal may outlive the attempt, the engine's own limit and the reaper bound it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::engine::{Creation, Engine, EngineError, Output};
use super::error;
use super::labels::{self, Afterwards};
use crate::crew::Crew;
use crate::error::TaskError;
use crate::task::Fence;

/// How often a removal is tried before it is left to the reaper.
const REMOVALS: u32 = 5;
/// How many removals may be on their way at once; more hold up their lanes.
const REMOVALS_AT_ONCE: usize = 16;

/// Removes containers behind the attempts' backs, a bounded number at a time.
#[derive(Clone)]
pub(super) struct Remover {
    engine: Arc<dyn Engine>,
    crew: Crew,
    room: Arc<Semaphore>,
}

impl Remover {
    /// Removals at `engine` by members of `crew`.
    pub(super) fn new(engine: Arc<dyn Engine>, crew: Crew) -> Self {
        Self { engine, crew, room: Arc::new(Semaphore::new(REMOVALS_AT_ONCE)) }
    }

    /// Begins to remove the container `id`; waits only when too many are on their way.
    pub(super) async fn remove(&self, id: String) {
        let permit = self.room.clone().acquire_owned().await;
        let engine = self.engine.clone();
        self.crew.spawn("remove container", async move {
            remove_at_last(&*engine, &id).await;
            drop(permit);
        });
    }

    fn remove_dropped(&self, id: String) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let engine = self.engine.clone();
            let _entered = runtime.enter();
            self.crew.spawn("remove container", async move { remove_at_last(&*engine, &id).await });
        }
    }
}

async fn remove_at_last(engine: &dyn Engine, id: &str) {
    let mut pause = Duration::from_millis(200);
    for attempt in 1..=REMOVALS {
        match engine.remove(id).await {
            Ok(()) => return,
            Err(error) if attempt == REMOVALS => {
                tracing::warn!(container = id, %error, "a container was not removed; the reaper will");
            }
            Err(error) => tracing::debug!(container = id, %error, "removal failed, trying again"),
        }
        tokio::time::sleep(pause).await;
        pause *= 4;
    }
}

/// A container that exists. Dropping it removes it, unless it is kept.
pub(super) struct Container {
    engine: Arc<dyn Engine>,
    remover: Remover,
    id: String,
    afterwards: Afterwards,
    settled: bool,
}

impl Container {
    /// Makes it. A container of the same name is what an earlier try of this very attempt left: it is replaced.
    pub(super) async fn create(
        engine: &Arc<dyn Engine>,
        remover: &Remover,
        creation: Creation,
        (fence, afterwards): (Fence, Afterwards),
    ) -> Result<(Self, Vec<String>), CreateError> {
        let made = match engine.create(creation.clone()).await {
            Err(refused) if refused.status() == Some(409) => {
                replace(&**engine, &creation.name, fence).await?;
                engine.create(creation).await
            }
            other => other,
        };
        let (id, warnings) = made.map_err(CreateError::Engine)?;
        let container =
            Self { engine: engine.clone(), remover: remover.clone(), id, afterwards, settled: false };
        Ok((container, warnings))
    }

    /// One that an earlier process of this worker started.
    pub(super) fn found(
        engine: &Arc<dyn Engine>,
        remover: &Remover,
        id: String,
        afterwards: Afterwards,
    ) -> Self {
        Self { engine: engine.clone(), remover: remover.clone(), id, afterwards, settled: false }
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Opens its output; to be called before [`Container::start`].
    pub(super) async fn attach(
        &self,
    ) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError> {
        self.engine.attach(&self.id).await
    }

    /// Opens what the engine kept of its output, or what was written after `since`, and what comes until its end.
    pub(super) async fn logs(
        &self,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError> {
        self.engine.logs(&self.id, since).await
    }

    /// Starts it.
    pub(super) async fn start(&self) -> Result<(), EngineError> {
        self.engine.start(&self.id).await
    }

    /// Waits for its end and returns its exit code. Cancel-safe.
    pub(super) async fn wait(&self) -> Result<i64, EngineError> {
        self.engine.wait(&self.id).await
    }

    /// Asks it to end and kills it after `grace`; does not wait longer than a second beyond that.
    pub(super) async fn stop(&self, grace: Duration) {
        let seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let stopped =
            tokio::time::timeout(grace + Duration::from_secs(1), self.engine.stop(&self.id, seconds)).await;
        match stopped {
            Ok(Ok(())) => {}
            // Its removal kills it.
            Ok(Err(error)) => tracing::debug!(container = self.id, %error, "stop failed"),
            Err(_) => tracing::debug!(container = self.id, "stop took too long"),
        }
    }

    /// Begins its removal, unless it is kept.
    pub(super) async fn dispose(mut self) {
        self.settled = true;
        if self.afterwards == Afterwards::Remove {
            self.remover.remove(std::mem::take(&mut self.id)).await;
        }
    }

    /// Lets go of it: it runs on, for a later process of this worker.
    pub(super) fn leave(mut self) {
        self.settled = true;
    }

    /// Begins its removal, whatever the task wished: it never ran.
    pub(super) async fn scrap(mut self) {
        self.settled = true;
        self.remover.remove(std::mem::take(&mut self.id)).await;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.settled {
            self.remover.remove_dropped(std::mem::take(&mut self.id));
        }
    }
}

/// Why a container was not made.
pub(super) enum CreateError {
    /// The engine said so.
    Engine(EngineError),
    /// The name is taken by something that is not ours to remove.
    Task(TaskError),
}

/// Removes the container that has our name, if it carries our fence.
async fn replace(engine: &dyn Engine, name: &str, fence: Fence) -> Result<(), CreateError> {
    let found = engine.inspect(name).await.map_err(CreateError::Engine)?;
    let Some(found) = found else { return Ok(()) };
    if found.labels.get(labels::FENCE) != Some(&fence.to_string()) {
        return Err(CreateError::Task(TaskError::retryable(
            "container_name_taken",
            format!("a container named {name} exists that longshore did not make; rename or remove it"),
        )));
    }
    engine.remove(&found.id).await.map_err(CreateError::Engine)
}

impl CreateError {
    /// Whether only the image is missing.
    pub(super) fn lacks_image(&self) -> bool {
        match self {
            Self::Engine(EngineError::Refused { status: Some(404), message, .. }) => {
                error::names_image(message)
            }
            Self::Engine(_) | Self::Task(_) => false,
        }
    }
    /// What it means for the task that wanted `image`.
    pub(super) fn into_task_error(self, image: &str) -> TaskError {
        match self {
            Self::Engine(error) => error::create(&error, image),
            Self::Task(error) => error,
        }
    }
}
