//! `submit`, and what it refuses.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use super::{Harbour, Ran};

#[test]
fn a_submitted_task_is_queued_as_its_flags_say() {
    let harbour = Harbour::new();
    let args = [
        "submit",
        "--queue",
        "nightly",
        "--priority",
        "7",
        "--label",
        "study=a",
        "--id",
        "t1",
        "--cpus",
        "2",
        "busybox:latest",
        "echo",
        "--env",
    ];
    assert_eq!(harbour.run(&args).good(), "t1\n");
    let queues = harbour.run(&["queue", "list", "--output", "json"]).json();
    assert_eq!((&queues["queues"][0]["name"], &queues["queues"][0]["ready"]), (&json!("nightly"), &json!(1)));
    let task = harbour.run(&["task", "show", "t1", "--output", "json"]).json();
    assert_eq!((&task["status"], &task["priority"]), (&json!("queued"), &json!(7)));
    let event = harbour.run(&["events", "--task", "t1"]).json();
    assert_eq!(
        (&event["type"], &event["source"]),
        (&json!("longshore.task.queued.v1"), &json!("longshore/nightly"))
    );
}

#[test]
fn a_file_or_standard_input_holds_a_whole_task() {
    let harbour = Harbour::new();
    let text = r#"{"v": 1, "id": "t2", "task": "docker_run", "args": {"image": "busybox"}}"#;
    let file = harbour.file("task.json", text);
    assert_eq!(harbour.run(&["submit", "--file", file.to_str().unwrap()]).good(), "t2\n");
    let mut command = harbour.command(&["submit", "--file", "-", "--id", "t3"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert_eq!(Ran::of(&child.wait_with_output().unwrap()).good(), "t3\n");
}

#[test]
fn many_copies_have_ids_of_their_own() {
    let harbour = Harbour::new();
    let told = harbour.run(&["submit", "--count", "3", "--output", "json", "busybox"]).json();
    let mut ids: Vec<&str> =
        told["submitted"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(harbour.run(&["submit", "--count", "2", "--id", "x", "busybox"]).bad(2).contains("--count"));
}

#[test]
fn one_dedup_key_is_one_task() {
    let harbour = Harbour::new();
    harbour.run(&["submit", "--dedup-key", "k", "busybox"]).good();
    let again = harbour.run(&["submit", "--dedup-key", "k", "busybox"]);
    assert!(again.err.contains("submitted before"), "{}", again.err);
    again.good();
    let queues = harbour.run(&["queue", "list", "--output", "json"]).json();
    assert_eq!(queues["queues"][0]["ready"], 1);
}

#[test]
fn what_no_worker_could_run_is_refused_before_it_is_queued() {
    let harbour = Harbour::new();
    let told = [
        &["submit", "busy box"][..],
        &["submit"],
        &["submit", "--volume", "data", "busybox"],
        &["submit", "--option", "netwrok=none", "busybox"],
        &["submit", "--priority", "12", "busybox"],
        &["submit", "--memory", "much", "busybox"],
        &["submit", "--pull", "sometimes", "busybox"],
        &["submit", "--file", "/nowhere/task.json"],
    ]
    .map(|args| harbour.run(args).bad(2));
    insta::assert_snapshot!(told.join("--\n"));
    assert!(harbour.run(&["queue", "list"]).good().is_empty());
}

#[test]
fn errors_are_json_when_programs_read_them() {
    let harbour = Harbour::new();
    let told = harbour.run(&["submit", "--volume", "data", "busybox", "--output", "json"]);
    // Behind the image everything is the container's.
    assert!(told.bad(2).starts_with("longshore: "));
    let told = harbour.run(&["submit", "--output", "json", "--volume", "data", "busybox"]).bad(2);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["error"]["kind"], &told["error"]["exit_code"]), (&json!("usage"), &json!(2)));
    assert!(told["error"]["message"].as_str().unwrap().contains("--volume data"));
}
