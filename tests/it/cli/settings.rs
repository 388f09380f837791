//! `config`, `doctor`, and settings that are wrong.

use serde_json::{Value, json};

use super::Harbour;

#[test]
fn everything_wrong_with_the_settings_is_told_before_anything_is_done() {
    let harbour = Harbour::new();
    let file = harbour.file("longshore.toml", "[worker]\nconcurency = 4\nlease = \"soon\"\n");
    let file = file.to_str().unwrap();
    let mut command = harbour.command(&["--config", file, "task", "list"]);
    let told = super::Ran::of(&command.env("LONGSHORE_WORKER__NAM", "x").output().unwrap()).bad(2);
    insta::assert_snapshot!(told.replace(harbour.path().to_str().unwrap(), ""));
    let told = harbour.run(&["--output", "json", "--config", file, "config", "check"]).bad(2);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["error"]["kind"], "config");
}

#[test]
fn the_template_is_a_right_file() {
    let harbour = Harbour::new();
    let template = harbour.run(&["config", "default"]).good();
    let file = harbour.file("longshore.toml", &template);
    let file = file.to_str().unwrap();
    assert!(harbour.run(&["config", "check", file]).good().ends_with("is right\n"));
    let shown = harbour.run(&["--config", file, "config", "show", "--output", "json"]).json();
    assert_eq!(shown["origins"]["worker.lease"], file);
}

#[test]
fn settings_are_shown_with_where_they_came_from() {
    let harbour = Harbour::new();
    let file = harbour.file("longshore.toml", "[worker]\nlease = \"30s\"\n");
    let args =
        ["--config", file.to_str().unwrap(), "--broker", "sqlite:///a.db", "--broker", "x://u:hunter2@h/p"];
    let mut command = harbour.command(&[&args[..], &["config", "show", "--output", "json"]].concat());
    let shown = super::Ran::of(&command.env("LONGSHORE_WORKER__CONCURRENCY", "3").output().unwrap()).json();
    let origins = &shown["origins"];
    assert_eq!(origins["worker.lease"], file.to_str().unwrap());
    assert_eq!(origins["worker.concurrency"], "LONGSHORE_WORKER__CONCURRENCY");
    assert_eq!(origins["brokers"], "--broker");
    assert_eq!(origins["worker.queues"], "default");
    assert_eq!(shown["settings"]["worker"]["concurrency"], 3);
    assert_eq!(shown["settings"]["brokers"], json!(["sqlite:///a.db", "x://h/p"]));
    let table = super::Ran::of(&command.args(["--output", "human"]).output().unwrap());
    assert!(table.code == 2 || !table.out.contains("hunter2"));
}

#[test]
fn an_unknown_kind_of_broker_is_wrong_usage() {
    let harbour = Harbour::new();
    let told = harbour.run(&["--broker", "carrier-pigeon://x", "queue", "list"]).bad(2);
    assert!(told.contains("carrier-pigeon") && told.contains("sqlite:"), "{told}");
}

#[test]
fn a_healthy_machine_has_nothing_broken_and_a_broken_store_is_told_with_a_remedy() {
    let harbour = Harbour::new();
    let told = harbour.run(&["doctor", "--quick", "--output", "json"]).json();
    assert_eq!(told["broken"], 0);
    let looked: Vec<&str> =
        told["findings"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    for what in ["settings", "state folder", "work folder", "clock", "policy", "broker", "store"] {
        assert!(looked.contains(&what), "{looked:?}");
    }
    let file = harbour
        .file("no-database", "this is no database, whatever its name says, and long enough to be read");
    let address = format!("sqlite://{}", file.display());
    let broken = harbour.run(&["doctor", "--quick", "--store", &address]);
    assert_eq!(broken.code, 3, "{}", broken.out);
    let line = broken.out.lines().find(|line| line.starts_with("BROKEN")).unwrap();
    assert!(line.contains("store"), "{line}");
    assert!(broken.out.contains("check store in the settings"), "{}", broken.out);
}

#[test]
fn a_health_check_is_silent_while_all_is_well_and_names_each_broker_that_does_not_answer() {
    let harbour = Harbour::new();
    let near = format!("sqlite://{}", harbour.path().join("near.db").display());
    assert_eq!(harbour.run(&["--broker", &near, "doctor", "--quick"]).good(), "");
    let nobody = format!("redis://127.0.0.1:{}", crate::support::process::free_port());
    let ran = harbour.run(&["--broker", &near, "--broker", &nobody, "doctor", "--quick"]);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    let broken: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("BROKEN")).collect();
    assert!(broken.len() == 1 && broken[0].contains(&nobody), "{}", ran.out);
    assert!(ran.err.contains("1 of 8 looks found something broken"), "{}", ran.err);
}

#[tokio::test]
async fn a_health_check_does_not_wait_for_a_server_that_says_nothing() {
    let harbour = Harbour::new();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("redis://{}", silent.local_addr().unwrap());
    let near = format!("sqlite://{}", harbour.path().join("near.db").display());
    let started = std::time::Instant::now();
    let mut command = harbour.command(&["--broker", &address, "--store", &near, "doctor", "--quick"]);
    command.env("LONGSHORE_CONNECT_TIMEOUT", "60s");
    let ran = super::Ran::of(&command.output().unwrap());
    assert!(ran.code == 3 && ran.out.contains("no answer within 5 s"), "{}{}", ran.out, ran.err);
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}
