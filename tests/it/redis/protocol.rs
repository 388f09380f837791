//! The examples of `docs/protocol.md` as they stand there, run beside a real worker.

use std::time::Duration;

use serde_json::Value;

use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

/// The block of code behind the mark with this name.
fn example(name: &str) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md")).unwrap();
    let (_, behind) =
        text.split_once(&format!("<!-- tested: {name} -->\n```")).expect("the example is there");
    let (_, code) = behind.split_once('\n').unwrap();
    code.split_once("```").unwrap().0.to_owned()
}

/// Runs an example and returns what it printed.
async fn run(redis: &Redis, name: &str) -> String {
    let program = if name == "redis-result.py" { "python3" } else { "sh" };
    let mut command = tokio::process::Command::new(program);
    command.arg(if program == "sh" { "-ec" } else { "-c" }).arg(example(name));
    let output = command.env("REDIS_URL", redis.url()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

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
    run(&redis, "redis-submit.sh").await;
    let printed = run(&redis, "redis-once.sh").await;
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
    let printed = run(&redis, "redis-result.py").await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "succeeded a");
    assert!(lines.contains(&"longshore.task.running.v1"), "{printed}");
    assert_eq!(lines.last(), Some(&"longshore.task.succeeded.v1"), "{printed}");
}

#[tokio::test]
async fn a_cancel_of_a_producer_is_found_by_the_worker_that_comes_later() {
    let redis = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    run(&redis, "redis-submit.sh").await;
    run(&redis, "redis-cancel.sh").await;
    let _worker = longshore.worker(&[]).await;
    let record = ended(&longshore, "from-shell").await.to_string();
    assert!(record.contains("\"status\":\"canceled\"") && record.contains("not needed any more"), "{record}");
}
