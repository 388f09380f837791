//! The examples that we hand out, files and commands: each is what it claims to be.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use longshore::task::envelope::{self, ContentType, Limits};

use crate::support::docker::engine;
use crate::support::process::tied_to_this_thread;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_example_task_decodes_and_keeps_its_meaning_when_written_again() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let body = std::fs::read(&path).unwrap();
        let decode = |body: &[u8]| envelope::decode(body, ContentType::Json, &Limits::default());
        let task = decode(&body).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(task.kind, "docker_run", "{}", path.display());
        let again = envelope::encode(&task, ContentType::Json);
        assert_eq!(decode(&again).unwrap(), task, "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0, "no example in {folder}");
}

/// What a reader does before the tour; `make test` runs in CI, `make demo` and what takes long on a machine of its own.
const PREPARATION: &[&str] =
    &["make demo", "make test", "make chaos", "cargo build --release", "export PATH="];

#[tokio::test]
async fn every_command_of_the_readme_does_what_it_says() {
    engine().await;
    let state = tempfile::tempdir().unwrap();
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let mut worker = None;
    let mut ran = 0;
    for command in commands(&readme) {
        if PREPARATION.iter().any(|known| command.starts_with(known)) {
            continue;
        }
        assert!(command.starts_with("longshore "), "the tour has a command of another kind: {command}");
        if command.starts_with("longshore worker") {
            worker = Some(Worker::start(&command, state.path()));
            continue;
        }
        let output = shell(&command, state.path()).output().unwrap();
        let code = output.status.code();
        // What doctor finds on this machine is not the tour's affair, as long as it looks.
        let is_good = code == Some(0) || command.ends_with("doctor") && code == Some(3);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            is_good && !(output.stdout.is_empty() && output.stderr.is_empty()),
            "{command} ended with {code:?}\n{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        ran += 1;
    }
    assert!(worker.is_some() && ran >= 12, "{ran} commands were found");
}

/// The indented lines, those that end in a backslash put together with the next.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        match commands.last_mut().filter(|_| goes_on) {
            Some(command) => {
                command.push('\n');
                command.push_str(line);
            }
            None => commands.push(line.to_owned()),
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// `command` in a shell that finds the binary first, with a state folder of its own.
fn shell(command: &str, state: &Path) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_longshore")).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(ROOT).stdin(Stdio::null());
    shell.env("PATH", format!("{folder}:{path}"));
    shell
        .env("LONGSHORE_STATE_DIR", state)
        .env("LONGSHORE_CONFIG", "")
        .env("LONGSHORE_WORKER__DISK_HIGH_WATER", "1");
    shell
}

/// The worker of the tour; dropping it ends it.
struct Worker(Child);

impl Worker {
    /// Starts it and waits until it prints its one line.
    fn start(command: &str, state: &Path) -> Worker {
        let mut command = tied_to_this_thread(&shell(&format!("exec {command}"), state));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let worker = Worker(child);
        assert!(line.contains("ready"), "{line}");
        // What tasks connect to the worker's standard output is read, or they would stand still.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
