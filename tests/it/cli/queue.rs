//! `queue` and `events`.

use serde_json::{Value, json};

use super::Harbour;

fn queues(harbour: &Harbour) -> Value {
    harbour.run(&["queue", "list", "--output", "json"]).json()["queues"].take()
}

#[test]
fn a_paused_queue_is_told_and_resumed() {
    let harbour = Harbour::new();
    harbour.run(&["submit", "--id", "t", "busybox"]).good();
    assert_eq!(harbour.run(&["queue", "pause", "default"]).good(), "default  is paused\n");
    assert_eq!(queues(&harbour)[0]["intake"], "paused");
    assert!(harbour.run(&["task", "explain", "t"]).good().contains("longshore queue resume default"));
    harbour.run(&["queue", "resume", "default"]).good();
    assert_eq!(queues(&harbour)[0]["intake"], "open");
}

#[test]
fn a_queue_is_purged_only_on_purpose() {
    let harbour = Harbour::new();
    harbour.run(&["submit", "--count", "2", "busybox"]).good();
    assert!(harbour.run(&["queue", "purge", "default"]).bad(2).contains("2 tasks"));
    assert_eq!(queues(&harbour)[0]["ready"], 2);
    let told = harbour.run(&["queue", "purge", "default", "--yes", "--output", "json"]).json();
    assert_eq!(told, json!({"queue": "default", "removed": 2}));
}

#[test]
fn events_are_chosen_by_task_queue_kind_and_time() {
    let harbour = Harbour::new();
    harbour.run(&["submit", "--id", "a", "busybox"]).good();
    harbour.run(&["submit", "--id", "b", "--queue", "other", "busybox"]).good();
    let subjects = |args: &[&str]| -> Vec<String> {
        let out = harbour.run(&[&["events"], args].concat()).good();
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["subject"].to_string()).collect()
    };
    assert_eq!(subjects(&[]), ["\"a\"", "\"b\""]);
    assert_eq!(subjects(&["--task", "a"]), ["\"a\""]);
    assert_eq!(subjects(&["--queue", "other"]), ["\"b\""]);
    assert_eq!(subjects(&["--kind", "failed"]), [""; 0]);
    assert_eq!(subjects(&["--since", "1h"]), ["\"a\"", "\"b\""]);
    assert_eq!(subjects(&["--since", "2099-01-01T00:00:00Z"]), [""; 0]);
    assert!(harbour.run(&["events", "--kind", "faild"]).bad(2).contains("failed"));
}

#[test]
fn who_stops_reading_ends_the_command_quietly() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let harbour = Harbour::new();
    harbour.run(&["submit", "--count", "2000", "busybox"]).good();
    let mut child =
        harbour.command(&["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
