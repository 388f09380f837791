//! The examples of `docs/protocol.md` as they stand there, run beside a real worker.

use std::time::Duration;

use crate::support::example;
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;

#[tokio::test]
async fn a_producer_in_python_submits_once_follows_the_events_and_reads_the_result() {
    let nats = Nats::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", nats.url()));
    let _worker = longshore.worker(&[]).await;
    let printed = example::run("NATS_URL", &nats.url(), "nats-result.py").await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..2], ["queued", "duplicate"], "{printed}");
    assert!(lines.contains(&"longshore.task.running.v1"), "{printed}");
    assert_eq!(lines[lines.len() - 2..], ["longshore.task.succeeded.v1", "succeeded a"], "{printed}");
}

#[tokio::test]
async fn a_producer_in_go_cancels_a_task_before_the_worker_that_meets_it_is_there() {
    let nats = Nats::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", nats.url()));
    longshore.ok(&["broker", "init"]).await;
    let printed = example::run("NATS_URL", &nats.url(), "nats-cancel.go").await;
    assert_eq!(printed.lines().count(), 2, "{printed}");
    let _worker = longshore.worker(&[]).await;
    eventually(Duration::from_secs(30), "it is canceled", async || {
        let said = longshore.run(&["task", "show", "from-go"]).await.stdout;
        (said.contains("canceled") && said.contains("not needed any more")).then_some(())
    })
    .await;
}
