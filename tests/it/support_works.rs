//! The test support itself: what the other suites stand on is shown to hold here first.

use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::support::docker::{containers_labelled, docker, engine, try_docker};
use crate::support::image::Image;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::process::{Server, free_port};
use crate::support::registry::Registry;
use crate::support::stalling_registry::{Stall, StallingRegistry};

#[tokio::test]
async fn the_engine_answers_and_runs_busybox() {
    engine().await;
    let said = docker(&["run", "--rm", "busybox:latest", "sh", "-c", "echo hello; id -u; ls -ld /tmp"]).await;
    assert!(said.starts_with("hello\n0\ndrwxrwxrwt"), "{said}");
}

#[tokio::test]
async fn containers_are_found_by_their_label() {
    engine().await;
    let label = format!("longshore.task={}", uuid::Uuid::now_v7());
    assert!(containers_labelled(&label).await.is_empty());
    let id = docker(&["create", "--label", &label, "busybox:latest", "true"]).await;
    let found = containers_labelled(&label).await;
    docker(&["rm", &id]).await;
    assert_eq!(found, [id]);
}

#[tokio::test]
async fn an_image_has_what_it_was_made_with_and_goes_with_its_guard() {
    let changes = [
        r"LABEL com.nvidia.volumes.needed=nvidia_driver",
        r#"ENTRYPOINT ["echo"]"#,
        "USER nobody",
        "ENV GREETING=hi",
    ];
    let image = Image::from_busybox(&changes).await;
    let name = image.name().to_owned();
    let format = r#"{{index .Config.Labels "com.nvidia.volumes.needed"}} {{.Config.Entrypoint}} {{.Config.User}} {{.Config.Env}}"#;
    let seen = docker(&["image", "inspect", "--format", format, &name]).await;
    assert!(seen.starts_with("nvidia_driver [echo] nobody ["), "{seen}");
    assert!(seen.contains("GREETING=hi"), "{seen}");

    drop(image);
    assert!(try_docker(&["image", "inspect", &name]).await.is_err(), "{name} is still there");
}

#[tokio::test]
async fn what_is_pushed_to_the_registry_is_pulled_from_it() {
    let content = uuid::Uuid::now_v7().to_string();
    let registry = Registry::open().await;
    let reference = {
        let image = Image::with_content(content.as_bytes()).await;
        registry.push(image.name(), "tool:1").await
    };
    assert!(try_docker(&["image", "inspect", &reference]).await.is_err(), "{reference} was never gone");

    docker(&["pull", "--quiet", &reference]).await;
    assert_eq!(docker(&["run", "--rm", &reference, "cat", "/content"]).await, content);

    drop(registry);
    assert!(try_docker(&["image", "inspect", &reference]).await.is_err(), "{reference} was left behind");
}

#[tokio::test]
async fn a_registry_with_a_login_refuses_those_without_it() {
    let registry = Registry::with_login("docker", "a worker").await;
    let reference = registry.push("busybox:latest", "private:1").await;
    assert_eq!(reference, registry.reference("private:1"));

    let refused = try_docker(&["pull", "--quiet", &reference]).await.unwrap_err();
    assert!(refused.contains("no basic auth credentials"), "{refused}");
    let config = registry.docker_config().to_str().unwrap();
    docker(&["--config", config, "pull", "--quiet", &reference]).await;
}

#[tokio::test]
async fn a_pull_from_the_stalling_registry_hangs_where_it_was_told_to() {
    engine().await;
    for stall in [Stall::Manifest, Stall::Layer, Stall::Drip] {
        let mut registry = StallingRegistry::start(stall).await;
        let reference = registry.reference("slow:1");
        let mut pull = tokio::process::Command::new("docker")
            .args(["pull", "--quiet", &reference])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        registry.stalled().await;
        let ended = tokio::time::timeout(Duration::from_millis(500), pull.wait()).await;
        assert!(ended.is_err(), "the pull ended by itself: {ended:?}");
    }
}

#[tokio::test]
async fn a_server_is_ready_when_it_starts_and_gone_when_its_guard_is() {
    let (server, port, _folder) = idle_server().await;
    let pid = server.pid();
    assert!(kill(pid, None).is_ok());

    drop(server);
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
}

#[tokio::test]
async fn a_server_dies_with_the_test_that_did_not_clean_up() {
    let test = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (server, ..) = runtime.block_on(idle_server());
        let pid = server.pid();
        std::mem::forget(server);
        pid
    });
    let pid = test.join().unwrap();
    // Nobody waits for it, so it stays in the table of processes, as a zombie.
    eventually(Duration::from_secs(5), "the server is dead", async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.contains("State:\tZ").then_some(())
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "no-such-option")]
async fn a_server_that_does_not_start_fails_the_test_with_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo unknown: --no-such-option; exit 1"]);
    Server::start("refusing", &command, folder.path(), free_port()).await;
}

async fn idle_server() -> (Server, u16, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let file = folder.path().join("registry.yml");
    let settings =
        format!("{{version: 0.1, http: {{addr: '127.0.0.1:{port}'}}, storage: {{inmemory: {{}}}}}}");
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&file);
    (Server::start("listener", &command, folder.path(), port).await, port, folder)
}

#[tokio::test]
async fn free_ports_differ() {
    let ports: std::collections::HashSet<u16> = (0..50).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 50);
}

#[tokio::test]
async fn a_worker_takes_what_its_installation_submits_and_ends_when_asked() {
    let longshore = Longshore::with_settings("[worker]\nqueues = [\"default\", \"slow\"]\n");
    let mut worker = longshore.worker(&["--name", "quay-1"]).await;
    assert!(worker.out().starts_with("quay-1 is ready"), "{}", worker.out());
    assert!(worker.out().contains("slow"), "{}", worker.out());

    std::fs::write(longshore.folder().join("ping.json"), r#"{"v": 1, "task": "longshore.ping", "args": {}}"#)
        .unwrap();
    let said = longshore.ok(&["submit", "--wait", "--file", "ping.json"]).await;
    assert!(said.contains("succeeded"), "{said}");
    assert!(longshore.state().join("longshore.db").exists());

    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn a_command_that_fails_shows_how() {
    let said = Longshore::new().run(&["task", "show", "no-such-task"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    assert!(said.stderr.contains("no-such-task"), "{said:?}");
}

#[tokio::test]
async fn a_killed_worker_is_gone_at_once() {
    let longshore = Longshore::new();
    let mut worker = longshore.worker(&[]).await;
    let pid = worker.pid();
    worker.kill();
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    assert!(worker.ended().unwrap().code().is_none());
}
