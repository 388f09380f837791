//! Real Celery programs on a test's Redis (`tests/peer/celery/kombu_redis.py`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const WITHIN: Duration = Duration::from_secs(90);

async fn python() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let installed = Command::new(tests.join("peer/celery/install")).arg("redis").status().await.unwrap();
    assert!(installed.success());
    tests.join(".cache/celery-redis/bin/python")
}

async fn command(broker: &str, args: &[&str]) -> Command {
    let mut command = Command::new(python().await);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/celery/kombu_redis.py"));
    command.arg(broker).args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end; what it printed.
pub(super) async fn peer(broker: &str, args: &[&str]) -> Value {
    let running = command(broker, args).await.output();
    let output = tokio::time::timeout(WITHIN, running).await.expect("the peer ends").unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A Celery worker on `queue`, once it is ready; it ends when it is dropped.
pub(super) async fn worker(broker: &str, queue: &str) -> Child {
    let mut worker = command(broker, &["work", queue]).await.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            // The banner ends with the queues.
            if line.contains("key=") {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(WITHIN, ready).await.expect("the worker starts"), "the worker ended");
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    worker
}
