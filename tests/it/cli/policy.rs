//! `policy`: what a task would be refused for, told without running it.

use serde_json::Value;

use super::{Harbour, Ran};

fn task(harbour: &Harbour, args: &str) -> String {
    let text = format!("{{\"v\": 1, \"id\": \"t1\", \"task\": \"docker_run\", \"args\": {args}}}");
    harbour.file("task.json", &text).to_str().unwrap().to_owned()
}

const PRIVILEGED: &str =
    r#"{"image": "busybox", "options": {"privileged": true}, "volumes": ["/etc:/mnt:ro"]}"#;

#[test]
fn a_task_that_asks_for_nothing_may_run() {
    let harbour = Harbour::new();
    let file = task(&harbour, r#"{"image": "busybox", "container_args": [{"$": "ProgressPipe"}]}"#);
    assert_eq!(harbour.run(&["policy", "test", &file]).good(), "it may run\n");
}

#[test]
fn every_violation_is_told_with_its_setting() {
    let harbour = Harbour::new();
    let file = task(&harbour, PRIVILEGED);
    insta::assert_snapshot!(harbour.run(&["policy", "test", &file]).bad(1));
    let told = harbour.run(&["--output", "json", "policy", "test", &file]).bad(1);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["error"]["kind"], "task_failed");
}

#[test]
fn an_auditing_policy_tells_and_lets_run_and_a_queue_may_have_rules_of_its_own() {
    let harbour = Harbour::new();
    let file = task(&harbour, PRIVILEGED);
    let mut command = harbour.command(&["policy", "test", &file]);
    let told = Ran::of(&command.env("LONGSHORE_POLICY__MODE", "audit").output().unwrap()).good();
    assert!(told.contains("policy.privileged") && told.ends_with("only audits\n"), "{told}");
    let settings = harbour.file("l.toml", "[policy.queue.trusted]\nprofile = \"open\"\n");
    let settings = settings.to_str().unwrap();
    let told = harbour.run(&["--config", settings, "policy", "test", "--queue", "trusted", &file]).good();
    assert_eq!(told, "it may run\n");
    harbour.run(&["--config", settings, "policy", "test", &file]).bad(1);
}

#[test]
fn the_rules_that_hold_are_listed_with_their_values() {
    let harbour = Harbour::new();
    let table = harbour.run(&["policy", "show"]).good();
    assert!(
        table.lines().any(|line| line.starts_with("policy.privileged ") && line.ends_with("false")),
        "{table}"
    );
    let rules = harbour.run(&["policy", "show", "--output", "json"]).json();
    assert_eq!(
        (&rules["profile"], &rules["rules"]["privileged"]),
        (&Value::from("standard"), &Value::from(false))
    );
    let mut command = harbour.command(&["policy", "show"]);
    let open = Ran::of(&command.env("LONGSHORE_POLICY__PROFILE", "open").output().unwrap());
    assert!(open.err.contains("policy.profile"), "{}", open.err);
    assert!(open.good().contains("true"));
}
