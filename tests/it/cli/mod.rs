//! The binary as people and scripts use it: on a state folder of its own, with nothing of this machine's settings.

mod dead;
mod help;
mod policy;
mod programs;
mod queue;
mod run_and_worker;
mod settings;
mod streams;
mod submit;
mod task;
mod terminals;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use longshore::broker::{Broker, BrokerUrl, OpenOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A state folder and the binary that works on it.
struct Harbour {
    folder: tempfile::TempDir,
}

/// How a command ended.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
    /// Its output, when it ended well.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!(self.code, 0, "out: {}\nerr: {}", self.out, self.err);
        self.out
    }
    #[track_caller]
    fn json(self) -> Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// What it complained of, when it ended with `code`.
    #[track_caller]
    fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        self.err
    }
}

impl Harbour {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The binary with nothing of this process's environment.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.env_clear().env("LONGSHORE_STATE_DIR", self.path()).env("LONGSHORE_CONFIG", "");
        // However full the disk of the machine that runs the tests is.
        command.env("LONGSHORE_WORKER__DISK_HIGH_WATER", "1");
        command.env("COLUMNS", "100").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Submits a task that needs no engine, and says its id.
    fn ping(&self, args: &str, more: &[&str]) -> String {
        let file =
            self.file("ping.json", &format!("{{\"v\": 1, \"task\": \"longshore.ping\", \"args\": {args}}}"));
        let submit = ["submit", "--file", file.to_str().unwrap()];
        self.run(&[&submit[..], more].concat()).good().trim().to_owned()
    }

    /// A worker on this state folder, once it takes tasks.
    fn worker(&self, args: &[&str]) -> Worker {
        Worker::ready(self.command(&[&["worker", "--name", "quay"], args].concat()))
    }

    /// The broker, opened in this process.
    async fn broker(&self) -> Broker {
        let url = BrokerUrl::sqlite(&self.path().join("longshore.db"));
        let options = OpenOptions {
            queues: vec!["default".parse().unwrap()],
            worker: "test".to_owned(),
            incarnation: "1".to_owned(),
            lease: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            event_age: Duration::from_secs(3_600),
            event_count: 1_000,
        };
        longshore::broker::open(&url, &options).await.unwrap()
    }
}

/// A running worker; dropping it ends it.
struct Worker {
    child: Child,
}

impl Worker {
    /// Starts it and waits until it takes tasks.
    fn ready(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        let mut worker = Self { child };
        if !line.contains("ready") {
            worker.child.kill().unwrap();
            let output = worker.child.wait_with_output_of();
            panic!("not ready: {line}{output}");
        }
        worker
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
    /// Asks it to end and says with which code it did.
    fn end(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a child said on standard error until its end.
trait LastWords {
    fn wait_with_output_of(&mut self) -> String;
}

impl LastWords for Child {
    fn wait_with_output_of(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut err) = self.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut err, &mut text);
        }
        text
    }
}
