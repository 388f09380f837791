//! The examples of `docs/protocol.md` as they stand there, run beside a real worker.

use std::time::Duration;

use serde_json::Value;

use crate::support::example;
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

async fn ended(longshore: &Longshore, task: &str) -> Value {
    eventually(Duration::from_secs(30), &format!("{task} has ended"), async || {
        let said = longshore.run(&["task", "show", task, "--output", "json"]).await;
        let record: Value = serde_json::from_str(&said.stdout).ok()?;
        let text = record.to_string();
        ["succeeded", "failed", "canceled", "dead"]
            .iter()
            .any(|end| text.contains(&format!("\"status\":\"{end}\"")))
            .then_some(record)
    })
    .await
}

#[tokio::test]
async fn a_plain_xadd_is_a_valid_submission() {
    let redis = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    example::run("REDIS_URL", &redis.url(), "redis-submit.sh").await;
    let printed = example::run("REDIS_URL", &redis.url(), "redis-once.sh").await;
    assert_eq!(
        printed.lines().filter(|line| line.contains('-')).count(),
        1,
        "sent twice, queued once: {printed}"
    );
    let _worker = longshore.worker(&[]).await;
    for task in ["from-shell", "once-from-shell"] {
        assert!(ended(&longshore, task).await.to_string().contains("\"status\":\"succeeded\""));
    }
}

#[tokio::test]
async fn a_producer_in_python_submits_and_reads_the_result_and_the_events() {
    let redis = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    let _worker = longshore.worker(&[]).await;
    let printed = example::run("REDIS_URL", &redis.url(), "redis-result.py").await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "succeeded a");
    assert!(lines.contains(&"longshore.task.running.v1"), "{printed}");
    assert_eq!(lines.last(), Some(&"longshore.task.succeeded.v1"), "{printed}");
}

#[tokio::test]
async fn a_producer_in_go_submits_and_follows_its_task_live() {
    let redis = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    let _worker = longshore.worker(&[]).await;
    let printed = example::run("REDIS_URL", &redis.url(), "redis-follow.go").await;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.contains(&"longshore.task.running.v1"), "{printed}");
    assert_eq!(lines[lines.len() - 2..], ["longshore.task.succeeded.v1", "succeeded"], "{printed}");
}

#[test]
fn every_example_is_run_by_a_test() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    let mut sources = String::new();
    for room in ["redis", "nats"] {
        sources += &std::fs::read_to_string(format!("{tests}/{room}/protocol.rs")).unwrap_or_default();
    }
    let blocks = text.lines().filter(|line| ["```sh", "```python", "```go"].contains(line)).count();
    let named: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("<!-- tested: ")?.strip_suffix(" -->")).collect();
    assert_eq!(blocks, named.len(), "an example has no mark");
    for name in named {
        assert!(sources.contains(&format!("\"{name}\"")), "no test runs {name}");
    }
}

#[tokio::test]
async fn a_cancel_of_a_producer_is_found_by_the_worker_that_comes_later() {
    let redis = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    example::run("REDIS_URL", &redis.url(), "redis-submit.sh").await;
    example::run("REDIS_URL", &redis.url(), "redis-cancel.sh").await;
    let _worker = longshore.worker(&[]).await;
    let record = ended(&longshore, "from-shell").await.to_string();
    assert!(record.contains("\"status\":\"canceled\"") && record.contains("not needed any more"), "{record}");
}
