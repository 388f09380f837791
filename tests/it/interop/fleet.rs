//! A Python worker and a longshore worker on one queue.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::site::{Carrier, SUCCESS, Site};
use crate::support::poll::eventually;
use crate::support::process::tied_to_this_thread;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// Enough for both to get some.
const TASKS: usize = 24;

/// `girder_worker` itself; dropping it kills all its processes.
struct Python {
    child: Child,
    log: PathBuf,
}

impl Python {
    async fn start(carrier: &Carrier, folder: &Path) -> Python {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/girder/bin/python");
        let (broker, backend) = carrier.of_girder();
        let log = folder.join("python-worker.log");
        let mut command = Command::new(python);
        // One process of its own that takes one task at a time, and none ahead.
        command.args(["-m", "celery", "-A", "girder_worker.app", "worker", "--pool=solo", "-l", "info"]);
        command.args(["-Ofair", "--prefetch-multiplier=1"]).env("C_FORCE_ROOT", "1");
        command.env("GIRDER_WORKER_BROKER", broker).env("GIRDER_WORKER_BACKEND", backend);
        command.env("TMPDIR", folder).current_dir(folder);
        let out = File::create(&log).unwrap();
        let child = tied_to_this_thread(&command)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let worker = Python { child, log };
        eventually(READY_WITHIN, "the Python worker is ready", async || {
            worker.said().contains(" ready.").then_some(())
        })
        .await;
        worker
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the Python worker's log:\n{}", self.said());
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both take what they can, and every task runs once.
pub(super) async fn shares_a_queue(carrier: Carrier) {
    let site = Site::start(carrier).await;
    let folder = tempfile::tempdir().unwrap();
    let python = Python::start(&site.carrier, folder.path()).await;
    let ledger = site.host_folder("ledger", &[]);
    let mut sent = Vec::new();
    for n in 0..TASKS {
        sent.push(site.send("ledger", json!({"host": ledger, "name": format!("task-{n}")})).await);
    }
    let mut by_python = 0;
    for sent in &sent {
        site.ended(sent, SUCCESS).await;
        by_python += usize::from(python.said().contains(&format!("[{}] received", sent.task)));
    }
    assert!((1..TASKS).contains(&by_python), "{by_python} of {TASKS} went to the Python worker");
    let mut told: Vec<String> =
        std::fs::read_to_string(ledger.join("ran")).unwrap().lines().map(str::to_owned).collect();
    told.sort();
    let mut expected: Vec<String> = (0..TASKS).map(|n| format!("task-{n}")).collect();
    expected.sort();
    assert_eq!(told, expected, "every task ran once");
}
