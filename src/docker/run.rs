//! The task kind `docker_run`: arguments, policy, image and pipeline while it is staged; the container while it runs; the
//! pipeline's end and the cleanup after it. Composes the room, knows no engine.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::args::{self, ArgError, RunDefaults};
use super::attach::Outlet;
use super::cleaner::ContainerCleaner;
use super::container::{Container, Remover};
use super::drive::{Driver, Ended, Run};
use super::engine::{Creation, Engine, Image};
use super::error;
use super::gpu;
use super::image::{ImageRoom, Wanted};
use super::judge::TaskJudge;
use super::labels::Afterwards;
use super::reaper::Reaper;
use super::request::{self, Origin, Plan, bad_argument};
use super::selfhost::Housing;
use super::settings::Settings;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::reporter::Phase;
use crate::girder::Ceilings;
use crate::handler::{Admit, Attempt, Demand, Handler, Slot, Staged};
use crate::pipeline::{self, Exit, Pipeline, volumes_of};
use crate::policy::{MountIdentity, Policy, Pull};
use crate::task::{Arg, ArgMap, Task};
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
}

/// What all attempts share.
struct Room {
    settings: Settings,
    defaults: RunDefaults,
    policy: Arc<Policy>,
    pipeline: pipeline::Settings,
    images: ImageRoom,
    driver: Driver,
    gpus: Vec<String>,
    housing: OnceCell<Option<Housing>>,
}

impl DockerRun {
    /// The name that tasks call it by.
    pub const KIND: &str = "docker_run";

    /// A handler with these settings. Fails when the default options are none.
    pub fn new(settings: Settings, parts: Parts) -> Result<Self, ArgError> {
        let Parts { engine, policy, pipeline, crew } = parts;
        let room = Room {
            defaults: defaults(&settings)?,
            policy,
            pipeline,
            images: ImageRoom::new(engine.clone(), crew.clone(), &settings),
            gpus: gpu::list(&settings.gpus),
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

    /// The GPUs that tasks may use: what the pool of the worker is made of.
    pub fn gpus(&self) -> &[String] {
        &self.room.gpus
    }

    /// Who removes containers of `instance` that no attempt stands behind.
    pub fn reaper(&self, instance: &str) -> Reaper {
        let settings = &self.room.settings;
        let times = (settings.reap_grace.get(), settings.reap_every.get());
        Reaper::new(self.room.driver.engine.clone(), instance, times)
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
    fn ceilings(&self, attempt: &Attempt) -> Ceilings {
        let download = &self.policy.rules(&attempt.task().queue).download;
        Ceilings {
            files: download.max_files.amount(None).unwrap_or(u64::MAX),
            bytes: download.max_bytes.amount(None).map_or(u64::MAX, Size::bytes),
            depth: self.pipeline.girder.settings().max_depth,
        }
    }

    fn read(&self, task: &Task) -> Result<args::DockerRun, TaskError> {
        let mut run = args::DockerRun::read(&task.args).map_err(bad_argument)?;
        run.fill(&self.defaults);
        Ok(run)
    }

    /// Where the worker itself lives, asked once.
    async fn housing(&self) -> Result<Option<&Housing>, TaskError> {
        let found = self.housing.get_or_try_init(|| Housing::find(&*self.driver.engine)).await;
        found.map(Option::as_ref).map_err(|failed| error::engine(&failed))
    }

    fn cleaner<'a>(
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

    async fn admit(&self, _task: &Task) -> Result<Admit, TaskError> {
        Ok(Admit::Start)
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
        let request = request::pipeline_request(&run, attempt.task());
        let granted = origin.compose(&Plan::before_staging(&run, &volumes_of(&request)))?;
        let wanted = Wanted::read(&run.image, granted.creation.platform.as_deref())?;
        attempt.report().describe(|details| details.image = Some(run.image.clone()));
        let image = tokio::select! {
            image = room.images.ensure(&wanted, run.pull, attempt.report()) => image?,
            reason = attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        attempt.report().reached(Phase::Pulled);
        describe_image(&attempt, &image);
        let mut settings = room.pipeline.clone();
        settings.judge = Arc::new(TaskJudge::new(room.policy.clone(), &attempt));
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
            image,
            creation: granted.creation,
            mounts: granted.mounts,
            argv,
        };
        Ok(Box::new(StagedRun { container, pipeline }))
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
        container.clean_up(pipeline).await;
        result
    }

    async fn discard(self: Box<Self>) {
        self.container.clean_up(self.pipeline).await;
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
    afterwards: Afterwards,
}

impl Prepared {
    async fn carry_out(&mut self, slot: &Slot, pipeline: &mut Pipeline) -> Result<Value, TaskError> {
        self.attempt.check_fence().await?;
        self.give_gpus(slot);
        let report = self.attempt.report();
        report.describe(|details| {
            details.argv.clone_from(&self.argv);
            details.gpus.clone_from(&slot.gpus);
        });
        pipeline.open()?;
        let container = self.create().await?;
        let line_max = usize::try_from(self.room.settings.line_max.bytes()).unwrap_or(usize::MAX);
        let outlet = Outlet::new(report.clone(), line_max, pipeline.standard_streams());
        let run = Run { attempt: &self.attempt, argv: &self.argv, outlet, mounts: &self.mounts };
        let ended = self.room.driver.run(container, run, pipeline.failed()).await?;
        report.describe(|details| {
            details.exit_code = Some(ended.code);
            details.oom_killed = Some(ended.oom.is_some());
        });
        self.finish(ended, pipeline).await
    }

    /// Brings the outputs to where they belong. A stream's failure is told before the exit code that may follow from it.
    async fn finish(&self, ended: Ended, pipeline: &mut Pipeline) -> Result<Value, TaskError> {
        let failed = (ended.code != 0).then(|| error::exit(ended.code, ended.oom, &ended.last_words));
        if let Err(stream) = pipeline.container_ended().await {
            if let Some(failed) = failed {
                self.attempt.report().note(failed.message);
            }
            return Err(stream.with_exit_code(ended.code));
        }
        let exit = Exit { code: ended.code, oom_killed: ended.oom.is_some() };
        let finished = tokio::select! {
            finished = pipeline.finish(&exit) => finished,
            reason = self.attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        if let Some(failed) = failed {
            if let Err(hook) = finished {
                self.attempt.report().warn(hook.message);
            }
            return Err(failed);
        }
        let value = finished.map_err(|hook| hook.with_exit_code(ended.code))?;
        self.attempt.report().reached(Phase::Uploaded);
        Ok(value)
    }

    async fn clean_up(&self, pipeline: Pipeline) {
        // Asked while staging, so it is known.
        let housing = self.room.housing.get().and_then(Option::as_ref);
        pipeline.cleanup(&self.room.cleaner(&self.attempt, self.wanted.name(), housing)).await;
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
