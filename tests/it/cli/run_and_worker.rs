//! `worker` from its first line to its last, and `run` as a replacement of `docker run`.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Harbour;
use crate::support::docker::engine;

#[test]
fn a_worker_says_that_it_is_ready_and_ends_well_when_asked() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let harbour = Harbour::new();
        let mut worker = harbour.worker(&["--queue", "a", "--queue", "b", "--concurrency", "3"]);
        let told = harbour.run(&["doctor", "--quick"]).good();
        assert!(told.contains("1 live, 0 of 3 slots taken"), "{told}");
        worker.signal(signal);
        assert_eq!(worker.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_worker_whose_flags_are_wrong_says_which() {
    let harbour = Harbour::new();
    let told = harbour.run(&["worker", "--drain-timeout", "soon"]).bad(2);
    assert!(told.contains("--drain-timeout") && told.contains("soon"), "{told}");
    let told = harbour.run(&["worker", "--queue", "a b"]).bad(2);
    assert!(told.contains("a b"), "{told}");
}

#[test]
fn a_run_that_cannot_be_meant_is_refused() {
    let harbour = Harbour::new();
    assert!(harbour.run(&["run"]).bad(2).contains("IMAGE"));
    assert!(harbour.run(&["run", "--volume", "x", "busybox"]).bad(2).contains("HOST:CONTAINER"));
}

#[tokio::test]
async fn a_run_passes_output_and_exit_code_of_its_container_on() {
    engine().await;
    let harbour = Harbour::new();
    let script = "echo hi; echo oops >&2; exit 7";
    let ran = harbour.run(&["run", "--env", "A=b", "--pull", "never", "busybox:latest", "sh", "-c", script]);
    assert_eq!((ran.code, ran.out.as_str()), (7, "hi\n"), "{}", ran.err);
    assert!(ran.err.contains("oops\n"), "{}", ran.err);
    assert_eq!(harbour.run(&["run", "busybox:latest", "true"]).code, 0);
}

#[tokio::test]
async fn a_run_without_a_container_ends_as_docker_run_does() {
    engine().await;
    let harbour = Harbour::new();
    let missing = harbour.run(&["run", "--pull", "never", "nowhere.invalid/no/image:1", "true"]);
    assert!(missing.bad(125).contains("nowhere.invalid/no/image:1"));
    assert!(
        harbour.run(&["run", "busybox:latest", "/no/such/program"]).bad(127).contains("/no/such/program")
    );
    assert!(harbour.run(&["run", "busybox:latest", "/etc"]).bad(126).contains("/etc"));
}

#[tokio::test]
async fn a_run_tells_its_events_to_programs() {
    engine().await;
    let harbour = Harbour::new();
    let out = harbour.run(&["run", "--json", "busybox:latest", "echo", "hi"]).good();
    let kinds: Vec<String> = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds.last().map(String::as_str), Some("succeeded"), "{kinds:?}");
    assert!(kinds.iter().any(|kind| kind == "log"), "{kinds:?}");
}

#[tokio::test]
async fn doctor_finds_the_engine_and_tells_what_to_do_without_one() {
    engine().await;
    let harbour = Harbour::new();
    assert!(harbour.run(&["doctor"]).good().contains("engine"));
    let mut command = harbour.command(&["doctor"]);
    let ran = super::Ran::of(&command.env("DOCKER_HOST", "unix:///nowhere/docker.sock").output().unwrap());
    assert_eq!(ran.code, 3);
    assert!(
        ran.out.contains("/nowhere/docker.sock") && ran.out.contains("start Docker or Podman"),
        "{}",
        ran.out
    );
}
