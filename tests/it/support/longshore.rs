//! The built `longshore` binary as a person or a supervisor runs it: with state and settings of its own, nothing taken
//! from the environment, every wait bounded.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::poll::eventually;
use super::process::tied_to_this_thread;

const ENDS_WITHIN: Duration = Duration::from_secs(60);
const READY_WITHIN: Duration = Duration::from_secs(20);

/// One installation: a private state folder and the settings in it. All its processes share them.
pub(crate) struct Longshore {
    folder: TempDir,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// All of standard output.
    pub(crate) stdout: String,
    /// All of standard error.
    pub(crate) stderr: String,
}

impl Longshore {
    /// An installation with default settings but for its folder.
    pub(crate) fn new() -> Longshore {
        Longshore::with_settings("")
    }

    /// An installation with these settings (TOML) besides.
    pub(crate) fn with_settings(settings: &str) -> Longshore {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = format!("state_dir = \"{}\"\n{settings}", folder.path().join("state").display());
        std::fs::write(folder.path().join("longshore.toml"), file).expect("the folder can be written");
        Longshore { folder }
    }

    /// Where queue, records and journal are.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A free folder for the test's own files, gone with the installation; also where commands are run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command, for a test that wants to start it in a way of its own.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        for (name, _) in std::env::vars_os() {
            if is_setting(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        // However full the disk of the machine that runs the tests is.
        command.env("LONGSHORE_WORKER__DISK_HIGH_WATER", "1");
        command.arg("--config").arg(self.folder.path().join("longshore.toml")).args(args);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end; the exit code is the test's to judge.
    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        let mut command = tokio::process::Command::from(self.command(args));
        let output = tokio::time::timeout(ENDS_WITHIN, command.kill_on_drop(true).output());
        let output =
            output.await.unwrap_or_else(|_| panic!("longshore {args:?} runs for over {ENDS_WITHIN:?}"));
        let output = output.expect("longshore can be started");
        Said {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it and returns what it printed, without the line's end; panics when it fails.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args).await;
        assert_eq!(said.code, Some(0), "longshore {args:?} failed: {said:?}");
        said.stdout.trim_end().to_owned()
    }

    /// Submits a task that does nothing, with these arguments besides; its id.
    pub(crate) async fn ping(&self, more: &[&str]) -> String {
        let file = self.folder.path().join("ping.json");
        std::fs::write(&file, r#"{"v": 1, "task": "longshore.ping"}"#).expect("the folder can be written");
        self.ok(&[&["submit", "--file", &file.display().to_string()], more].concat()).await
    }

    /// Starts `longshore worker` with these arguments and waits until it says that it is ready.
    pub(crate) async fn worker(&self, args: &[&str]) -> Worker {
        let mut command = self.command(&["worker"]);
        command.args(args);
        self.start(&command).await
    }

    /// Starts a worker by a command of [`Longshore::command`] and waits until it says that it is ready.
    pub(crate) async fn start(&self, command: &Command) -> Worker {
        let number = uuid::Uuid::now_v7();
        let out = self.folder.path().join(format!("worker-{number}.out"));
        let log = self.folder.path().join(format!("worker-{number}.log"));
        let child = tied_to_this_thread(command)
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("the folder can be written"))
            .stderr(File::create(&log).expect("the folder can be written"))
            .spawn()
            .expect("longshore can be started");
        let mut worker = Worker { child, out, log };
        eventually(READY_WITHIN, "the worker is ready", async || {
            if let Some(status) = worker.ended() {
                panic!("the worker ended with {status}: {}", worker.log());
            }
            worker.out().contains("ready").then_some(())
        })
        .await;
        worker
    }
}

/// A running worker; dropping it kills it, as a crash would.
pub(crate) struct Worker {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Worker {
    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("invariant: process ids fit"))
    }

    /// What it printed so far: its ready line, and what tasks connect to the host's standard output.
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child can be signalled");
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked for its state")
    }

    /// Waits until it ends by itself, after a signal for example.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        eventually(ENDS_WITHIN, "the worker ends", async || self.ended()).await
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the worker's log:\n{}", self.log());
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Variables that longshore reads. `DOCKER_HOST` stays: the engine is the one that the test itself talks to.
fn is_setting(name: &str) -> bool {
    let prefixes = ["LONGSHORE_", "DOCKER_", "GIRDER_", "CELERY_", "DSA_", "GW_", "XDG_"];
    name == "TMPDIR" || name != "DOCKER_HOST" && prefixes.iter().any(|prefix| name.starts_with(prefix))
}
