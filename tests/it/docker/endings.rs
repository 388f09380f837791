//! How a task ends that does not end well, and the one clear sentence that says why.

use std::time::Duration;

use longshore::error::ErrorClass;
use serde_json::json;

use super::bench::{Bench, script, script_with};
use crate::support::docker::{containers_labelled, docker};

#[tokio::test]
async fn an_exit_code_is_told_as_girder_worker_tells_it_with_the_last_words() {
    let bench = Bench::new().await;
    let told = bench.run(script("echo fine; echo cannot find the input >&2; exit 3")).await;
    let error = told.error();
    assert_eq!(
        error.message,
        "DockerException: Non-zero exit code from docker container (3).\ncannot find the input"
    );
    assert_eq!((error.class, error.exit_code), (ErrorClass::Permanent, Some(3)));
    assert_eq!((told.details.exit_code, told.details.oom_killed), (Some(3), Some(false)));
}

#[tokio::test]
async fn a_container_killed_for_its_memory_names_the_limit() {
    let bench = Bench::new().await;
    let hungry = script_with("x=a; while true; do x=$x$x$x; done", &json!({"mem_limit": "32m"}));
    let told = bench.run(hungry).await;
    let error = told.error();
    assert_eq!((error.code.as_str(), error.exit_code), ("oom_killed", Some(137)), "{error}");
    assert!(error.message.contains("its memory limit of 32.0 MiB"), "{error}");
    assert_eq!(told.details.oom_killed, Some(true));
}

#[tokio::test]
async fn an_entrypoint_that_is_not_there_is_named() {
    let bench = Bench::new().await;
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "no-such-program"});
    let error = bench.run(args).await.error().clone();
    assert_eq!((error.code.as_str(), error.class), ("entrypoint_missing", ErrorClass::Permanent), "{error}");
    assert!(error.message.contains("\"no-such-program\" is not an executable of the image"), "{error}");
    bench.settled().await;
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn a_file_that_may_not_be_executed_is_named() {
    let bench = Bench::new().await;
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "/etc/hostname"});
    let error = bench.run(args).await.error().clone();
    assert_eq!(error.code, "entrypoint_not_executable", "{error}");
}

#[tokio::test]
async fn an_option_that_the_engine_refuses_is_told_in_its_words() {
    let bench = Bench::new().await;
    let wrong = [
        (json!({"mem_limit": "1k"}), "memory limit"),
        (json!({"sysctls": {"kernel.nonsense": "1"}}), "kernel.nonsense"),
        (json!({"devices": ["/dev/no-such-device"]}), "/dev/no-such-device"),
        (json!({"network": "no-such-network"}), "no-such-network"),
        (json!({"runtime": "no-such-runtime"}), "no-such-runtime"),
    ];
    for (options, word) in wrong {
        let error = bench.run(script_with("true", &options)).await.error().clone();
        assert_eq!((error.code.as_str(), error.class), ("option_refused", ErrorClass::Permanent), "{error}");
        assert!(
            error.message.to_lowercase().contains(word) && error.message.contains("args.options"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_worth_another_attempt() {
    for host in ["unix:///tmp/longshore-no-such.sock", "tcp://127.0.0.1:1"] {
        let bench = Bench::with(|settings| host.clone_into(&mut settings.host)).await;
        let error = bench.run(script("true")).await.error().clone();
        assert_eq!((error.code.as_str(), error.class), ("engine_away", ErrorClass::Retryable));
        assert!(error.message.contains(host) && error.message.contains("DOCKER_HOST"), "{error}");
    }
}

#[tokio::test]
async fn a_stale_attempt_makes_no_container() {
    let bench = Bench::new().await;
    let attempt = bench.attempt(script("true"));
    let stale = longshore::error::TaskError::retryable("lease_lost", "another attempt has begun");
    *attempt.current.lock().unwrap() = Err(stale.clone());
    let told = attempt.run().await;
    assert_eq!(told.error(), &stale);
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn a_container_removed_by_others_while_it_runs_is_worth_another_attempt() {
    let bench = Bench::new().await;
    let attempt = bench.attempt(script("sleep 60"));
    let report = attempt.attempt.report().clone();
    let sabotage = async {
        report.runs().await;
        let container = report.snapshot().1.container.unwrap();
        docker(&["rm", "--force", &container]).await;
    };
    let (told, ()) = tokio::join!(attempt.run(), sabotage);
    assert_eq!(told.error().class, ErrorClass::Retryable, "{}", told.error());
    assert_eq!(told.error().code, "container_removed");
}

#[tokio::test]
async fn what_an_earlier_try_of_the_attempt_left_is_replaced_and_nothing_else() {
    let bench = Bench::new().await;
    let attempt = bench.attempt(script("echo ran"));
    let task = &attempt.attempt.task().id;
    let name = longshore::docker::labels::name(task, attempt.attempt.fence());
    let fence = format!("longshore.fence={}", attempt.attempt.fence());
    let instance = format!("longshore.instance={}", bench.instance);
    let args = ["create", "--name", &name, "--label", &fence, "--label", &instance, "busybox:latest", "true"];
    let left = docker(&args).await;
    let told = attempt.run().await;
    assert_eq!(told.stdout(), "ran\n");
    assert_ne!(told.details.container, Some(left));

    let attempt = bench.attempt(script("true"));
    let name = longshore::docker::labels::name(&attempt.attempt.task().id, attempt.attempt.fence());
    let foreign = docker(&["create", "--name", &name, "--label", &instance, "busybox:latest", "true"]).await;
    let told = attempt.run().await;
    assert_eq!(told.error().code, "container_name_taken");
    assert!(told.error().message.contains(&name));
    docker(&["rm", &foreign]).await;
}

#[tokio::test]
async fn a_stop_that_is_heeded_takes_less_than_two_seconds() {
    let bench = Bench::new().await;
    let (told, took) =
        canceled_while_running(&bench, "trap 'echo heeded; exit 0' TERM; sleep 60 & wait").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(told.said(longshore::events::LogStream::Stdout).contains("heeded"));
}

#[tokio::test]
async fn a_stop_that_is_not_heeded_takes_its_grace_and_a_second_at_most() {
    let bench = Bench::new().await;
    let (_, took) = canceled_while_running(&bench, "trap '' TERM; while true; do sleep 1; done").await;
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(3) + Duration::from_millis(500),
        "{took:?}"
    );
}

/// Runs `text`, cancels it once it runs and said so, and measures until its container is gone.
async fn canceled_while_running(bench: &Bench, text: &str) -> (super::bench::Told, Duration) {
    let attempt = bench.attempt(script(text));
    let (scope, report) = (attempt.scope.clone(), attempt.attempt.report().clone());
    let cancel = async {
        report.runs().await;
        // The shell sets its trap after it started: processor time shows that it did.
        tokio::time::sleep(Duration::from_millis(300)).await;
        scope.cancel(longshore::cancel::CancelReason::Canceled("by a test".to_owned()));
        std::time::Instant::now()
    };
    let (told, at) = tokio::join!(attempt.run(), cancel);
    let took = at.elapsed();
    assert!(told.result.is_err());
    let container = told.details.container.clone().unwrap();
    let running = docker(&["ps", "--quiet", "--no-trunc", "--filter", &format!("id={container}")]).await;
    assert_eq!(running, "", "the container still runs");
    (told, took)
}
