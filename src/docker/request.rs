//! From what a task asks and what staging decided to the engine's finished request, and policy's word on it.
//!
//! Judged twice: before anything is fetched, with stand-ins for what the pipeline will put in, so that a refusal costs
//! nothing; and as it will be sent, which is what counts.

use std::path::{Path, PathBuf};

use bollard::models::{ContainerCreateBody, HostConfigLogConfig, Mount, MountType};
use serde_json::Value;

use super::args::{self, ContainerOptions, VolumeArg};
use super::engine::{Creation, Image};
use super::labels::{self, Afterwards};
use super::selfhost::Housing;
use super::settings::LogDriver;
use crate::error::TaskError;
use crate::handler::Attempt;
use crate::pipeline::{ContainerPlan, MountKind, Request};
use crate::policy::{self, Denied, FinalRequest, MountIdentity, Policy, Refusal};
use crate::task::transform::{BindMountVolume, Volume};
use crate::task::{Arg, ArgMap, Task, TransformSpec};

/// A path stands in for each transform until the pipeline has run.
const STAND_IN: &str = "/longshore/stand-in";

/// What staging decided.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) arguments: Vec<String>,
    /// Without transforms.
    pub(super) options: ArgMap,
    /// `source:target:mode`.
    pub(super) binds: Vec<String>,
    /// What cannot be said as a bind.
    pub(super) mounts: Vec<Mount>,
    /// Host paths that the worker made for the task.
    pub(super) made: Vec<PathBuf>,
    /// Whether the container is made past the engine's network stack: see [`super::loopback`].
    pub(super) loopback: bool,
}

impl Plan {
    /// What the pipeline decided, with its paths as the engine's host names them.
    pub(super) fn staged(
        run: &args::DockerRun,
        plan: ContainerPlan,
        housing: Option<&Housing>,
    ) -> Result<Self, TaskError> {
        let mut binds: Vec<String> = unnamed(run).map(ToString::to_string).collect();
        let (mut mounts, mut made, mut loopback) = (Vec::new(), Vec::new(), false);
        for mount in plan.mounts {
            let source = match (mount.kind, housing) {
                (
                    MountKind::Folder | MountKind::Fifo | MountKind::WorkerFile | MountKind::DirectFile,
                    Some(housing),
                ) => housing.host_path(&mount.source)?,
                (MountKind::AskedBind, _) | (_, None) => mount.source,
            };
            if matches!(mount.kind, MountKind::Folder | MountKind::Fifo | MountKind::WorkerFile) {
                made.push(source.clone());
            }
            loopback |= mount.kind == MountKind::WorkerFile;
            let text = source.to_str().ok_or_else(|| {
                TaskError::permanent(
                    "mount_name",
                    format!("{} is no UTF-8: it cannot be mounted", source.display()),
                )
            })?;
            // A colon would end the source in the short form, and the long one takes no modes but these.
            if text.contains(':') && mount.kind != MountKind::AskedBind {
                mounts.push(Mount {
                    typ: Some(MountType::BIND),
                    source: Some(text.to_owned()),
                    target: Some(mount.target),
                    read_only: Some(!mount.mode.is_writable()),
                    ..Mount::default()
                });
            } else {
                binds.push(bind(&source, &mount.target, mount.mode.as_str()));
            }
        }
        let ContainerPlan { entrypoint, arguments, options, .. } = plan;
        Ok(Self { entrypoint, arguments, options, binds, mounts, made, loopback })
    }

    /// What can be said before staging. `mentioned` are the volumes that transforms name: staging may write into them, so they are judged before it.
    pub(super) fn before_staging(run: &args::DockerRun, mentioned: &[Volume]) -> Self {
        let binds = run.volumes.iter().filter_map(|volume| match volume {
            VolumeArg::Bind(bind) => Some(bind.to_string()),
            VolumeArg::Transform(Volume::BindMountVolume(bind)) => {
                Some(format!("{}:{}:{}", bind.host_path, bind.container_path, bind.mode))
            }
            VolumeArg::Transform(Volume::TemporaryVolume(_)) => None,
        });
        let mut binds: Vec<String> = binds.collect();
        for volume in mentioned {
            if let Volume::BindMountVolume(bind) = volume {
                let text = format!("{}:{}:{}", bind.host_path, bind.container_path, bind.mode);
                if !binds.contains(&text) {
                    binds.push(text);
                }
            }
        }
        Self {
            entrypoint: run.entrypoint.as_deref().map(stood_in_texts),
            arguments: stood_in_texts(&run.container_args),
            options: run.options.iter().map(|(name, value)| (name.clone(), stood_in(value))).collect(),
            binds,
            mounts: Vec::new(),
            made: Vec::new(),
            loopback: false,
        }
    }
}

/// What the pipeline is asked for.
pub(super) fn pipeline_request(run: &args::DockerRun, task: &Task) -> Request {
    let mut request = Request {
        entrypoint: run.entrypoint.clone(),
        container_args: run.container_args.clone(),
        options: run.options.clone(),
        stream_connectors: run.stream_connectors.clone(),
        result_hooks: task.result_hooks.clone(),
        girder: task.girder.clone(),
        ..Request::default()
    };
    for volume in &run.volumes {
        match volume {
            VolumeArg::Transform(Volume::BindMountVolume(volume)) => {
                request.volumes.push(TransformSpec::BindMountVolume(volume.clone()));
            }
            VolumeArg::Transform(Volume::TemporaryVolume(volume)) => {
                request.volumes.push(TransformSpec::TemporaryVolume(volume.clone()));
            }
            VolumeArg::Bind(bind) => request.binds.extend(bind.source().map(|source| BindMountVolume {
                host_path: source.to_owned(),
                container_path: bind.target().to_owned(),
                mode: bind.mode().to_owned(),
            })),
        }
    }
    request
}

/// Volumes that the engine makes for this container alone; the pipeline knows nothing of them.
fn unnamed(run: &args::DockerRun) -> impl Iterator<Item = &args::Bind> {
    run.volumes.iter().filter_map(|volume| match volume {
        VolumeArg::Bind(bind) if bind.source().is_none() => Some(bind),
        VolumeArg::Bind(_) | VolumeArg::Transform(_) => None,
    })
}

fn stood_in_texts(args: &[Arg]) -> Vec<String> {
    args::argument_texts(&args.iter().map(stood_in).collect::<Vec<_>>())
}

fn stood_in(arg: &Arg) -> Arg {
    match arg {
        Arg::Transform(_) => Arg::Text(STAND_IN.to_owned()),
        Arg::List(items) => Arg::List(items.iter().map(stood_in).collect()),
        Arg::Map(map) => Arg::Map(map.iter().map(|(key, item)| (key.clone(), stood_in(item))).collect()),
        plain => plain.clone(),
    }
}

/// What a request is made of beside its plan.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) run: &'a args::DockerRun,
    pub(super) policy: &'a Policy,
    pub(super) log: &'a LogDriver,
    /// The network of tasks that name none.
    pub(super) network: Option<&'a str>,
}

/// A request that policy let pass.
pub(super) struct Granted {
    pub(super) creation: Creation,
    /// What the mounted host paths were when they were judged.
    pub(super) mounts: Vec<MountIdentity>,
    /// What would have been refused, were the rules enforced.
    pub(super) audited: Vec<Denied>,
}

impl Origin<'_> {
    /// What becomes of the container.
    pub(super) fn afterwards(&self) -> Afterwards {
        if self.run.remove_container { Afterwards::Remove } else { Afterwards::Keep }
    }

    /// The finished request, with policy's bounds, if policy grants it.
    pub(super) fn compose(&self, plan: &Plan) -> Result<Granted, TaskError> {
        let task = self.attempt.task();
        let mut options = ContainerOptions::read(&plan.options).map_err(bad_argument)?;
        options.fill(&task.resources);
        let (platform, wished_name) = (options.platform.clone(), options.name.clone());
        let joins_ours = options.network().is_none();
        let mut body = options.into_body(self.network);
        body.image = Some(self.run.image.clone());
        body.cmd = (!plan.arguments.is_empty()).then(|| plan.arguments.clone());
        body.entrypoint.clone_from(&plan.entrypoint);
        (body.attach_stdout, body.attach_stderr) = (Some(true), Some(true));
        let own = labels::labels(self.attempt, wished_name.as_deref(), self.afterwards());
        body.labels.get_or_insert_default().extend(own);
        self.bound_log(&mut body);
        let host = body.host_config.get_or_insert_default();
        host.binds = Some(plan.binds.clone());
        host.mounts.get_or_insert_default().extend(plan.mounts.iter().cloned());
        self.policy.apply(&task.queue, &mut body);
        if plan.loopback {
            body.network_disabled = Some(true);
        }
        let granted = self.judge(&body, plan, self.network.filter(|_| joins_ours))?;
        let name = labels::name(&task.id, self.attempt.fence());
        let creation = Creation { name, platform, body };
        // What the worker made lies where nobody else can swap it, and a look at each container would cost a call.
        let mounts = granted.mounts.into_iter().filter(|mount| !plan.made.contains(&mount.source)).collect();
        Ok(Granted { creation, mounts, audited: granted.audited })
    }

    /// The engine's own log would grow without bound.
    fn bound_log(&self, body: &mut ContainerCreateBody) {
        let host = body.host_config.get_or_insert_default();
        if host.log_config.is_none() && !self.log.driver.is_empty() {
            let options = self.log.options.iter().map(|(key, value)| (key.clone(), value.clone()));
            host.log_config = Some(HostConfigLogConfig {
                typ: Some(self.log.driver.clone()),
                config: Some(options.collect()),
            });
        }
    }

    fn judge(
        &self,
        body: &ContainerCreateBody,
        plan: &Plan,
        worker_network: Option<&str>,
    ) -> Result<policy::Granted, TaskError> {
        let task = self.attempt.task();
        let reach = Reach::of(task);
        let job = task.girder.as_ref().and_then(|girder| girder.job.as_ref());
        let verdict = self.policy.judge(&FinalRequest {
            task: &task.id,
            queue: &task.queue,
            image: &self.run.image,
            pull: self.run.pull,
            body,
            made: &plan.made,
            written: &reach.written,
            worker_network,
            streams: &reach.streams,
            girder: task.girder.as_ref().map(|girder| girder.api_url.as_str()),
            insecure_girder: job.is_some_and(|job| !job.verify_tls),
            gpus: task.resources.gpus.unwrap_or_default(),
            timeout: task.timeout,
        });
        let refused = |refusal: Refusal| TaskError::permanent("denied_by_policy", refusal.to_string());
        verdict.into_result().map_err(refused)
    }
}

/// Arguments that cannot be taken as they are.
#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
pub(super) fn bad_argument(error: args::ArgError) -> TaskError {
    TaskError::permanent("bad_argument", error.to_string())
}

/// What the worker itself reaches for on behalf of a task's transforms, wherever they stand.
#[derive(Default)]
struct Reach {
    written: Vec<PathBuf>,
    streams: Vec<String>,
}

impl Reach {
    fn of(task: &Task) -> Self {
        let mut reach = Self::default();
        for arg in task.args.values() {
            arg.each_transform(&mut |spec| reach.look(&serde_json::to_value(spec).unwrap_or_default()));
        }
        for hook in &task.result_hooks {
            reach.look(&serde_json::to_value(hook).unwrap_or_default());
        }
        reach
    }

    /// Looks at a transform and all that stand in it.
    fn look(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                let text = |key: &str| map.get(key).and_then(Value::as_str);
                match text("$") {
                    Some("TemporaryVolume") => self.written.extend(text("host_dir").map(PathBuf::from)),
                    Some("NamedInputPipe" | "NamedOutputPipe") => {
                        self.written.extend(text("host_path").map(PathBuf::from));
                    }
                    Some("ChunkedTransferEncodingStream") => {
                        self.streams.extend(text("url").map(str::to_owned));
                    }
                    _ => {}
                }
                map.values().for_each(|value| self.look(value));
            }
            Value::Array(items) => items.iter().for_each(|item| self.look(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// What the container will execute: an entrypoint of the task's own sets the image's command aside.
pub(super) fn argv(image: &Image, plan: &Plan) -> Vec<String> {
    let (entrypoint, command) = match &plan.entrypoint {
        Some(own) => (&own[..], &[][..]),
        None => (&image.entrypoint[..], &image.command[..]),
    };
    let arguments = if plan.arguments.is_empty() { command } else { &plan.arguments };
    entrypoint.iter().chain(arguments).cloned().collect()
}

/// `source:target:mode` of something that the worker mounts.
pub(super) fn bind(source: &Path, target: &str, mode: &str) -> String {
    format!("{}:{target}:{mode}", source.display())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(args: Value) -> Task {
        let Value::Object(map) = args else { panic!("a map") };
        let args = map.into_iter().map(|(k, v)| (k.clone(), Arg::from_value(v, &k).unwrap())).collect();
        Task::new("docker_run", args)
    }

    #[test]
    fn what_the_worker_reaches_for_is_found_wherever_it_stands() {
        let task = task(json!({
            "image": "i",
            "container_args": [
                {"$": "Connect", "input": {"$": "NamedOutputPipe", "name": "p", "container_path": "/c", "host_path": "/h"},
                 "output": {"$": "ChunkedTransferEncodingStream", "url": "http://a/"}},
                {"$": "VolumePath", "filename": "f", "volume": {"$": "TemporaryVolume", "host_dir": "/d"}},
            ],
            "options": {"environment": {"P": {"$": "ProgressPipe", "volume": {"$": "TemporaryVolume", "host_dir": "/e"}}}},
        }));
        let reach = Reach::of(&task);
        assert_eq!(reach.written, [Path::new("/h"), Path::new("/d"), Path::new("/e")]);
        assert_eq!(reach.streams, ["http://a/"]);
    }

    #[test]
    fn the_command_of_the_image_counts_only_with_its_own_entrypoint_and_without_arguments() {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let image = Image { entrypoint: text(&["e"]), command: text(&["c"]), ..Image::default() };
        let plan = |entrypoint: Option<&[&str]>, arguments: &[&str]| Plan {
            entrypoint: entrypoint.map(text),
            arguments: text(arguments),
            ..Plan::default()
        };
        assert_eq!(argv(&image, &plan(None, &[])), ["e", "c"]);
        assert_eq!(argv(&image, &plan(None, &["a"])), ["e", "a"]);
        assert_eq!(argv(&image, &plan(Some(&["o"]), &[])), ["o"]);
        assert_eq!(argv(&image, &plan(Some(&["o"]), &["a"])), ["o", "a"]);
    }
}
