//! Servers that are too slow to start for every test: one per test run, found by all its processes.
//!
//! # Decisions
//! - The first test that asks starts the server, under a lock; what the others need to know stands in a file beside it.
//! - No single test owns it, so it ends with the runner's process (`shared-server`), however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::poll::eventually;

/// The run's claim on one kind of server; holding it keeps the other tests of the run out.
pub(crate) struct Shared {
    folder: PathBuf,
    _lock: File,
}

impl Shared {
    /// Waits for the other tests that hold this name.
    pub(crate) fn claim(name: &str) -> Shared {
        let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
        let folder = std::env::temp_dir().join(format!("longshore-tests-{run}")).join(name);
        std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
        let lock = File::create(folder.with_extension("lock")).expect("the run's folder can be written");
        lock.lock().expect("a file can be locked");
        Shared { folder, _lock: lock }
    }

    /// The server's own folder, removed with it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was last noted about the running server; nothing means that it must be started.
    pub(crate) fn noted<T: DeserializeOwned>(&self) -> Option<T> {
        let note = std::fs::read(self.folder.join("note.json")).ok()?;
        Some(serde_json::from_slice(&note).expect("invariant: written by `note`"))
    }

    /// Notes what the next test needs to know.
    pub(crate) fn note<T: Serialize>(&self, note: &T) {
        let note = serde_json::to_vec(note).expect("invariant: a note is plain data");
        std::fs::write(self.folder.join("note.json"), note).expect("the server's folder can be written");
    }

    /// Starts `program FOLDER PORTS…` (a path within `tests`) and waits until the first of its ports accepts.
    pub(crate) async fn start(&self, program: &str, ports: &[u16], ready_within: Duration) {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let log = self.folder.join("server.log");
        let output = File::create(&log).expect("the server's log can be made");
        // A session of its own: the runner ends the process group of a test that is over.
        let mut server = Command::new("setsid")
            .arg(tests.join("it/support/shared-server"))
            .arg(runner().to_string())
            .arg(&self.folder)
            .arg(tests.join(program))
            .arg(&self.folder)
            .args(ports.iter().map(u16::to_string))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .expect("setsid can be started");
        eventually(ready_within, &format!("{program} accepts on port {}", ports[0]), async || {
            let accepted = TcpStream::connect(("127.0.0.1", ports[0])).await.is_ok();
            // Read first: the log goes with the server.
            let last_words = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = server.try_wait().expect("a child can be asked for its state");
            assert!(ended.is_none(), "{program} ended; run scripts/test-servers? It said:\n{last_words}");
            accepted.then_some(())
        })
        .await;
    }
}

/// The process whose end is the end of the test run: nextest starts each test itself, `cargo test` runs all in one.
fn runner() -> nix::unistd::Pid {
    if std::env::var_os("NEXTEST_RUN_ID").is_some() { nix::unistd::getppid() } else { nix::unistd::getpid() }
}
