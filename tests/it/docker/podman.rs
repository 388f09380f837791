//! The same task kind on Podman's socket.

use longshore::cancel::CancelReason;
use longshore::error::ErrorClass;
use longshore::events::LogStream;
use longshore::handler::{Handler, Slot};
use serde_json::json;

use super::bench::{Bench, script_with};
use crate::support::podman::Podman;

async fn bench(podman: &Podman) -> Bench {
    Bench::with(|settings| settings.host = podman.address()).await
}

#[tokio::test]
async fn podman_runs_tasks_like_docker() {
    let podman = Podman::start().await;
    let bench = bench(&podman).await;
    let alone = json!({"network": "none", "environment": {"A": "1 2"}});
    let told = bench.run(script_with("echo $A; echo err >&2", &alone)).await;
    assert_eq!(told.stdout(), "1 2\n");
    assert_eq!(told.said(LogStream::Stderr), "err\n");
    assert_eq!(told.details.exit_code, Some(0));

    let told = bench.run(script_with("echo gone wrong >&2; exit 3", &alone)).await;
    let error = told.error();
    assert_eq!((error.class, error.exit_code), (ErrorClass::Permanent, Some(3)));
    assert!(error.message.contains("gone wrong"), "{error}");

    let mut piped = script_with("echo through the pipe >$0; echo kept >$1; cat $1", &alone);
    let pipe = json!({"$": "NamedOutputPipe", "name": "out"});
    let stream = json!({"$": "Connect", "input": pipe, "output": {"$": "HostStdErr"}});
    let words = piped["container_args"].as_array_mut().unwrap();
    words.extend([stream, json!({"$": "VolumePath", "filename": "kept"})]);
    let told = bench.run(piped).await;
    assert_eq!(told.stdout(), "kept\n");
    let piped = told.details.streams.iter().find(|stream| stream.stream.contains("out"));
    assert_eq!(piped.map(|stream| stream.bytes), Some(17), "{:?}", told.details.streams);

    let mut lost = script_with("true", &alone);
    lost["entrypoint"] = json!("/no/such/program");
    let error = bench.run(lost).await.error().clone();
    assert_eq!(error.class, ErrorClass::Permanent, "{error}");
    assert!(error.message.contains("/no/such/program"), "{error}");

    let mut absent = script_with("true", &alone);
    absent["image"] = json!("localhost/not-here:1");
    let error = bench.run(absent).await.error().clone();
    assert_eq!(error.class, ErrorClass::Permanent, "{error}");
    assert!(error.message.contains("localhost/not-here:1"), "{error}");

    bench.settled().await;
    assert_eq!(podman.containers(), [""; 0], "every container was removed");
}

#[tokio::test]
async fn a_task_on_podman_is_stopped_when_it_is_canceled() {
    let podman = Podman::start().await;
    let bench = bench(&podman).await;
    let text = "trap 'echo heeded; exit 0' TERM; echo up; while true; do sleep 0.1; done";
    let attempt = bench.attempt(script_with(text, &json!({"network": "none"})));
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    let scope = attempt.scope.clone();
    let report = attempt.attempt.report().clone();
    let cancel = async {
        report.runs().await;
        scope.cancel(CancelReason::Interrupted);
    };
    let (result, ()) = tokio::join!(staged.run(Slot::default()), cancel);
    let told = attempt.told(result).await;
    assert_eq!(told.error().code, "interrupted", "{:?}", told.result);
    assert_eq!(told.said(LogStream::Stdout), "up\nheeded\n");
    bench.settled().await;
    assert_eq!(podman.containers(), [""; 0], "the container was removed");
}
