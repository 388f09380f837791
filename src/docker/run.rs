//! The task kind `docker_run`: arguments, policy, image and pipeline while it is staged; the container while it runs; the
//! pipeline's end and the cleanup after it. Composes the room, knows no engine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::adopt;
use super::args::{self, ArgError, RunDefaults, StdoutFilter};
use super::attach::Outlet;
use super::book::{Begun, LogBook};
use super::cleaner::ContainerCleaner;
use super::container::{Container, Remover};
use super::drive::{Driver, Run};
use super::ending::Ending;
use super::engine::{Creation, Engine, Image};
use super::error;
use super::gpu;
use super::image::{ImageRoom, Wanted};
use super::judge::{self, TaskJudge};
use super::labels::Afterwards;
use super::loopback;
use super::reaper::Reaper;
use super::request::{self, Origin, Plan, bad_argument};
use super::selfhost::Housing;
use super::settings::Settings;
use super::spool;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::reporter::Phase;
use crate::girder::{Ceilings, job};
use crate::handler::{Admit, Attempt, Demand, Handler, Identity, Remains, Slot, Spool, Staged};
use crate::http::Judge;
use crate::pipeline::{self, Pipeline, volumes_of};
use crate::policy::{MountIdentity, Policy, Pull};
use crate::store::ResultStore;
use crate::task::{Arg, ArgMap, Fence, Secret, Task};
use crate::units::Size;

/// The handler of `docker_run`. Cheap to clone.
#[derive(Clone)]
pub struct DockerRun {
    room: Arc<Room>,
}

/// Who the handler works with.
pub struct Parts {
    /// Where containers run.
    pub engine: Arc<dyn Engine>,
    /// What tasks may ask for.
    pub policy: Arc<Policy>,
    /// How volumes and streams are prepared; hosts are judged by `policy`, whatever judge stands in it.
    pub pipeline: pipeline::Settings,
    /// Who does what outlives an attempt, such as removals.
    pub crew: Crew,
    /// Ids of the GPUs that the worker shares out: what images made for GPUs get whose task declares none.
    pub gpus: Vec<String>,
}

/// What all attempts share.
pub(super) struct Room {
    pub(super) settings: Settings,
    defaults: RunDefaults,
    pub(super) policy: Arc<Policy>,
    pub(super) pipeline: pipeline::Settings,
    images: ImageRoom,
    pub(super) driver: Driver,
    gpus: Vec<String>,
    housing: OnceCell<Option<Housing>>,
}

impl DockerRun {
    /// The name that tasks call it by.
    pub const KIND: &str = "docker_run";

    /// A handler with these settings. Fails when the default options are none.
    pub fn new(settings: Settings, parts: Parts) -> Result<Self, ArgError> {
        let Parts { engine, policy, pipeline, crew, gpus } = parts;
        let room = Room {
            defaults: defaults(&settings)?,
            policy,
            pipeline,
            images: ImageRoom::new(engine.clone(), crew.clone(), &settings),
            gpus,
            housing: OnceCell::new(),
            driver: Driver {
                remover: Remover::new(engine.clone(), crew.clone()),
                engine,
                crew,
                stop_grace: settings.stop_grace.get(),
                engine_patience: settings.engine_patience.get(),
            },
            settings,
        };
        Ok(Self { room: Arc::new(room) })
    }

    /// Who removes what earlier processes of this instance left and no attempt stands behind, as the records in `store` say.
    pub fn reaper(&self, identity: &Identity, store: Arc<dyn ResultStore>, adopt_window: Duration) -> Reaper {
        Reaper::new(&self.room, identity, store, adopt_window)
    }
}

pub(super) fn defaults(settings: &Settings) -> Result<RunDefaults, ArgError> {
    let read = |(name, value): (&String, &Value)| {
        let path = format!("docker.default_options.{name}");
        Arg::from_value(value.clone(), &path)
            .map(|arg| (name.clone(), arg))
            .map_err(|error| ArgError::Refused { path, reason: error.to_string() })
    };
    let map: ArgMap = settings.default_options.iter().map(read).collect::<Result<_, _>>()?;
    RunDefaults::read(&map)
}

impl Room {
    /// How much a task may fetch.
    pub(super) fn ceilings(&self, attempt: &Attempt) -> Ceilings {
        let download = &self.policy.rules(&attempt.task().queue).download;
        Ceilings {
            files: download.max_files.amount(None).unwrap_or(u64::MAX),
            bytes: download.max_bytes.amount(None).map_or(u64::MAX, Size::bytes),
            depth: self.pipeline.girder.settings().max_depth,
        }
    }

    pub(super) fn read(&self, task: &Task) -> Result<args::DockerRun, TaskError> {
        let mut run = args::DockerRun::read(&task.args).map_err(bad_argument)?;
        run.fill(&self.defaults);
        Ok(run)
    }

    /// Where the worker itself lives, asked once.
    pub(super) async fn housing(&self) -> Result<Option<&Housing>, TaskError> {
        let found = self.housing.get_or_try_init(|| Housing::find(&*self.driver.engine)).await;
        found.map(Option::as_ref).map_err(|failed| error::engine(&failed))
    }

    /// The same, once it was asked.
    pub(super) fn known_housing(&self) -> Option<&Housing> {
        self.housing.get().and_then(Option::as_ref)
    }

    /// The longest line of output, in bytes.
    pub(super) fn line_max(&self) -> usize {
        usize::try_from(self.settings.line_max.bytes()).unwrap_or(usize::MAX)
    }

    pub(super) fn cleaner<'a>(
        &'a self,
        attempt: &'a Attempt,
        image: &'a str,
        housing: Option<&'a Housing>,
    ) -> ContainerCleaner<'a> {
        let own = self.settings.cleaner_image.as_str();
        let image = if own.is_empty() { image } else { own };
        ContainerCleaner::new(self.driver.engine.clone(), attempt, image).housed(housing)
    }

    fn network<'a>(&'a self, housing: Option<&'a Housing>) -> Option<&'a str> {
        match self.settings.network.as_str() {
            "" => None,
            "auto" => housing.and_then(Housing::network),
            named => Some(named),
        }
    }
}

#[async_trait]
impl Handler for DockerRun {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn demand(&self, task: &Task) -> Result<Demand, TaskError> {
        let run = self.room.read(task)?;
        Wanted::read(&run.image, None)?;
        let resources = &task.resources;
        Ok(Demand {
            cpus: resources.cpus.unwrap_or_default(),
            memory: resources.memory.map_or(0, Size::bytes),
            gpus: resources.gpus.unwrap_or_default(),
            platform: resources.platform.clone(),
            custom: resources.custom.clone(),
        })
    }

    async fn admit(&self, task: &Task) -> Result<Admit, TaskError> {
        let judge: Arc<dyn Judge> =
            Arc::new(TaskJudge::new(self.room.policy.clone(), Arc::new(task.clone())));
        let laxest = judge::laxest(&self.room.policy, task);
        if job::was_canceled(task, &self.room.pipeline.girder, &judge, laxest).await? {
            return Ok(Admit::Canceled("its job was canceled in Girder before it started".to_owned()));
        }
        Ok(Admit::Start)
    }

    async fn remains(&self, task: &Task, fence: Fence, instance: &str) -> Result<Remains, TaskError> {
        adopt::remains(&self.room, task, fence, instance).await
    }

    async fn adopt(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        adopt::adopt(&self.room, attempt).await
    }

    fn spool(&self) -> Option<&dyn Spool> {
        Some(self)
    }

    async fn stage(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        let room = &self.room;
        let run = room.read(attempt.task())?;
        let housing = room.housing().await?;
        let origin = Origin {
            attempt: &attempt,
            run: &run,
            policy: &room.policy,
            log: &room.settings.log,
            network: room.network(housing),
        };
        let mut request = request::pipeline_request(&run, attempt.task());
        let granted = origin.compose(&Plan::before_staging(&run, &volumes_of(&request)))?;
        request.files.extend(loopback::hosts(&granted.creation.body));
        let wanted = Wanted::read(&run.image, granted.creation.platform.as_deref())?;
        attempt.report().describe(|details| details.image = Some(run.image.clone()));
        let image = tokio::select! {
            image = room.images.ensure(&wanted, run.pull, attempt.report()) => image?,
            reason = attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        attempt.report().reached(Phase::Pulled);
        describe_image(&attempt, &image);
        let mut settings = room.pipeline.clone();
        settings.judge = Arc::new(TaskJudge::new(room.policy.clone(), attempt.task().clone()));
        settings.download = room.ceilings(&attempt);
        let (pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await?;
        let composed = Plan::staged(&run, plan, housing)
            .and_then(|plan| Ok((request::argv(&image, &plan), origin.compose(&plan)?)));
        let (argv, granted) = match composed {
            Ok(composed) => composed,
            Err(error) => {
                pipeline.cleanup(&room.cleaner(&attempt, wanted.name(), housing)).await;
                return Err(error);
            }
        };
        for denied in granted.audited {
            attempt.report().warn(format!("{denied} (audit: it runs all the same)"));
        }
        attempt.report().reached(Phase::Staged);
        let container = Prepared {
            room: room.clone(),
            afterwards: origin.afterwards(),
            attempt: attempt.clone(),
            wanted,
            pull: run.pull,
            stdout_filter: run.stdout_filter,
            image,
            creation: granted.creation,
            mounts: granted.mounts,
            argv,
        };
        Ok(Box::new(StagedRun { container, pipeline }))
    }
}

#[async_trait]
impl Spool for DockerRun {
    async fn reopen(&self, attempt: &Attempt) -> Result<(), TaskError> {
        spool::reopen(&self.room, attempt)
    }

    async fn upload(&self, attempt: &Attempt, token: Option<Secret>) -> Result<Value, TaskError> {
        spool::upload(&self.room, attempt, token).await
    }

    async fn forget(&self, attempt: &Attempt) {
        spool::forget(&self.room, attempt);
    }
}

fn describe_image(attempt: &Attempt, image: &Image) {
    let digest = image.repo_digests.first().unwrap_or(&image.id).clone();
    attempt.report().describe(|details| details.image_digest = Some(digest));
}

/// A container that can be made, and the pipeline around it.
struct StagedRun {
    container: Prepared,
    pipeline: Pipeline,
}

#[async_trait]
impl Staged for StagedRun {
    async fn run(self: Box<Self>, slot: Slot) -> Result<Value, TaskError> {
        let Self { mut container, mut pipeline } = *self;
        let result = container.carry_out(&slot, &mut pipeline).await;
        container.ending().close(result, pipeline).await
    }

    async fn discard(self: Box<Self>) {
        self.container.ending().clean_up(self.pipeline).await;
    }
}

/// A container that can be made.
struct Prepared {
    room: Arc<Room>,
    attempt: Attempt,
    wanted: Wanted,
    pull: Pull,
    image: Image,
    creation: Creation,
    mounts: Vec<MountIdentity>,
    argv: Vec<String>,
    stdout_filter: Option<StdoutFilter>,
    afterwards: Afterwards,
}

impl Prepared {
    fn ending(&self) -> Ending<'_> {
        Ending { room: &self.room, attempt: &self.attempt, image: self.wanted.name() }
    }

    async fn carry_out(&mut self, slot: &Slot, pipeline: &mut Pipeline) -> Result<Value, TaskError> {
        self.attempt.check_fence().await?;
        self.give_gpus(slot);
        let report = self.attempt.report();
        report.describe(|details| {
            details.argv.clone_from(&self.argv);
            details.gpus.clone_from(&slot.gpus);
        });
        let book = self.book(slot, pipeline);
        pipeline.open()?;
        let container = self.create().await?;
        let outlet = Outlet::new(report.clone(), self.room.line_max(), pipeline.standard_streams())
            .filtered(self.stdout_filter);
        let (argv, mounts, book) = (&self.argv[..], &self.mounts[..], book.as_deref());
        let run = Run { attempt: &self.attempt, argv, outlet, mounts, book };
        let (ended, container) = self.room.driver.run(container, run, pipeline.failed()).await?;
        self.ending().finish((ended, container), pipeline, book).await
    }

    /// Begins the book from which a later process could go on, when the container needs nothing of this one: no streams,
    /// no devices that this one gave out, and a log that the engine keeps.
    fn book(&self, slot: &Slot, pipeline: &Pipeline) -> Option<Arc<LogBook>> {
        let made = pipeline.made().filter(|_| slot.gpus.is_empty())?;
        let host = self.creation.body.host_config.as_ref();
        let driver = host.and_then(|host| host.log_config.as_ref()).and_then(|log| log.typ.as_deref());
        if driver == Some("none") {
            return None;
        }
        let report = self.attempt.report();
        let begun = Begun::of(&self.attempt, self.wanted.name(), made);
        match LogBook::begin(pipeline.folder(), &begun, report.standing()) {
            Ok(book) => {
                let book = Arc::new(book);
                report.keep(book.clone());
                Some(book)
            }
            Err(error) => {
                tracing::warn!(task = %self.attempt.task().id, %error, "no later process can go on with this attempt");
                None
            }
        }
    }

    fn give_gpus(&mut self, slot: &Slot) {
        match gpu::give(&mut self.creation.body, &self.image, &slot.gpus, &self.room.gpus) {
            gpu::Given::AsAsked | gpu::Given::All => {}
            gpu::Given::NoneHere => {
                self.attempt
                    .report()
                    .warn("the image was made for GPUs and this host has none: it runs without");
            }
        }
    }

    /// Makes the container; an image that went since staging is fetched once more.
    async fn create(&self) -> Result<Container, TaskError> {
        let driver = &self.room.driver;
        let made = driver.create(&self.attempt, self.creation.clone(), self.afterwards).await;
        let refused = match made {
            Ok(container) => return Ok(container),
            Err(refused) => refused,
        };
        if !refused.lacks_image() || self.pull == Pull::Never {
            return Err(refused.into_task_error(self.wanted.name()));
        }
        let fetched = tokio::select! {
            fetched = self.room.images.fetch(&self.wanted, self.attempt.report()) => fetched,
            reason = self.attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        describe_image(&self.attempt, &fetched?);
        let made = driver.create(&self.attempt, self.creation.clone(), self.afterwards).await;
        made.map_err(|refused| refused.into_task_error(self.wanted.name()))
    }
}
