//! The Docker engine as the tests see it, through the `docker` command: a witness that shares no code with longshore.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// Makes sure that an engine answers and has `busybox:latest`; fails with the remedy where none does.
pub(crate) async fn engine() {
    static READY: OnceCell<()> = OnceCell::const_new();
    READY
        .get_or_init(async || {
            if let Err(error) = try_docker(&["version", "--format", "{{.Server.Version}}"]).await {
                panic!("no Docker engine answers, run scripts/docker-engine: {error}");
            }
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/busybox-image");
            if let Err(error) = answer(Command::new(script)).await {
                panic!("busybox:latest is missing and cannot be made: {error}");
            }
        })
        .await;
}

/// Runs `docker` and returns what it printed, without the line's end; panics with what it complained about.
pub(crate) async fn docker(args: &[&str]) -> String {
    match try_docker(args).await {
        Ok(output) => output,
        Err(error) => panic!("docker {}: {error}", args.join(" ")),
    }
}

/// Runs `docker` and returns what it printed, or what it complained about.
pub(crate) async fn try_docker(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("docker");
    command.args(args);
    answer(command).await
}

/// The ids of all containers, running or not, that carry a label (`key` or `key=value`).
pub(crate) async fn containers_labelled(label: &str) -> Vec<String> {
    let filter = format!("label={label}");
    let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await;
    ids.lines().map(str::to_owned).collect()
}

/// Runs `docker` from a destructor: waits for it and ignores what it says, since cleaning up cannot fail a test.
pub(crate) fn clean_up(args: &[&str]) -> String {
    let output = std::process::Command::new("docker").args(args).stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

async fn answer(mut command: Command) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER_WITHIN, command.output())
        .await
        .map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}
