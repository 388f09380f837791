//! Staging in progress: what transforms ask for and what they have made so far.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::conduit::{Discard, FifoSink, Nothing, Origin, Prepared, Sink};
use super::fetches::Fetches;
use super::fifo::Fifo;
use super::mentions::volumes_of;
use super::sent::Sent;
use super::targets::Targets;
pub use super::volumes::Mounted;
use super::volumes::{Volumes, real_work_dir};
use super::{
    Made, Mount, MountKind, MountMode, Place, Request, Settings, Transform, WorkerFile, transform_of,
};
use crate::error::TaskError;
use crate::events::LogStream;
use crate::girder::{Client, Connection};
use crate::handler::Attempt;
use crate::task::transform::{GirderAccess, NamedPipe, TemporaryVolume, Volume};
use crate::task::{Arg, GirderContext, TransformSpec};

/// What transforms stage into.
pub struct Staging {
    attempt: Attempt,
    settings: Settings,
    girder: Option<GirderContext>,
    pub(super) volumes: Volumes,
    pub(super) targets: Targets,
    pub(super) prepared: Vec<Prepared>,
    /// Everything staged, to be cleaned up in reverse.
    pub(super) made: Vec<Box<dyn Transform>>,
    fetches: Fetches,
    pub(super) sent: Sent,
    /// The place of the hook that is staged, among the task's hooks.
    pub(super) hook: usize,
    /// Bases whose token was looked at.
    checked: Vec<String>,
    direct: Vec<Mount>,
    pipes: Vec<Pipe>,
    pipes_folder: Option<(PathBuf, Arc<File>)>,
    standard: Vec<LogStream>,
    /// How many streams go to the worker's standard output and error.
    host_users: [Arc<AtomicUsize>; 2],
}

/// Which way a container uses a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads.
    Input,
    /// It writes.
    Output,
}

/// One pipe, however often it is mentioned.
struct Pipe {
    container: String,
    name: String,
    direction: Direction,
    fifo: Fifo,
    connected: bool,
}

/// A pipe as its transforms see it.
pub struct PipeHandle {
    /// Its path in the container.
    pub container: String,
    /// Its FIFO.
    pub fifo: Fifo,
}

impl Staging {
    /// A fresh staging whose default volume is made; `mentioned` are all volumes that the request names anywhere.
    pub(super) fn new(
        attempt: Attempt,
        settings: Settings,
        girder: Option<GirderContext>,
        mentioned: &[Volume],
    ) -> Result<Self, TaskError> {
        std::fs::create_dir_all(&settings.work_dir).map_err(|error| {
            let path = settings.work_dir.display();
            TaskError::retryable("workspace", format!("cannot make work_dir {path}: {error}"))
        })?;
        let volumes = Volumes::new(&attempt, &real_work_dir(&settings.work_dir), mentioned)?;
        let mut staging = Self::over(attempt, settings, girder, volumes);
        staging.volume(None)?;
        Ok(staging)
    }

    /// A staging that goes on where an earlier process of the worker ended it; nothing in it is made anew.
    pub(super) fn adopted(
        attempt: Attempt,
        settings: Settings,
        request: &Request,
        made: &Made,
    ) -> Result<Self, TaskError> {
        let volumes = Volumes::adopted(&attempt, made, &volumes_of(request))?;
        let staging = Self::over(attempt, settings, request.girder.clone(), volumes);
        let brought = staging.sent.uploads();
        staging.attempt.report().describe(|details| details.uploads = brought);
        Ok(staging)
    }

    fn over(attempt: Attempt, settings: Settings, girder: Option<GirderContext>, volumes: Volumes) -> Self {
        let parallel = settings.girder.settings().parallel_downloads;
        let fetches = Fetches::new(attempt.report(), parallel, settings.download);
        Self {
            fetches,
            sent: Sent::at(volumes.workspace().path()),
            hook: 0,
            checked: Vec::new(),
            direct: Vec::new(),
            attempt,
            settings,
            girder,
            volumes,
            targets: Targets::default(),
            prepared: Vec::new(),
            made: Vec::new(),
            pipes: Vec::new(),
            pipes_folder: None,
            standard: Vec::new(),
            host_users: Default::default(),
        }
    }

    /// The attempt it is for.
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// The pipeline's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The Girder of the task.
    pub fn girder(&self) -> Option<&GirderContext> {
        self.girder.as_ref()
    }

    /// A client of the Girder that `access` names, else of the task's own.
    pub fn girder_client(&self, access: Option<&GirderAccess>) -> Result<Client, TaskError> {
        let connection = Connection::of_transform(access, self.girder())?;
        if let Some(token) = &connection.token {
            self.attempt.report().redact(token);
        }
        let site = &self.settings.girder;
        site.client(&site.rewritten(connection, self.girder()), &self.settings.judge)
    }

    /// What is fetched while it is staged.
    pub(super) fn fetches(&mut self) -> &mut Fetches {
        &mut self.fetches
    }

    /// Whether this base is met for the first time: its token is looked at once.
    pub(super) fn is_new(&mut self, api_url: &str) -> bool {
        let is_new = !self.checked.iter().any(|known| known == api_url);
        if is_new {
            self.checked.push(api_url.to_owned());
        }
        is_new
    }

    /// Something of the host that the container shall see beside its volumes.
    pub(super) fn mount(&mut self, mount: Mount) {
        self.direct.push(mount);
    }

    /// Where `volume`, or the task's default one, lies. It is mounted from its first mention on.
    pub fn volume(&mut self, volume: Option<&Volume>) -> Result<Mounted, TaskError> {
        let default = Volume::TemporaryVolume(TemporaryVolume::default());
        self.volumes.get(&self.attempt, volume.unwrap_or(&default))
    }

    /// Stages `spec` where it stands and says which text takes its place, if any.
    pub async fn stage(&mut self, spec: &TransformSpec, place: Place) -> Result<Option<String>, TaskError> {
        let mut transform = transform_of(spec)?;
        let staged = transform.stage(place, self).await;
        self.made.push(transform);
        staged
    }

    /// The tree with the text of each transform in its place. Transforms without one are left out of lists and maps.
    pub(super) async fn resolve(&mut self, arg: &Arg) -> Result<Option<Arg>, TaskError> {
        Ok(Some(match arg {
            Arg::Null | Arg::Bool(_) | Arg::Number(_) | Arg::Text(_) => arg.clone(),
            Arg::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for item in items {
                    list.extend(Box::pin(self.resolve(item)).await?);
                }
                Arg::List(list)
            }
            Arg::Map(map) => {
                let mut resolved = crate::task::ArgMap::with_capacity(map.len());
                for (key, item) in map {
                    if let Some(item) = Box::pin(self.resolve(item)).await? {
                        resolved.insert(key.clone(), item);
                    }
                }
                Arg::Map(resolved)
            }
            Arg::Transform(spec) => return Ok(self.stage(spec, Place::Argument).await?.map(Arg::Text)),
        }))
    }

    /// The pipe that `spec` describes; two mentions of one path are one pipe.
    pub fn pipe(&mut self, spec: &NamedPipe, direction: Direction) -> Result<PipeHandle, TaskError> {
        let folder = match (&spec.container_path, &spec.host_path) {
            (Some(container), Some(_)) => container.clone(),
            (None, None) => self.volume(spec.volume.as_ref())?.container,
            _ => {
                return Err(TaskError::permanent(
                    "bad_pipe_path",
                    format!(
                        "the pipe {:?} has only one of container_path and host_path; give both, or a volume, or neither",
                        spec.name.as_str()
                    ),
                ));
            }
        };
        if !folder.starts_with('/') {
            return Err(TaskError::permanent(
                "bad_pipe_path",
                format!(
                    "container_path of the pipe {:?} is {folder:?}; it must be an absolute path",
                    spec.name.as_str()
                ),
            ));
        }
        self.pipe_at(in_folder(&folder, spec.name.as_str()), spec.name.as_str(), direction)
    }

    fn pipe_at(
        &mut self,
        container: String,
        name: &str,
        direction: Direction,
    ) -> Result<PipeHandle, TaskError> {
        if let Some(pipe) = self.pipes.iter().find(|pipe| pipe.container == container) {
            if pipe.direction != direction {
                return Err(TaskError::permanent(
                    "bad_pipe_path",
                    format!("the pipe {container} is both an input and an output; two pipes need two names"),
                ));
            }
            return Ok(PipeHandle { container, fifo: pipe.fifo.clone() });
        }
        let fifo = self.make_fifo().map_err(|error| {
            TaskError::retryable("workspace", format!("cannot make the pipe {container}: {error}"))
        })?;
        let handle = PipeHandle { container: container.clone(), fifo: fifo.clone() };
        self.pipes.push(Pipe { container, name: name.to_owned(), direction, fifo, connected: false });
        Ok(handle)
    }

    fn make_fifo(&mut self) -> std::io::Result<Fifo> {
        if self.pipes_folder.is_none() {
            let made = self.volumes.workspace().folder("pipes", 0o700).map_err(std::io::Error::other)?;
            self.pipes_folder = Some((made.0, Arc::new(made.1)));
        }
        let Some((path, folder)) = &self.pipes_folder else {
            return Err(std::io::Error::other("the folder of pipes is missing"));
        };
        Fifo::make(folder, path, &self.pipes.len().to_string())
    }

    /// Marks the pipe at `container` as connected; a pipe can be so only once.
    pub fn claim(&mut self, container: &str) -> Result<(), TaskError> {
        match self.pipes.iter_mut().find(|pipe| pipe.container == container) {
            Some(pipe) if pipe.connected => Err(TaskError::permanent(
                "bad_pipe_path",
                format!("the pipe {container} is connected twice; two streams need two pipes"),
            )),
            Some(pipe) => {
                pipe.connected = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether the pipe at `container` is connected already.
    pub fn is_connected(&self, container: &str) -> bool {
        self.pipes.iter().any(|pipe| pipe.connected && pipe.container == container)
    }

    /// Marks one of the container's own streams as connected; each can be so only once.
    pub fn claim_standard(&mut self, stream: LogStream) -> Result<(), TaskError> {
        if self.standard.contains(&stream) {
            let text = format!("the container's {stream:?} is connected twice; it has one reader only");
            return Err(TaskError::permanent("bad_argument", text));
        }
        self.standard.push(stream);
        Ok(())
    }

    /// The count of streams that go to one of the worker's own.
    pub(super) fn host_users(&self, stream: LogStream) -> &Arc<AtomicUsize> {
        &self.host_users[usize::from(stream == LogStream::Stderr)]
    }

    /// A stream to carry while the container runs.
    pub fn connect(&mut self, name: String, origin: Origin, sink: Box<dyn Sink>) {
        self.prepared.push(Prepared { name, origin, sink });
    }

    /// Gives every pipe that nobody is connected to an end, so that whoever opens it is not stuck.
    pub(super) fn connect_the_rest(&mut self) {
        let linger = self.settings.linger;
        for pipe in self.pipes.iter().filter(|pipe| !pipe.connected) {
            let Pipe { name, fifo, .. } = pipe;
            self.attempt.report().warn(format!("nothing is connected to the pipe {name:?}"));
            self.prepared.push(match pipe.direction {
                Direction::Input => Prepared {
                    name: format!("nothing → NamedInputPipe {name}"),
                    origin: Origin::Stream(Box::new(Nothing)),
                    sink: Box::new(FifoSink::new(fifo.clone(), linger)),
                },
                Direction::Output => Prepared {
                    name: format!("NamedOutputPipe {name} → nothing"),
                    origin: Origin::Fifo(fifo.clone()),
                    sink: Box::new(Discard),
                },
            });
        }
    }

    /// Makes a file of the worker's own, to be mounted.
    pub(super) fn add_file(&mut self, file: &WorkerFile) -> Result<(), TaskError> {
        let source = self.volumes.workspace().file(file.name, file.content)?;
        self.direct.push(Mount {
            source,
            target: file.target.to_owned(),
            mode: MountMode::ReadWrite,
            kind: MountKind::WorkerFile,
        });
        Ok(())
    }

    /// Everything to mount: volumes, then the FIFOs, each with something to be mounted upon.
    pub(super) fn mounts(&mut self, binds: Vec<Mount>) -> Result<Vec<Mount>, TaskError> {
        let mut mounts = binds;
        for mount in self.volumes.mounts() {
            if !mounts.contains(mount) {
                mounts.push(mount.clone());
            }
        }
        for mount in &self.direct {
            if !mounts.contains(mount) {
                mounts.push(mount.clone());
            }
        }
        for pipe in &self.pipes {
            self.targets.make(&pipe.container, &mounts)?;
        }
        mounts.extend(self.pipes.iter().map(|pipe| Mount {
            source: pipe.fifo.path().to_owned(),
            target: pipe.container.clone(),
            mode: MountMode::ReadWrite,
            kind: MountKind::Fifo,
        }));
        mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
        for (n, mount) in mounts.iter().enumerate() {
            if let Some(other) = mounts[..n].iter().find(|other| other.target == mount.target) {
                return Err(TaskError::permanent(
                    "bad_argument",
                    format!(
                        "{} and {} would both be mounted at {}; choose another container path for one of them",
                        other.source.display(),
                        mount.source.display(),
                        mount.target
                    ),
                ));
            }
        }
        Ok(mounts)
    }
}

/// `name` in the container's folder `folder`.
pub fn in_folder(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}
