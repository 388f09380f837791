//! `task …` with a worker that runs tasks which need no engine.

use std::process::Stdio;

use serde_json::{Value, json};

use super::{Harbour, Ran};

#[test]
fn a_wait_begun_before_any_worker_lives_ends_with_the_task() {
    let harbour = Harbour::new();
    let id = harbour.ping("{}", &[]);
    let mut command = harbour.command(&["task", "wait", "--progress", &id]);
    let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _worker = harbour.worker(&[]);
    let ran = Ran::of(&waiting.wait_with_output().unwrap());
    assert!(ran.err.contains("running by quay"), "{}", ran.err);
    assert_eq!(ran.good(), format!("{id}  succeeded\n"));
}

#[test]
fn the_exit_code_of_a_wait_tells_how_the_task_ended() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let good = harbour.ping("{}", &[]);
    assert_eq!(harbour.run(&["task", "wait", &good]).good(), format!("{good}  succeeded\n"));
    let bad = harbour.ping("{\"fail\": \"permanent\"}", &[]);
    let ran = harbour.run(&["task", "wait", &good, &bad]);
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    assert!(ran.out.contains(&format!("{bad}  failed: ")), "{}", ran.out);
    let slow = harbour.ping("{\"sleep\": \"1h\"}", &[]);
    assert!(harbour.run(&["task", "wait", "--timeout", "200ms", &slow]).bad(3).contains("explain"));
    assert!(harbour.run(&["task", "wait", "nobody"]).bad(2).contains("no task nobody"));
    let both = harbour.run(&["task", "wait", "--output", "json", &good, &bad]);
    assert_eq!(both.code, 1);
    let told: Value = serde_json::from_str(&both.out).unwrap();
    assert_eq!(
        (&told["tasks"][0]["status"], &told["tasks"][1]["status"]),
        (&json!("succeeded"), &json!("failed"))
    );
    assert!(!both.out.contains("envelope"), "records are shown without what was submitted");
}

#[test]
fn submitting_can_wait_and_fail_with_the_task() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let file =
        harbour.file("ping.json", r#"{"v": 1, "task": "longshore.ping", "args": {"fail": "permanent"}}"#);
    let ran = harbour.run(&["submit", "--wait", "--count", "2", "--file", file.to_str().unwrap()]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.out.matches("failed: ").count(), 2, "{}", ran.out);
}

#[test]
fn tasks_are_listed_newest_first_and_chosen_by_state_and_label() {
    let harbour = Harbour::new();
    let done = harbour.ping("{}", &["--label", "study=a"]);
    let worker = harbour.worker(&[]);
    harbour.run(&["task", "wait", &done]).good();
    assert_eq!(worker.end(), Some(0));
    let queued = harbour.ping("{}", &["--label", "study=b"]);
    let ids = |args: &[&str]| -> Vec<String> {
        let told = harbour.run(&[&["task", "list", "--output", "json"], args].concat()).json();
        told["tasks"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&[]), [queued.as_str(), done.as_str()]);
    assert_eq!(ids(&["--status", "queued"]), [queued.as_str()]);
    assert_eq!(ids(&["--status", "succeeded"]), [done.as_str()]);
    assert_eq!(ids(&["--label", "study=a"]), [done.as_str()]);
    assert_eq!(ids(&["--label", "study=b"]), [queued.as_str()]);
    assert_eq!(ids(&["--label", "study=b", "--status", "queued", "--queue", "default"]), [queued.as_str()]);
    assert_eq!(ids(&["--label", "study=b", "--label", "other=x"]), [""; 0]);
    assert_eq!(ids(&["--since", "1h"]), [queued.as_str(), done.as_str()]);
    assert_eq!(ids(&["--since", "2099-01-01T00:00:00Z"]), [""; 0]);
    assert_eq!(ids(&["--queue", "other"]), [""; 0]);
    assert_eq!(ids(&["--limit", "1"]), [queued.as_str()]);
    let shown = harbour.run(&["task", "show", "last", "--output", "json"]).json();
    assert_eq!(shown["id"], queued.as_str());
    assert_eq!((&shown["kind"], &shown["labels"]["study"]), (&json!("longshore.ping"), &json!("b")));
    let table = harbour.run(&["task", "list"]).good();
    assert!(table.starts_with("ID ") && table.contains("succeeded  default  longshore.ping"), "{table}");
}

#[test]
fn a_task_canceled_in_its_queue_never_starts() {
    let harbour = Harbour::new();
    let id = harbour.ping("{}", &[]);
    harbour.run(&["task", "cancel", "--reason", "not needed", &id]).good();
    assert!(harbour.run(&["task", "explain", &id]).good().contains("to be canceled (not needed)"));
    let _worker = harbour.worker(&[]);
    let ran = harbour.run(&["task", "wait", &id]);
    assert_eq!((ran.code, ran.out), (1, format!("{id}  canceled: not needed\n")));
    let shown = harbour.run(&["task", "show", &id, "--output", "json"]).json();
    assert_eq!((&shown["status"], &shown["times"]["started"]), (&json!("canceled"), &Value::Null));
    let again = harbour.run(&["task", "cancel", &id]);
    assert!(again.err.contains("had already been canceled"), "{}", again.err);
}

#[test]
fn a_running_task_is_canceled_and_waited_for() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let id = harbour.ping("{\"sleep\": \"1h\"}", &[]);
    let told = harbour.run(&["task", "cancel", "--wait", "--timeout", "20s", &id]).good();
    assert!(told.contains("canceled: canceled from the command line"), "{told}");
}

#[test]
fn a_failed_task_is_retried_in_a_new_life_and_waits_are_for_that_one() {
    let harbour = Harbour::new();
    let worker = harbour.worker(&[]);
    let id = harbour.ping("{\"fail\": \"permanent\"}", &[]);
    assert_eq!(harbour.run(&["task", "wait", &id]).code, 1);
    assert_eq!(worker.end(), Some(0));
    assert_eq!(harbour.run(&["task", "retry", &id]).good(), format!("{id}\n"));
    let shown = harbour.run(&["task", "show", &id, "--output", "json"]).json();
    assert_eq!(shown["status"], "queued");
    assert!(harbour.run(&["task", "wait", "--timeout", "200ms", &id]).bad(3).contains("not ended in time"));
    assert!(harbour.run(&["task", "retry", &id]).bad(2).contains("queued already"));
    let _worker = harbour.worker(&[]);
    assert_eq!(harbour.run(&["task", "wait", &id]).code, 1);
    let shown = harbour.run(&["task", "show", &id, "--output", "json"]).json();
    assert_eq!((&shown["generation"], &shown["attempts"]), (&json!(1), &json!(1)));
}

#[test]
fn a_task_that_succeeded_is_not_run_again() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let id = harbour.ping("{}", &[]);
    harbour.run(&["task", "wait", &id]).good();
    assert!(harbour.run(&["task", "retry", &id]).bad(2).contains("succeeded"));
    assert!(harbour.run(&["task", "explain", &id]).good().contains("it has ended"));
}

#[test]
fn logs_of_a_finished_task_end_by_themselves() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let id = harbour.ping("{\"progress\": 2}", &[]);
    harbour.run(&["task", "logs", "--follow", &id]).good();
    assert_eq!(harbour.run(&["task", "wait", "--timeout", "10s", &id]).good(), format!("{id}  succeeded\n"));
    harbour.run(&["task", "logs", &id]).good();
}

#[test]
fn a_wait_and_followed_logs_of_a_task_end_when_it_is_purged() {
    let harbour = Harbour::new();
    let id = harbour.ping("{}", &[]);
    let start =
        |args: &[&str]| harbour.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let waiting = [start(&["task", "wait", "--progress", &id]), start(&["task", "logs", "--follow", &id])];
    // Both have begun once the wait tells the event of the submission, or the purge comes first: then both say so at once.
    harbour.run(&["queue", "purge", "default", "--yes"]).good();
    for child in waiting {
        let ran = Ran::of(&child.wait_with_output().unwrap());
        let began_late = ran.code == 2 && ran.err.contains("was purged");
        assert!(began_late || ran.code == 3 && ran.err.contains("purged from its queue"), "{}", ran.err);
    }
}

#[test]
fn logs_show_every_attempt_in_its_order() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let file = harbour.file(
        "again.json",
        r#"{"v": 1, "task": "longshore.ping", "args": {"fail": "retryable"}, "retry": {"max_attempts": 3, "backoff": "10ms"}}"#,
    );
    let id = harbour.run(&["submit", "--file", file.to_str().unwrap()]).good().trim().to_owned();
    assert_eq!(harbour.run(&["task", "wait", &id]).code, 1);
    let told = harbour.run(&["task", "logs", &id]);
    let attempts: Vec<&str> = told.err.lines().filter(|line| line.starts_with("-- attempt")).collect();
    assert_eq!(attempts, ["-- attempt 2, by quay", "-- attempt 3, by quay"], "{}", told.err);
}

#[test]
fn a_task_is_compared_with_every_worker_that_lives() {
    let harbour = Harbour::new();
    let _worker = harbour.worker(&["--queue", "other", "--concurrency", "1"]);
    let file = harbour.file(
        "large.json",
        r#"{"v": 1, "task": "longshore.ping", "queue": "other", "resources": {"custom": {"licence": 2}}}"#,
    );
    let id = harbour.run(&["submit", "--file", file.to_str().unwrap()]).good().trim().to_owned();
    let here = harbour.ping("{}", &[]);
    let told = harbour.run(&["task", "explain", &here, "--output", "json"]).json();
    assert_eq!((&told["queue"], &told["workers"][0]["fits"]), (&json!("default"), &json!(false)));
    assert_eq!(told["workers"][0]["why_not"][0], "it fetches from other, not from default");
    assert!(told["reasons"][0].as_str().unwrap().contains("longshore worker --queue default"), "{told}");
    let told = harbour.run(&["task", "explain", &id, "--output", "json"]).json();
    assert_eq!(told["workers"][0]["why_not"][0], "the task needs 2 of licence (here 0)", "{told}");
    let told = harbour.run(&["task", "explain", &id]).good();
    assert!(
        told.contains("quay on ") && told.contains("cannot run it: the task needs 2 of licence"),
        "{told}"
    );
}
