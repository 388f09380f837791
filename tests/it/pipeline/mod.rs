//! Pipelines around real processes: a child of the test stands for the container, and the host's paths for its own.

mod flipper;
mod http;
mod pipes;
mod progress;
mod volumes;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use longshore::error::TaskError;
use longshore::handler::Attempt;
use longshore::pipeline::conduit::HostStreams;
use longshore::pipeline::{Cleaner, ContainerPlan, MountKind, Pipeline, Request, Settings};
use longshore::store::Details;
use longshore::task::{Arg, ArgMap, Task, TransformSpec};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// No stream of a test takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A staged pipeline with what is around it.
struct Rig {
    pipeline: Pipeline,
    plan: ContainerPlan,
    attempt: Attempt,
    stdout: Written,
    stderr: Written,
    work_dir: Arc<TempDir>,
}

/// What came of a run.
struct Ran {
    exit: ExitStatus,
    streams: Result<(), TaskError>,
    details: Details,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    work_dir: Arc<TempDir>,
}

/// Bytes that somebody wrote.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// The worker may remove everything itself in these tests.
struct NoCleaner;

#[async_trait]
impl Cleaner for NoCleaner {
    async fn clean(&self, folder: &Path) -> Result<(), TaskError> {
        Err(TaskError::permanent("test", format!("nobody can clean {}", folder.display())))
    }
}

/// A transform as it stands in an envelope.
fn spec(value: Value) -> TransformSpec {
    serde_json::from_value(value).unwrap()
}

/// A request whose arguments are these values.
fn request(args: &[Value]) -> Request {
    let container_args = args.iter().map(|arg| Arg::from_value(arg.clone(), "args").unwrap()).collect();
    Request { container_args, ..Request::default() }
}

/// A stream from the container's pipe `name` to `output`.
fn from_pipe(name: &str, output: &Value) -> Value {
    json!({"$": "Connect", "input": {"$": "NamedOutputPipe", "name": name}, "output": output})
}

impl Rig {
    async fn new(request: Request) -> Rig {
        Self::with(request, |_| {}).await.unwrap()
    }

    async fn with(request: Request, change: impl FnOnce(&mut Settings)) -> Result<Rig, TaskError> {
        Self::of(Attempt::detached(Task::new("docker_run", ArgMap::new())), request, change).await
    }

    async fn of(
        attempt: Attempt,
        request: Request,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Rig, TaskError> {
        let work_dir = Arc::new(tempfile::tempdir().unwrap());
        let (stdout, stderr) = (Written::default(), Written::default());
        let mut settings = Settings::new(work_dir.path());
        settings.host = HostStreams::to(Box::new(stdout.clone()), Box::new(stderr.clone()));
        change(&mut settings);
        let (pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await?;
        Ok(Rig { pipeline, plan, attempt, stdout, stderr, work_dir })
    }

    /// Where the container's `path` lies on the host.
    fn host(&self, path: &str) -> PathBuf {
        let mut mounts = self.plan.mounts.iter().rev();
        let (mount, rest) = mounts
            .find_map(|mount| Path::new(path).strip_prefix(&mount.target).ok().map(|rest| (mount, rest)))
            .unwrap_or_else(|| panic!("{path} is mounted nowhere"));
        if rest.as_os_str().is_empty() { mount.source.clone() } else { mount.source.join(rest) }
    }

    /// Starts `script` in place of the container. Its `$1`, `$2`, … are the plan's arguments as host paths.
    fn start(&self, script: &str) -> Container {
        let arguments = self.plan.arguments.iter().map(|argument| {
            if argument.starts_with('/') { self.host(argument) } else { PathBuf::from(argument) }
        });
        let mut command = Command::new("sh");
        command.args(["-c", script, "container"]).args(arguments).stdin(Stdio::null()).process_group(0);
        Container(command.spawn().unwrap())
    }

    /// Opens the streams, runs `script` to its end, lets the streams end and cleans up.
    async fn run(mut self, script: &str) -> Ran {
        self.pipeline.open().unwrap();
        let mut container = self.start(script);
        tokio::time::timeout(DEADLINE, async {
            let (exit, failed) = tokio::select! {
                exit = container.0.wait() => (exit.unwrap(), None),
                error = self.pipeline.failed() => (container.kill().await, Some(error)),
            };
            let streams = self.pipeline.container_ended().await;
            let streams = failed.map_or(streams, Err);
            self.pipeline.cleanup(&NoCleaner).await;
            let details = self.attempt.report().snapshot().1;
            let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
            Ran { exit, streams, details, stdout, stderr, work_dir: self.work_dir }
        })
        .await
        .expect("the run ends within its deadline")
    }
}

/// A process group that is gone as a whole, as a container is.
struct Container(Child);

impl Container {
    async fn kill(&mut self) -> ExitStatus {
        self.signal();
        self.0.wait().await.unwrap()
    }

    fn signal(&self) {
        if let Some(id) = self.0.id() {
            let _ = killpg(Pid::from_raw(i32::try_from(id).unwrap()), Signal::SIGKILL);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.signal();
    }
}

impl Ran {
    /// The bytes counted for the stream whose name holds `part`.
    fn bytes(&self, part: &str) -> u64 {
        let found: Vec<_> = self.details.streams.iter().filter(|told| told.stream.contains(part)).collect();
        assert_eq!(found.len(), 1, "{part} in {:?}", self.details.streams);
        found[0].bytes
    }

    /// Everything went well and nothing is left behind.
    fn assert_clean(&self) {
        self.streams.as_ref().unwrap();
        assert!(self.exit.success(), "{}", self.exit);
        let left: Vec<_> = walk(self.work_dir.path());
        assert!(left.iter().all(|path| path.ends_with("longshore-detached")), "{left:?}");
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Bytes that repeat nowhere near, so that lost or swapped pieces show.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

/// The kinds of a plan's mounts at `target`.
fn kind_at(plan: &ContainerPlan, target: &str) -> Option<MountKind> {
    plan.mounts.iter().find(|mount| mount.target == target).map(|mount| mount.kind)
}

/// What this process keeps in memory. Other tests run in other processes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most that it ever kept.
fn most_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
