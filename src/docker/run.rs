//! The task kind `docker_run`: arguments, policy, image and pipeline while it is staged; the container while it runs; the
//! pipeline's end and the cleanup after it. Composes the room, knows no engine.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::args::{self, ArgError, ContainerOptions, RunDefaults, VolumeArg};
use super::attach::Outlet;
use super::container::{CreateError, Remover};
use super::drive::{Driver, Run};
use super::engine::{Creation, Engine, Image};
use super::error;
use super::image::{ImageRoom, Wanted};
use super::labels::{self, Afterwards};
use super::settings::Settings;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::reporter::Phase;
use crate::handler::{Admit, Attempt, Demand, Handler, Slot, Staged};
use crate::policy::image::Pull;
use crate::task::{Arg, ArgMap, Task};

/// The handler of `docker_run`.
#[derive(Clone)]
pub struct DockerRun {
    room: Arc<Room>,
}

/// What all attempts share.
struct Room {
    settings: Settings,
    defaults: RunDefaults,
    images: ImageRoom,
    driver: Driver,
}

impl DockerRun {
    /// The name that tasks call it by.
    pub const KIND: &str = "docker_run";

    /// Runs containers at `engine`; what outlives an attempt, such as removals, belongs to `crew`.
    pub fn new(settings: Settings, engine: Arc<dyn Engine>, crew: Crew) -> Result<Self, ArgError> {
        let defaults: ArgMap = settings
            .default_options
            .iter()
            .map(|(name, value)| {
                Arg::from_value(value.clone(), &format!("docker.default_options.{name}"))
                    .map(|arg| (name.clone(), arg))
                    .map_err(|error| ArgError::Refused { path: name.clone(), reason: error.to_string() })
            })
            .collect::<Result<_, _>>()?;
        let room = Room {
            defaults: RunDefaults::read(&defaults)?,
            images: ImageRoom::new(engine.clone(), crew.clone(), &settings),
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
}

impl Room {
    fn read(&self, task: &Task) -> Result<args::DockerRun, TaskError> {
        let mut run = args::DockerRun::read(&task.args).map_err(bad_argument)?;
        run.fill(&self.defaults);
        Ok(run)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn bad_argument(error: ArgError) -> TaskError {
    TaskError::permanent("bad_argument", error.to_string())
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
            memory: resources.memory.map_or(0, crate::units::Size::bytes),
            gpus: resources.gpus.unwrap_or_default(),
            platform: resources.platform.clone(),
            custom: resources.custom.clone(),
        })
    }

    async fn admit(&self, _task: &Task) -> Result<Admit, TaskError> {
        Ok(Admit::Start)
    }

    async fn stage(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        let run = self.room.read(attempt.task())?;
        let platform = run.options.get("platform").and_then(|arg| match arg {
            Arg::Text(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        });
        let platform = platform.or_else(|| attempt.task().resources.platform.clone());
        let wanted = Wanted::read(&run.image, platform.as_deref())?;
        attempt.report().describe(|details| details.image = Some(run.image.clone()));
        let image = tokio::select! {
            image = self.room.images.ensure(&wanted, run.pull, attempt.report()) => image?,
            reason = attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        attempt.report().reached(Phase::Pulled);
        describe_image(&attempt, &image);
        let (creation, argv) = compose(&run, &image, &attempt)?;
        attempt.report().reached(Phase::Staged);
        let afterwards = if run.remove_container { Afterwards::Remove } else { Afterwards::Keep };
        Ok(Box::new(StagedRun {
            room: self.room.clone(),
            attempt,
            wanted,
            pull: run.pull,
            creation,
            argv,
            afterwards,
        }))
    }
}

fn describe_image(attempt: &Attempt, image: &Image) {
    let digest = image.repo_digests.first().unwrap_or(&image.id).clone();
    attempt.report().describe(|details| details.image_digest = Some(digest));
}

/// The engine's request, and entrypoint and arguments as the container will have them.
fn compose(
    run: &args::DockerRun,
    image: &Image,
    attempt: &Attempt,
) -> Result<(Creation, Vec<String>), TaskError> {
    let mut options = ContainerOptions::read(&run.options).map_err(bad_argument)?;
    options.fill(&attempt.task().resources);
    let (platform, wished_name) = (options.platform.clone(), options.name.clone());
    let mut body = options.into_body(None);
    let afterwards = if run.remove_container { Afterwards::Remove } else { Afterwards::Keep };
    body.labels.get_or_insert_default().extend(labels::labels(attempt, wished_name.as_deref(), afterwards));
    let arguments = args::argument_texts(&run.container_args);
    let entrypoint = run.entrypoint.as_deref().map(args::argument_texts);
    let argv = argv(image, entrypoint.as_deref(), &arguments);
    body.image = Some(run.image.clone());
    body.cmd = (!arguments.is_empty()).then_some(arguments);
    body.entrypoint = entrypoint;
    (body.attach_stdout, body.attach_stderr) = (Some(true), Some(true));
    let binds = run.volumes.iter().filter_map(|volume| match volume {
        VolumeArg::Bind(bind) => Some(bind.to_string()),
        VolumeArg::Transform(_) => None,
    });
    body.host_config.get_or_insert_default().binds = Some(binds.collect());
    let name = labels::name(&attempt.task().id, attempt.fence());
    Ok((Creation { name, platform, body }, argv))
}

/// What the container will execute: an entrypoint of the task's own sets the image's command aside.
fn argv(image: &Image, entrypoint: Option<&[String]>, arguments: &[String]) -> Vec<String> {
    let (entrypoint, command) = match entrypoint {
        Some(own) => (own, &[][..]),
        None => (&image.entrypoint[..], &image.command[..]),
    };
    let arguments = if arguments.is_empty() { command } else { arguments };
    entrypoint.iter().chain(arguments).cloned().collect()
}

struct StagedRun {
    room: Arc<Room>,
    attempt: Attempt,
    wanted: Wanted,
    pull: Pull,
    creation: Creation,
    argv: Vec<String>,
    afterwards: Afterwards,
}

#[async_trait]
impl Staged for StagedRun {
    async fn run(self: Box<Self>, _slot: Slot) -> Result<Value, TaskError> {
        self.attempt.check_fence().await?;
        let report = self.attempt.report();
        report.describe(|details| details.argv.clone_from(&self.argv));
        let container = self.create().await?;
        let line_max = usize::try_from(self.room.settings.line_max.bytes()).unwrap_or(usize::MAX);
        let run =
            Run { attempt: &self.attempt, argv: &self.argv, outlet: Outlet::new(report.clone(), line_max) };
        let ended = self.room.driver.run(container, run, std::future::pending()).await?;
        report.describe(|details| {
            details.exit_code = Some(ended.code);
            details.oom_killed = Some(ended.oom.is_some());
        });
        if ended.code == 0 {
            Ok(Value::Null)
        } else {
            Err(error::exit(ended.code, ended.oom, &ended.last_words))
        }
    }

    async fn discard(self: Box<Self>) {}
}

impl StagedRun {
    /// Makes the container; an image that went since staging is fetched once more.
    async fn create(&self) -> Result<super::container::Container, TaskError> {
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
        made.map_err(|refused: CreateError| refused.into_task_error(self.wanted.name()))
    }
}
