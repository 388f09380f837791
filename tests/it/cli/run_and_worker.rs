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
        // It is ready before the others have heard of it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let told = harbour.run(&["worker", "list"]);
            if told.out.contains("quay") && told.out.contains("0/3") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{}", told.good());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        worker.signal(signal);
        assert_eq!(worker.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_worker_tells_its_service_manager_when_it_is_ready_and_when_it_drains() {
    let harbour = Harbour::new();
    let address = harbour.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut command = harbour.command(&["worker", "--queue", "a", "--concurrency", "3"]);
    command.env("NOTIFY_SOCKET", &address).stdout(std::process::Stdio::null());
    let worker = super::Worker { child: command.spawn().unwrap() };
    let heard = || {
        let mut buffer = [0; 1_024];
        let bytes = manager.recv(&mut buffer).expect("the worker tells something");
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    };
    assert_eq!(heard().trim_end(), "READY=1\nSTATUS=3 slots, queues a");
    worker.signal(Signal::SIGTERM);
    assert!(heard().starts_with("STOPPING=1\n"));
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

#[test]
fn a_worker_takes_from_every_broker_and_queue_that_it_names() {
    let harbour = Harbour::new();
    let [near, far] =
        ["near.db", "far.db"].map(|name| format!("sqlite://{}", harbour.path().join(name).display()));
    let _worker =
        harbour.worker(&["--broker", &near, "--broker", &far, "--queue", "default", "--queue", "nightly"]);
    for (broker, queue) in [(&near, "default"), (&near, "nightly"), (&far, "default"), (&far, "nightly")] {
        let id = harbour.ping("{}", &["--broker", broker, "--queue", queue]);
        // Records are kept with the first broker unless told otherwise.
        let wait = ["--broker", broker, "--store", &near, "task", "wait", "--timeout", "20s", &id];
        assert_eq!(harbour.run(&wait).good(), format!("{id}  succeeded\n"), "{queue} of {broker}");
    }
}

#[tokio::test]
async fn a_full_disk_pauses_a_worker_that_tells_of_it_and_stops_no_run() {
    engine().await;
    let harbour = Harbour::new();
    let full = |args: &[&str]| {
        let mut command = harbour.command(args);
        command.env("LONGSHORE_WORKER__DISK_HIGH_WATER", "0.000001");
        command
    };
    let ran = super::Ran::of(&full(&["run", "busybox:latest", "echo", "hi"]).output().unwrap());
    assert_eq!((ran.code, ran.out.as_str()), (0, "hi\n"), "{}", ran.err);
    let _worker = super::Worker::ready(full(&["worker", "--name", "quay"]));
    let id = harbour.ping("{}", &[]);
    let told = harbour.run(&["task", "explain", &id]).good();
    assert!(told.contains("every worker of default is short of disk and takes nothing new"), "{told}");
}

#[test]
fn what_a_rule_says_of_an_image_counts_unless_the_task_says_otherwise() {
    let harbour = Harbour::new();
    let settings =
        "[[rules]]\nimage = \"*/segment*\"\ncustom = { scanner = 1 }\n[worker]\nunfit_timeout = \"0s\"\n";
    let file = harbour.file("rules.toml", settings);
    let config = ["--config", file.to_str().unwrap()];
    let run = |args: &[&str]| harbour.run(&[&config[..], args].concat());
    let submit =
        |image: &str, more: &[&str]| run(&[&["submit"], more, &[image]].concat()).good().trim().to_owned();
    let queued = submit("lab/segment:1", &["--queue", "elsewhere"]);
    let _worker = harbour.worker(&config);
    let told = run(&["task", "explain", &queued]).good();
    assert!(told.contains("the task needs 1 of scanner (here 0)"), "{told}");
    let ruled = submit("lab/segment:1", &[]);
    let ran = run(&["task", "wait", "--timeout", "20s", &ruled]);
    assert!(ran.out.contains("the task needs 1 of scanner (here 0)"), "{}{}", ran.out, ran.err);
    // Its own word outweighs the rule's.
    let own = submit("lab/segment:1", &["--resource", "scanner=7"]);
    let ran = run(&["task", "wait", "--timeout", "20s", &own]);
    assert!(ran.out.contains("the task needs 7 of scanner (here 0)"), "{}{}", ran.out, ran.err);
}
