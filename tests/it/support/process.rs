//! Servers as children of a test: started on a free port, awaited, and gone when the test is.
//!
//! # Decisions
//! - `setpriv --pdeathsig KILL` ties a server to the thread that started it, so that a killed test leaves none behind.
//!   Servers are therefore started from the test's own thread, never from a spawned task.
//! - Ports come from below the ephemeral range: a port taken there could be any client's by the time the server binds.

use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use super::poll::eventually;

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
const LOWEST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// A running server; dropping it ends it.
pub(crate) struct Server {
    name: &'static str,
    command: Command,
    port: u16,
    log: PathBuf,
    child: Child,
    ready_within: Duration,
}

impl Server {
    /// Starts `command`, whose output goes to `<folder>/<name>.log`, and waits until `port` of this host accepts.
    ///
    /// Panics with the end of that log when the server ends or stays silent.
    pub(crate) async fn start(name: &'static str, command: &Command, folder: &Path, port: u16) -> Server {
        Server::start_slowly(name, command, (folder, port), READY_WITHIN).await
    }

    /// The same for one that may take longer.
    pub(crate) async fn start_slowly(
        name: &'static str,
        command: &Command,
        (folder, port): (&Path, u16),
        ready_within: Duration,
    ) -> Server {
        let log = folder.join(format!("{name}.log"));
        let mut command = tied_to_this_thread(command);
        let child = spawn(name, &mut command, &log);
        let mut server = Server { name, command, port, log, child, ready_within };
        server.ready().await;
        server
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Starts it again as it was first started, with what it left on disk.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.name, &mut self.command, &self.log);
        self.ready().await;
    }

    /// Stops it in the middle of whatever it does, as a host does that is out of breath.
    pub(crate) async fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("a child can be signalled");
        // Its threads stop one by one; those on another processor still run for a moment.
        let tasks = format!("/proc/{}/task", self.pid());
        eventually(STOPPED_WITHIN, "all threads stand still", async || stands_still(&tasks).then_some(()))
            .await;
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("a child can be signalled");
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("invariant: process ids fit"))
    }

    async fn ready(&mut self) {
        let (what, port) = (format!("{} accepts on port {}", self.name, self.port), self.port);
        eventually(self.ready_within, &what, async || {
            let accepted = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            // Asked after connecting: had another process taken the port, ours would have ended over it.
            self.assert_alive();
            accepted.then_some(())
        })
        .await;
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child can be asked for its state") {
            panic!("{} ended with {status}; its last words:\n{}", self.name, self.last_words());
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last words of {}:\n{}", self.name, self.last_words());
        }
        end(&mut self.child);
    }
}

/// A port of 127.0.0.1 that nobody listens on; two calls of one test run never get the same one by chance of timing.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Tests run as processes of their own: each starts its search elsewhere.
    let start =
        u16::try_from(u64::from(std::process::id()) * 37 % u64::from(PORTS)).expect("invariant: below PORTS");
    for _ in 0..PORTS {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = LOWEST_PORT + (start + step) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {LOWEST_PORT} and {}", LOWEST_PORT + PORTS);
}

fn spawn(name: &str, command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).expect("the log file can be opened");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file can be shared"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{name} cannot be started ({error}); run scripts/test-servers"))
}

/// Whether every thread below this folder of `/proc` is stopped by a signal.
fn stands_still(tasks: &str) -> bool {
    let tasks = std::fs::read_dir(tasks).expect("a child has threads");
    // A thread may end while we look.
    let stats = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    // The state is the first letter after the name, which is in brackets and may hold anything.
    stats.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

/// Asks a process to end, then kills it.
fn end(child: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("invariant: process ids fit"));
    if matches!(child.try_wait(), Ok(None)) {
        // It may end between the question and the signal; then there is nothing to do.
        let _ = kill(pid, Signal::SIGTERM);
        // A frozen one hears nothing until it is thawed.
        let _ = kill(pid, Signal::SIGCONT);
        let start = Instant::now();
        while matches!(child.try_wait(), Ok(None)) && start.elapsed() < STOPPED_WITHIN {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The same command, killed by the kernel when the starting thread ends.
pub(crate) fn tied_to_this_thread(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args([OsStr::new("--pdeathsig"), OsStr::new("KILL"), OsStr::new("--"), command.get_program()]);
    tied.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(key, value),
            None => tied.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    tied
}
