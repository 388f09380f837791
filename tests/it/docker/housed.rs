//! A worker that itself runs in a container, with the engine's socket: its paths are the host's, or are mapped to them, and
//! its tasks are on its network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::docker::{clean_up, docker, engine, try_docker};
use crate::support::poll::eventually;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A worker in a container, on a network of its own with one neighbour; dropping it removes all three.
struct Housed {
    folder: tempfile::TempDir,
    /// Where the worker sees that folder.
    inside: PathBuf,
    name: String,
}

impl Housed {
    /// Starts it; it sees its folder under the host's own path, or as `inside`.
    async fn start(inside: Option<&str>) -> Housed {
        engine().await;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let inside = inside.map_or_else(|| folder.path().to_owned(), PathBuf::from);
        let housed = Housed { folder, inside, name: format!("longshore-test-{}", uuid::Uuid::now_v7()) };
        let name = housed.name.as_str();
        docker(&["network", "create", name]).await;
        docker(&[
            "run",
            "--detach",
            "--network",
            name,
            "--name",
            &housed.neighbour(),
            "busybox:latest",
            "sleep",
            "600",
        ])
        .await;
        let host = housed.folder.path().display();
        let (shared, inside) = (format!("{host}:{}", housed.inside.display()), housed.inside.display());
        let (work, state) = (format!("TMPDIR={inside}"), format!("LONGSHORE_STATE_DIR={inside}/state"));
        let program = format!("{}:/usr/local/bin/longshore:ro", env!("CARGO_BIN_EXE_longshore"));
        let socket = format!("{}:/var/run/docker.sock", engine_socket());
        let mut args = vec!["run", "--detach", "--network", name, "--name", name];
        // The libraries of this machine: the image has none.
        for volume in [&shared, &program, &socket, "/lib:/lib:ro", "/lib64:/lib64:ro"] {
            args.extend(["--volume", volume]);
        }
        for variable in [work.as_str(), &state, "LONGSHORE_CONFIG=", "LONGSHORE_WORKER__DISK_HIGH_WATER=1"] {
            args.extend(["--env", variable]);
        }
        args.extend(["busybox:latest", "longshore", "worker", "--name", "housed"]);
        docker(&args).await;
        eventually(READY_WITHIN, "the housed worker is ready", async || {
            housed.said().await.contains("ready").then_some(())
        })
        .await;
        housed
    }

    fn neighbour(&self) -> String {
        format!("{}-pier", self.name)
    }

    /// All that the worker printed and logged.
    async fn said(&self) -> String {
        let both = tokio::process::Command::new("docker").args(["logs", &self.name]).output().await;
        let both = both.expect("docker can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        text(&both.stdout) + &text(&both.stderr)
    }

    /// Submits a task from a second process in the worker's container, waits, and returns what was printed.
    async fn run(&self, task: &serde_json::Value) -> String {
        std::fs::write(self.folder.path().join("task.json"), task.to_string())
            .expect("the folder can be written");
        let file = self.inside.join("task.json").display().to_string();
        let submit = ["exec", &self.name, "longshore", "submit", "--wait", "--logs", "--file", &file];
        match try_docker(&submit).await {
            Ok(printed) => printed,
            Err(error) => panic!("{error}\nthe worker:\n{}", self.said().await),
        }
    }
}

impl Drop for Housed {
    fn drop(&mut self) {
        clean_up(&["rm", "--force", "--volumes", &self.name, &self.neighbour()]);
        clean_up(&["network", "rm", &self.name]);
    }
}

/// The socket of the engine that the tests talk to.
fn engine_socket() -> String {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").to_owned()
}

/// Writes to a pipe of the worker's and to a volume of it, and looks for the neighbour by its name.
fn task(neighbour: &str) -> serde_json::Value {
    let script = format!(
        "echo through the pipe >$0; echo kept in the volume >$1; cat $1; nslookup {neighbour} >/dev/null && echo found"
    );
    let pipe = json!({"$": "NamedOutputPipe", "name": "out"});
    let stream = json!({"$": "Connect", "input": pipe, "output": {"$": "HostStdOut"}});
    let volume = json!({"$": "VolumePath", "filename": "kept"});
    json!({"v": 1, "task": "docker_run", "args": {
        "image": "busybox:latest", "pull": "never", "entrypoint": ["sh"],
        "container_args": ["-c", script, stream, volume],
    }})
}

async fn works(housed: &Housed) {
    let printed = housed.run(&task(&housed.neighbour())).await;
    for line in ["kept in the volume", "found", "succeeded"] {
        assert!(printed.contains(line), "{line:?} is not in: {printed}\n{}", housed.said().await);
    }
    // The worker's standard output, which the pipe is connected to.
    assert!(housed.said().await.contains("through the pipe"), "{}", housed.said().await);
    let attempts = attempts_in(housed.folder.path());
    assert!(attempts.is_empty(), "what the task needed is left behind: {attempts:?}");
}

/// What is left in the folders that the worker makes for attempts.
fn attempts_in(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let own = ["state", "task.json"].map(|name| folder.join(name));
    list(folder).into_iter().filter(|path| !own.contains(path)).flat_map(|path| list(&path)).collect()
}

#[tokio::test]
async fn a_worker_in_a_container_that_shares_the_hosts_paths_runs_tasks_on_its_network() {
    works(&Housed::start(None).await).await;
}

#[tokio::test]
async fn a_worker_in_a_container_with_paths_of_its_own_has_them_mapped_to_the_hosts() {
    works(&Housed::start(Some("/quay")).await).await;
}
