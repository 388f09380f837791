//! One attempt's pipeline from staging to cleanup: [`Pipeline::stage`], `open`, the container's life, `container_ended`,
//! `finish`, `cleanup`, in this order. Called by a handler, which runs the container between `open` and `container_ended`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::conduit::{Conduit, Prepared, Surroundings};
use super::mentions::volumes_of;
use super::sent::Sent;
use super::spool;
use super::staging::Staging;
use super::targets::Targets;
use super::volumes::Volumes;
use super::{
    Cleaner, ContainerPlan, Made, Mount, MountKind, MountMode, Place, Settings, StandardStreams, Transform,
    When, transform_of,
};
use crate::error::{ErrorClass, TaskError};
use crate::events::LogStream;
use crate::girder::may_wait;
use crate::handler::{Attempt, spooled};
use crate::task::python::python_str;
use crate::task::transform::BindMountVolume;
use crate::task::{Arg, ArgMap, GirderContext, TransformSpec};

/// What a task asks of its pipeline.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Instead of the image's own.
    pub entrypoint: Option<Vec<Arg>>,
    /// The container's arguments.
    pub container_args: Vec<Arg>,
    /// Options of the container in which transforms may stand, such as its environment.
    pub options: ArgMap,
    /// Volumes as transforms.
    pub volumes: Vec<TransformSpec>,
    /// Volumes in docker-py's form; a `host_path` without a leading slash is a named volume.
    pub binds: Vec<BindMountVolume>,
    /// Streams that stand in no argument.
    pub stream_connectors: Vec<TransformSpec>,
    /// What to do with the outputs, in order.
    pub result_hooks: Vec<TransformSpec>,
    /// The Girder that asked.
    pub girder: Option<GirderContext>,
    /// What the worker itself puts into the container.
    pub files: Vec<WorkerFile>,
}

/// A small file that the worker puts into a container. The container's root may write to it: each container has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerFile {
    /// Its name in the workspace.
    pub name: &'static str,
    /// Absolute path in the container, where nothing of the task's own may be mounted.
    pub target: &'static str,
    /// What it holds.
    pub content: &'static str,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code.
    pub code: i64,
    /// Whether the kernel killed it for its memory limit.
    pub oom_killed: bool,
}

/// A staged pipeline. Dropping it ends its streams and removes what it made as far as the worker may.
pub struct Pipeline {
    attempt: Attempt,
    // Before the volumes, so that streams end and targets go before their folders do.
    streams: Streams,
    targets: Targets,
    made: Vec<Box<dyn Transform>>,
    hooks: Vec<Box<dyn Transform>>,
    sent: Sent,
    /// Where outputs are kept that nobody takes.
    spool: Option<PathBuf>,
    volumes: Volumes,
}

/// The streams of a pipeline.
struct Streams {
    prepared: Vec<Prepared>,
    carried: JoinSet<()>,
    gone: CancellationToken,
    failures: mpsc::UnboundedReceiver<TaskError>,
    fail: mpsc::UnboundedSender<TaskError>,
    standard: StandardStreams,
}

impl Pipeline {
    /// Makes folders and FIFOs and fetches inputs. On an error, or when the attempt's scope ends, what was made is removed.
    pub async fn stage(
        request: Request,
        attempt: &Attempt,
        settings: &Settings,
    ) -> Result<(Self, ContainerPlan), TaskError> {
        let mentioned = volumes_of(&request);
        let mut staging =
            Staging::new(attempt.clone(), settings.clone(), request.girder.clone(), &mentioned)?;
        let staged = tokio::select! {
            staged = stage_all(&request, &mut staging) => staged,
            reason = attempt.scope().canceled() => {
                Err(TaskError::retryable("interrupted", format!("staging was ended: {reason:?}")))
            }
        };
        match staged {
            Ok((hooks, plan)) => {
                let Staging { volumes, targets, prepared, made, sent, .. } = staging;
                let (streams, spool) = (Streams::new(prepared), settings.spool.clone());
                let attempt = attempt.clone();
                Ok((Self { attempt, streams, targets, made, hooks, sent, spool, volumes }, plan))
            }
            Err(error) => {
                for mut transform in staging.made.drain(..).rev() {
                    transform.cleanup().await;
                }
                // No container ran, so everything is ours to remove: dropping the staging does.
                Err(error)
            }
        }
    }

    /// Goes on with what an earlier process of the worker staged for `attempt`. Only the result hooks are staged again:
    /// everything else was done, and the container has it.
    pub async fn adopt(
        request: &Request,
        attempt: &Attempt,
        settings: &Settings,
        made: &Made,
    ) -> Result<Self, TaskError> {
        let mut staging = Staging::adopted(attempt.clone(), settings.clone(), request, made)?;
        match stage_hooks(request, &mut staging).await {
            Ok(hooks) => {
                let Staging { volumes, targets, made, sent, .. } = staging;
                let (streams, spool) = (Streams::new(Vec::new()), settings.spool.clone());
                Ok(Self { attempt: attempt.clone(), streams, targets, made, hooks, sent, spool, volumes })
            }
            Err(error) => {
                staging.volumes.leave();
                Err(error)
            }
        }
    }

    /// What a later process needs to go on, which only a pipeline without streams allows. To be asked before it is opened.
    pub fn made(&self) -> Option<Made> {
        self.streams.prepared.is_empty().then(|| self.volumes.made())
    }

    /// The folder that only the worker may enter and that goes with the pipeline.
    pub fn folder(&self) -> &Path {
        self.volumes.workspace().path()
    }

    /// Lets go of everything for a later process.
    pub fn leave(self) {
        self.volumes.leave();
    }

    /// Opens the readers of all pipes and starts the streams. To be called on the runtime, before
    /// the container is created.
    pub fn open(&mut self) -> Result<(), TaskError> {
        self.streams.open(&self.attempt)
    }

    /// Where the container's own output goes beside its log. What is in it must be dropped when the output ended:
    /// [`Pipeline::container_ended`] waits for that.
    pub fn standard_streams(&mut self) -> StandardStreams {
        std::mem::take(&mut self.streams.standard)
    }

    /// Resolves when a stream failed while the container runs, else never. Cancel-safe.
    pub async fn failed(&mut self) -> TaskError {
        match self.streams.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// The container ended: output pipes are drained to their last byte, input pipes stop. Resolves when every byte is
    /// where it belongs, or with the first stream's error, or when the attempt's scope ends.
    pub async fn container_ended(&mut self) -> Result<(), TaskError> {
        self.streams.gone.cancel();
        let drained = async { while self.streams.carried.join_next().await.is_some() {} };
        tokio::select! {
            () = drained => {}
            reason = self.attempt.scope().canceled() => {
                self.streams.carried.shutdown().await;
                return Err(TaskError::retryable("interrupted", format!("streams were ended: {reason:?}")));
            }
        }
        self.streams.failures.try_recv().map_or(Ok(()), Err)
    }

    /// Runs the result hooks in order and returns their values. After a failed container only those that run always. When
    /// Girder does not take the outputs of one that ended well they are kept with those of the hooks behind it: see
    /// [`spooled`] and [`spool`].
    pub async fn finish(&mut self, exit: &Exit) -> Result<Value, TaskError> {
        let mut values = Vec::new();
        let mut first = None;
        for at in 0..self.hooks.len() {
            let hook = &mut self.hooks[at];
            let wanted = match hook.when() {
                When::OnSuccess => exit.code == 0 && first.is_none(),
                When::Always => true,
            };
            if !wanted {
                continue;
            }
            match hook.finish(exit).await {
                Ok(value) => values.push(value),
                Err(error) if exit.code == 0 && first.is_none() && may_wait(&error) => {
                    return Err(self.keep(at, values, error).await);
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) => Err(error),
            None if values.is_empty() => Ok(Value::Null),
            None => Ok(Value::Array(values)),
        }
    }

    /// Keeps the outputs of the hooks from `at` on because of `why`. The task's failure, when they cannot be kept.
    async fn keep(&mut self, at: usize, values: Vec<Value>, why: TaskError) -> TaskError {
        let Some(folder) = &self.spool else { return why };
        let waiting = self.hooks.iter_mut().enumerate().skip(at).collect();
        match spool::keep(folder, &self.attempt, waiting, (values, &self.sent)).await {
            Ok(()) => {
                let text = format!(
                    "{why}; the outputs are kept here and brought to Girder later, at once with: longshore task upload {} --token TOKEN",
                    self.attempt.task().id
                );
                self.attempt.report().warn(text);
                spooled(&why)
            }
            Err(error) if error.class == ErrorClass::Permanent => error,
            Err(error) => {
                self.attempt.report().warn(error.message);
                why
            }
        }
    }

    /// Takes everything back, in reverse order. What cannot be removed is logged and fails nothing.
    pub async fn cleanup(mut self, cleaner: &dyn Cleaner) {
        self.streams.carried.shutdown().await;
        for transform in self.hooks.iter_mut().rev().chain(self.made.iter_mut().rev()) {
            transform.cleanup().await;
        }
        self.targets.remove();
        if let Err(error) = self.volumes.remove(cleaner).await {
            self.attempt.report().note(format!("cleanup: {}", error.message));
            tracing::warn!(task = %self.attempt.task().id, %error, "a temporary folder is left behind");
        }
    }
}

async fn stage_all(
    request: &Request,
    staging: &mut Staging,
) -> Result<(Vec<Box<dyn Transform>>, ContainerPlan), TaskError> {
    let binds = request.binds.iter().map(bind).collect();
    for spec in &request.volumes {
        staging.stage(spec, Place::Volume).await?;
    }
    let entrypoint = match &request.entrypoint {
        Some(args) => Some(texts(args, staging).await?),
        None => None,
    };
    let arguments = texts(&request.container_args, staging).await?;
    let mut options = ArgMap::with_capacity(request.options.len());
    for (key, arg) in &request.options {
        if let Some(arg) = staging.resolve(arg).await? {
            options.insert(key.clone(), arg);
        }
    }
    for spec in &request.stream_connectors {
        if !matches!(spec, TransformSpec::Connect(_) | TransformSpec::ProgressPipe(_)) {
            let text =
                format!("stream_connectors holds {}; only Connect and ProgressPipe are streams", spec.name());
            return Err(TaskError::permanent("bad_argument", text));
        }
        staging.stage(spec, Place::Connector).await?;
    }
    let hooks = stage_hooks(request, staging).await?;
    staging.fetches().done().await?;
    staging.connect_the_rest();
    for file in &request.files {
        staging.add_file(file)?;
    }
    let mounts = staging.mounts(binds)?;
    Ok((hooks, ContainerPlan { entrypoint, arguments, options, mounts }))
}

async fn stage_hooks(request: &Request, staging: &mut Staging) -> Result<Vec<Box<dyn Transform>>, TaskError> {
    let mut hooks = Vec::with_capacity(request.result_hooks.len());
    for spec in &request.result_hooks {
        staging.hook = hooks.len();
        let mut hook = transform_of(spec)?;
        hook.stage(Place::Hook, staging).await?;
        hooks.push(hook);
    }
    Ok(hooks)
}

/// Each argument as Python's `str` has it, which is how `girder_worker` passes them.
async fn texts(args: &[Arg], staging: &mut Staging) -> Result<Vec<String>, TaskError> {
    let mut texts = Vec::with_capacity(args.len());
    for arg in args {
        texts.extend(staging.resolve(arg).await?.as_ref().map(python_str));
    }
    Ok(texts)
}

fn bind(bind: &BindMountVolume) -> Mount {
    Mount {
        source: super::volumes::real_work_dir(bind.host_path.as_ref()),
        target: bind.container_path.clone(),
        mode: MountMode::parse(&bind.mode),
        kind: MountKind::AskedBind,
    }
}

impl Streams {
    fn new(prepared: Vec<Prepared>) -> Self {
        let (fail, failures) = mpsc::unbounded_channel();
        Self {
            prepared,
            carried: JoinSet::new(),
            gone: CancellationToken::new(),
            failures,
            fail,
            standard: StandardStreams::default(),
        }
    }

    fn open(&mut self, attempt: &Attempt) -> Result<(), TaskError> {
        let around = Surroundings {
            gone: self.gone.clone(),
            failures: self.fail.clone(),
            report: attempt.report().clone(),
        };
        let mut inputs = Vec::new();
        // All are open before any runs: one that fails leaves nothing half carried.
        let conduits: Vec<Conduit> = self
            .prepared
            .drain(..)
            .map(|prepared| Conduit::open(prepared, around.clone(), &mut inputs))
            .collect::<Result<_, _>>()?;
        for conduit in conduits {
            self.carried.spawn(conduit.run());
        }
        for (stream, input) in inputs {
            match stream {
                LogStream::Stdout => self.standard.stdout = Some(input),
                LogStream::Stderr => self.standard.stderr = Some(input),
                LogStream::Worker => {}
            }
        }
        Ok(())
    }
}
