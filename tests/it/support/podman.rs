//! Podman as a child of a test: its API on a socket of its own, its images and containers in a folder of their own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::docker::{docker, engine};
use super::poll::eventually;
use super::process::tied_to_this_thread;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running Podman with `busybox:latest`; dropping it ends it.
pub(crate) struct Podman {
    folder: tempfile::TempDir,
    service: Child,
}

impl Podman {
    /// Starts it and gives it the busybox of the local engine.
    pub(crate) async fn start() -> Podman {
        engine().await;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let at = |name: &str| folder.path().join(name).display().to_string();
        // Of the drivers, vfs alone needs nothing of the file system below and leaves no mounts behind.
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            at("graph"),
            at("run")
        );
        // Its usual limits are higher than a machine may let it set them, and its usual runtime (crun) refuses a machine with
        // control groups of both versions.
        let containers = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n";
        std::fs::write(at("storage.conf"), storage).expect("the folder can be written");
        std::fs::write(at("containers.conf"), containers).expect("the folder can be written");
        let archive = at("busybox.tar");
        docker(&["save", "--output", &archive, "busybox:latest"]).await;
        run(folder.path(), &["load", "--input", &archive]);
        run(folder.path(), &["tag", "localhost/busybox:latest", "docker.io/library/busybox:latest"]);

        let log = File::create(folder.path().join("service.log")).expect("the folder can be written");
        let mut service = podman(folder.path(), &["system", "service", "--time", "0"]);
        service.arg(format!("unix://{}", at("podman.sock")));
        let service = tied_to_this_thread(&service)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("podman can be started; run scripts/test-servers");
        let podman = Podman { folder, service };
        eventually(READY_WITHIN, "Podman accepts on its socket", async || {
            tokio::net::UnixStream::connect(podman.socket()).await.ok()
        })
        .await;
        podman
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The ids of all its containers, running or not.
    pub(crate) fn containers(&self) -> Vec<String> {
        let told = run(self.folder.path(), &["ps", "--all", "--quiet", "--no-trunc"]);
        told.lines().map(str::to_owned).collect()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("podman.sock")
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("service.log")).unwrap_or_default();
            eprintln!("the last words of podman:\n{log}");
        }
        // What a failed test left would keep files open below the folder.
        let _ = podman(self.folder.path(), &["rm", "--all", "--force", "--time", "0"]).output();
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

fn podman(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.args(args);
    command.env("CONTAINERS_STORAGE_CONF", folder.join("storage.conf"));
    command.env("CONTAINERS_CONF", folder.join("containers.conf"));
    command
}

fn run(folder: &Path, args: &[&str]) -> String {
    let output = podman(folder, args).stdin(Stdio::null()).output();
    let output = output.expect("podman can be started; run scripts/test-servers");
    assert!(output.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
