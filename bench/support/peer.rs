//! The Python worker on a RabbitMQ node of its own, doing the same work. Scripts are in `peers/`.
//!
//! What a machine lacks for it makes the figures missing, never made up.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::process::{self, Leashed};
use super::{Outcome, rig};

const NODE_READY: Duration = Duration::from_secs(60);
const WORK_DONE: Duration = Duration::from_secs(300);

/// The Python worker, or why there is none.
pub(crate) struct Peer(Result<Node, String>);

/// A broker for it.
pub(crate) struct Node {
    folder: TempDir,
    address: String,
    queues: AtomicU32,
    server: Leashed,
}

/// A moment in which a worker's process marked something, in seconds on the machine's clock.
struct Moment {
    what: String,
    at: f64,
}

/// What an idle worker costs, all its processes together.
pub(crate) struct Idle {
    /// From its start to its ready line, in seconds.
    pub(crate) ready: f64,
    /// In KiB.
    pub(crate) resident: f64,
    /// Each second.
    pub(crate) wakeups: f64,
}

impl Peer {
    /// Installs it where it is not, and starts its broker.
    pub(crate) async fn start() -> Self {
        Self(Node::start().await.map_err(|error| error.to_string()))
    }

    /// None, and why.
    pub(crate) fn absent(reason: &str) -> Self {
        Self(Err(reason.to_owned()))
    }

    /// Its broker, or why there is none.
    pub(crate) fn node(&self) -> Result<&Node, &str> {
        self.0.as_ref().map_err(String::as_str)
    }

    /// Tasks per second of `count` that do nothing: a plain Celery worker of two processes.
    pub(crate) async fn noops(&self, count: usize) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let moments = node.work(("plain", 2), &["noop", &count.to_string()], ("mark", 2)).await?;
        #[expect(clippy::cast_precision_loss, reason = "few tasks")]
        let tasks = count as f64;
        Ok(Some(tasks / span(&moments)))
    }

    /// The same with another broker, such as `redis://…`.
    pub(crate) async fn noops_on(&self, broker: &str, count: usize) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let work = ["noop", &count.to_string()];
        let moments = node.work_on(broker, ("plain", 2), &work, ("mark", 2)).await?;
        #[expect(clippy::cast_precision_loss, reason = "few tasks")]
        let tasks = count as f64;
        Ok(Some(tasks / span(&moments)))
    }

    /// The same with results on `rpc://`.
    pub(crate) async fn answered_noops(&self, count: usize) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let moments = node.work(("answering", 2), &["answered", &count.to_string()], ("mark", 2)).await?;
        #[expect(clippy::cast_precision_loss, reason = "few tasks")]
        let tasks = count as f64;
        Ok(Some(tasks / span(&moments)))
    }

    /// Sends requests of Celery's remote control that are for somebody else, `rate` of them in a second.
    pub(crate) async fn broadcast(&self, count: usize, rate: usize) -> Outcome<()> {
        let node = self.node().map_err(str::to_owned)?;
        let mut publish = node.command("python");
        publish.arg(script("publish.py")).args(["broadcast", &count.to_string(), &rate.to_string()]);
        let sent =
            tokio::process::Command::from(publish).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        if sent.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&sent.stderr).into()) }
    }

    /// Containers per second of girder_worker's docker_run.
    pub(crate) async fn containers(
        &self,
        count: usize,
        concurrency: usize,
        network: &str,
    ) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let work = ["docker", &count.to_string(), network];
        let moments = node.work(("girder", concurrency), &work, ("end", count)).await?;
        #[expect(clippy::cast_precision_loss, reason = "few containers")]
        let containers = count as f64;
        Ok(Some(containers / span(&moments)))
    }

    /// MB/s of girder_worker's streams, `way` being one of `publish.py`. What a container costs that carries nothing is
    /// not counted.
    pub(crate) async fn streams(&self, way: &str, bytes: u32, url: &str) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let moments =
            node.work(("girder", 1), &["streams", way, &bytes.to_string(), url], ("end", 2)).await?;
        // One process: the second begins after the first has ended.
        let [first, second] = &moments.chunks(2).map(span).collect::<Vec<_>>()[..] else {
            return Err(format!("{} marks of two tasks", moments.len()).into());
        };
        Ok(Some(f64::from(bytes) / 1e6 / (second - first)))
    }

    /// The makespan in seconds of tasks that sleep, on Celery's own sharing out.
    pub(crate) async fn sleeps(&self, each: &[Duration], concurrency: usize) -> Outcome<Option<f64>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let seconds: Vec<String> = each.iter().map(|sleep| sleep.as_secs_f64().to_string()).collect();
        let work: Vec<&str> = std::iter::once("sleep").chain(seconds.iter().map(String::as_str)).collect();
        let moments = node.work(("plain", concurrency), &work, ("end", each.len())).await?;
        Ok(Some(span(&moments)))
    }

    /// girder_worker with nothing to do.
    pub(crate) async fn idle(&self, settle: Duration, watch: Duration) -> Outcome<Option<Idle>> {
        let Ok(node) = self.node() else { return Ok(None) };
        let _awake = node.wake();
        let begin = Instant::now();
        let (mut worker, log) = node.worker(&node.address, ("girder", 2), "info")?;
        let is_ready = || std::fs::read_to_string(&log).is_ok_and(|told| told.contains(" ready."));
        eventually("the Python worker is ready", NODE_READY, &mut worker, is_ready).await?;
        let ready = begin.elapsed().as_secs_f64();
        tokio::time::sleep(settle).await;
        let processes: Vec<u32> = worker
            .members()
            .into_iter()
            .filter(|process| process::command_line(*process).contains("celery"))
            .collect();
        let resident = processes.iter().map(|process| process::resident(*process)).sum::<Outcome<f64>>()?;
        let before: Vec<_> =
            processes.iter().map(|process| process::sleeps(*process)).collect::<Outcome<_>>()?;
        tokio::time::sleep(watch).await;
        let since = processes.iter().zip(&before);
        let woken = since.map(|(process, before)| process::wakeups_since(*process, before));
        let wakeups = woken.sum::<Outcome<f64>>()? / watch.as_secs_f64();
        Ok(Some(Idle { ready, resident, wakeups }))
    }
}

/// While it lives, the server runs.
pub(crate) struct Awake(Vec<u32>);

impl Drop for Awake {
    fn drop(&mut self) {
        process::signal(&self.0, Signal::SIGSTOP);
    }
}

/// From the first moment to the last.
fn span(moments: &[Moment]) -> f64 {
    let first = moments.iter().map(|moment| moment.at).fold(f64::INFINITY, f64::min);
    let last = moments.iter().map(|moment| moment.at).fold(f64::NEG_INFINITY, f64::max);
    last - first
}

impl Node {
    async fn start() -> Outcome<Self> {
        install().await?;
        let folder = rig::folder()?;
        let [port, distribution, names] = free_ports()?;
        let mut command = Command::new(repository().join("tests/it/support/rabbitmq-node"));
        command.arg(folder.path()).args([port, distribution, names].map(|port| port.to_string()));
        let log = folder.path().join("node.log");
        let mut server = Leashed::start(&command, &log)?;
        let accepts = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        eventually("RabbitMQ accepts (apt-get install rabbitmq-server)", NODE_READY, &mut server, accepts)
            .await?;
        let address = format!("amqp://guest:guest@127.0.0.1:{port}//");
        let node = Self { folder, address, queues: AtomicU32::new(0), server };
        drop(node.wake());
        Ok(node)
    }

    /// Lets the server run until the guard is dropped. In between it is stopped: what is measured then is alone on the machine,
    /// as the Python worker is in its turn.
    pub(crate) fn wake(&self) -> Awake {
        let processes = self.server.members();
        process::signal(&processes, Signal::SIGCONT);
        Awake(processes)
    }

    /// Queues `work` first, then lets a worker of `app` do it until `what` was marked `count` times.
    async fn work(&self, worker: (&str, usize), work: &[&str], until: (&str, usize)) -> Outcome<Vec<Moment>> {
        self.work_on(&self.address, worker, work, until).await
    }

    /// The same on another broker.
    async fn work_on(
        &self,
        broker: &str,
        (app, concurrency): (&str, usize),
        work: &[&str],
        (what, count): (&str, usize),
    ) -> Outcome<Vec<Moment>> {
        let _awake = self.wake();
        self.queues.fetch_add(1, Ordering::Relaxed);
        let mut publish = self.command("python");
        publish.env("BENCH_BROKER", broker);
        publish.arg(script("publish.py")).args(work).stdin(Stdio::null()).stdout(Stdio::null());
        let published = tokio::process::Command::from(publish).kill_on_drop(true).output().await?;
        if !published.status.success() {
            return Err(format!("publish.py: {}", String::from_utf8_lossy(&published.stderr)).into());
        }
        let (mut worker, _) = self.worker(broker, (app, concurrency), "error")?;
        let moments = self.moments_file();
        let is_done = || read(&moments).iter().filter(|moment| moment.what == what).count() >= count;
        eventually("the Python worker has done its work", WORK_DONE, &mut worker, is_done).await?;
        Ok(read(&moments))
    }

    /// A worker and its log.
    fn worker(
        &self,
        broker: &str,
        (app, concurrency): (&str, usize),
        level: &str,
    ) -> Outcome<(Leashed, PathBuf)> {
        let mut command = self.command("celery");
        command.env("BENCH_BROKER", broker);
        command.args(["-A", app, "worker", "--concurrency", &concurrency.to_string(), "--loglevel", level]);
        let log = self.folder.path().join("worker.log");
        Ok((Leashed::start(&command, &log)?, log))
    }

    fn command(&self, program: &str) -> Command {
        let number = self.queues.load(Ordering::Relaxed);
        let mut command = Command::new(environment().join("bin").join(program));
        command
            .current_dir(self.folder.path())
            .env("BENCH_BROKER", &self.address)
            .env("BENCH_QUEUE", format!("bench{number}"))
            .env("BENCH_MOMENTS", self.moments_file())
            .env("PYTHONPATH", repository().join("bench/peers"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("C_FORCE_ROOT", "1");
        command
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn moments_file(&self) -> PathBuf {
        self.folder.path().join(format!("moments{}", self.queues.load(Ordering::Relaxed)))
    }
}

fn read(moments: &Path) -> Vec<Moment> {
    let told = std::fs::read_to_string(moments).unwrap_or_default();
    let moment = |line: &str| {
        let (what, at) = line.split_once(' ')?;
        Some(Moment { what: what.to_owned(), at: at.parse().ok()? })
    };
    told.lines().filter_map(moment).collect()
}

async fn install() -> Outcome<()> {
    let installed = tokio::process::Command::new(script("install")).stdin(Stdio::null()).output().await?;
    if installed.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&installed.stderr);
    Err(format!("it cannot be installed: {}", told.trim_end()).into())
}

/// Looks until `is_so`, or `program` ends, or it takes too long.
async fn eventually(
    what: &str,
    within: Duration,
    program: &mut Leashed,
    is_so: impl Fn() -> bool,
) -> Outcome<()> {
    let begin = Instant::now();
    while !is_so() {
        if program.has_ended()? {
            return Err(format!("waiting until {what}: the program ended").into());
        }
        if begin.elapsed() > within {
            return Err(format!("not within {} s: {what}", within.as_secs()).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Held together until all are known, so that they differ.
fn free_ports() -> Outcome<[u16; 3]> {
    let listen = || TcpListener::bind(("127.0.0.1", 0));
    let listeners = [listen()?, listen()?, listen()?];
    let port = |n: usize| listeners[n].local_addr().map(|address: std::net::SocketAddr| address.port());
    Ok([port(0)?, port(1)?, port(2)?])
}

/// A script of `bench/peers`.
pub(crate) fn script(name: &str) -> PathBuf {
    repository().join("bench/peers").join(name)
}

fn environment() -> PathBuf {
    repository().join("bench/.cache/python")
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
