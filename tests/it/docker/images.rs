//! How images come: once for all who wait, with progress, within their time, with the registry's login.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use longshore::cancel::CancelReason;
use longshore::error::ErrorClass;
use longshore::events::{EventData, LogStream};
use longshore::units::Span;
use serde_json::{Value, json};

use super::bench::{Bench, Told};
use crate::support::docker::{docker, try_docker};
use crate::support::image::Image;
use crate::support::poll::eventually;
use crate::support::registry::Registry;
use crate::support::stalling_registry::{Stall, StallingRegistry};

fn cat(image: &str, pull: &str) -> Value {
    json!({"image": image, "pull": pull, "entrypoint": ["cat"], "container_args": ["/content"]})
}

/// Bytes that no other image has and that do not compress.
fn content() -> Vec<u8> {
    let mut lines = String::new();
    for _ in 0..40_000 {
        writeln!(lines, "{:032x}", rand::random::<u128>()).unwrap();
    }
    lines.into_bytes()
}

async fn pushed(registry: &Registry, content: &[u8]) -> String {
    let image = Image::with_content(content).await;
    registry.push(image.name(), "tool:1").await
}

#[tokio::test]
async fn an_image_that_is_not_here_and_never_pulled_fails_at_once() {
    let bench = Bench::new().await;
    let told = bench.run(cat("longshore-test/no-such-image:1", "never")).await;
    let error = told.error();
    assert_eq!((error.code.as_str(), error.class), ("image_not_found", ErrorClass::Permanent));
    assert!(
        error.message.contains("longshore-test/no-such-image:1") && error.message.contains("pull"),
        "{error}"
    );
}

#[tokio::test]
async fn an_image_that_is_here_needs_no_registry() {
    // Nobody listens on port 1: a look at the registry would fail.
    let reference = "127.0.0.1:1/longshore-test/here:1";
    let bench = Bench::new().await;
    docker(&["tag", "busybox:latest", reference]).await;
    let args = json!({"image": reference, "pull": "missing", "entrypoint": ["echo", "ran"]});
    let told = bench.run(args).await;
    docker(&["rmi", reference]).await;
    assert_eq!(told.stdout(), "ran\n");
    assert!(!told.said(LogStream::Worker).contains("pull"));
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_worth_another_attempt_and_the_local_image_where_allowed() {
    let reference = "127.0.0.1:1/longshore-test/away:1";
    let bench = Bench::new().await;
    let error = bench.run(cat(reference, "missing")).await.error().clone();
    assert_eq!((error.code.as_str(), error.class), ("pull_failed", ErrorClass::Retryable), "{error}");
    assert!(error.message.contains(reference), "{error}");

    docker(&["tag", "busybox:latest", reference]).await;
    let args = json!({"image": reference, "pull": "always", "entrypoint": ["echo", "ran"]});
    let strict = bench.run(args.clone()).await;
    let lenient = Bench::with(|settings| settings.fall_back_to_local = true).await.run(args).await;
    docker(&["rmi", reference]).await;
    assert_eq!(strict.error().code, "pull_failed");
    assert_eq!(lenient.stdout(), "ran\n");
    assert!(lenient.details.warnings[0].contains("the image that is here is used instead"));
}

#[tokio::test]
async fn an_image_that_the_registry_does_not_have_is_final() {
    let registry = Registry::open().await;
    let bench = Bench::new().await;
    let error = bench.run(cat(&registry.reference("nothing:1"), "missing")).await.error().clone();
    assert_eq!((error.code.as_str(), error.class), ("image_not_found", ErrorClass::Permanent), "{error}");
    assert!(error.message.contains("nothing:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_for_an_image_share_one_pull_and_see_its_progress() {
    let content = content();
    let registry = Registry::open().await;
    let reference = pushed(&registry, &content).await;
    let bench = Bench::new().await;
    let mark = String::from_utf8_lossy(&content[..32]).into_owned();
    let args = json!({"image": reference, "pull": "missing", "entrypoint": ["head"],
        "container_args": ["-n", "1", "/content"]});
    let since = docker(&["info", "--format", "{{.SystemTime}}"]).await;
    let (a, b, c) = tokio::join!(bench.run(args.clone()), bench.run(args.clone()), bench.run(args.clone()));
    let until = docker(&["info", "--format", "{{.SystemTime}}"]).await;
    for told in [&a, &b, &c] {
        assert_eq!(told.stdout(), format!("{mark}\n"));
        assert!(told.said(LogStream::Worker).contains(&format!("pulling {reference}")));
        assert!(told.said(LogStream::Worker).contains(&format!("pulled {reference}")));
        let (current, total) = last_pull_progress(told, &reference);
        assert!(total > 1e5 && (current - total).abs() < 0.5, "{current} of {total}");
    }
    let filter = format!("image={reference}");
    let pulls = docker(&[
        "events",
        "--since",
        &since,
        "--until",
        &until,
        "--filter",
        "event=pull",
        "--filter",
        &filter,
    ])
    .await;
    assert_eq!(pulls.lines().count(), 1, "{pulls}");
    assert!(a.details.image_digest.unwrap().contains("@sha256:"));
}

fn last_pull_progress(told: &Told, reference: &str) -> (f64, f64) {
    let progress = told.events.iter().rev().find_map(|event| match &event.data {
        EventData::Progress(progress)
            if progress.message.as_deref() == Some(&format!("pulling {reference}")) =>
        {
            progress.current.zip(progress.total)
        }
        _ => None,
    });
    progress.expect("progress of the pull was told")
}

#[tokio::test]
async fn a_pull_that_stalls_ends_with_its_time() {
    for stall in [Stall::Manifest, Stall::Layer] {
        let registry = StallingRegistry::start(stall).await;
        let reference = registry.reference("slow:1");
        let bench = Bench::with(|settings| settings.pull_timeout = Span::seconds(2)).await;
        let started = Instant::now();
        let error = bench.run(cat(&reference, "missing")).await.error().clone();
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        assert_eq!((error.code.as_str(), error.class), ("pull_timeout", ErrorClass::Retryable), "{error}");
        assert!(
            error.message.contains("within 2s") && error.message.contains("docker.pull_timeout"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_cancel_during_a_pull_ends_the_attempt_and_leaves_the_pull_to_the_others() {
    let mut registry = StallingRegistry::start(Stall::Drip).await;
    let reference = registry.reference("slow:1");
    let bench = Bench::new().await;
    let (one, other) = (bench.attempt(cat(&reference, "missing")), bench.attempt(cat(&reference, "missing")));
    let (scope, other_scope) = (one.scope.clone(), other.scope.clone());
    let others = tokio::spawn(other.run());
    let cancel = async {
        registry.stalled().await;
        scope.cancel(CancelReason::Canceled("by a test".to_owned()));
        Instant::now()
    };
    let (told, at) = tokio::join!(one.run(), cancel);
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    assert!(told.result.is_err());
    assert!(!others.is_finished(), "the pull ended for the other, too");
    other_scope.cancel(CancelReason::Canceled("by a test".to_owned()));
    assert!(others.await.unwrap().result.is_err());
    // Nobody waits any more: the pull itself ends.
    eventually(Duration::from_secs(5), "the pull is gone", async || {
        (bench.crew.at_work() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_registry_with_a_login_gives_to_those_who_have_it() {
    let content = content();
    let registry = Registry::with_login("docker", "a worker").await;
    let reference = pushed(&registry, &content).await;
    let error = Bench::new().await.run(cat(&reference, "missing")).await.error().clone();
    assert_eq!((error.code.as_str(), error.class), ("image_refused", ErrorClass::Permanent), "{error}");
    assert!(error.message.contains("docker login"), "{error}");

    let folder = registry.docker_config().to_owned();
    let bench = Bench::with(|settings| settings.config_dir = folder).await;
    assert_eq!(bench.run(cat(&reference, "missing")).await.stdout().as_bytes(), content);
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_the_login() {
    let content = content();
    let registry = Registry::with_login("docker", "a worker").await;
    let reference = pushed(&registry, &content).await;
    let host = reference.split('/').next().unwrap().to_owned();

    let folder = tempfile::tempdir().unwrap();
    let asked = folder.path().join("asked");
    // Found by its path: tests may not change the environment that they share.
    let helper = folder.path().join("docker-credential-test");
    let text = format!(
        "#!/bin/sh\ncat > {}\necho '{{\"ServerURL\": \"{host}\", \"Username\": \"docker\", \"Secret\": \"a worker\"}}'\n",
        asked.display()
    );
    std::fs::write(&helper, text).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let link = std::path::Path::new("/usr/local/bin")
        .join(format!("docker-credential-longshore-{}", std::process::id()));
    std::os::unix::fs::symlink(&helper, &link).unwrap();
    let name = format!("longshore-{}", std::process::id());
    let config = json!({"credHelpers": {host.clone(): name}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

    let config_dir = folder.path().to_owned();
    let bench = Bench::with(|settings| settings.config_dir = config_dir).await;
    let told = bench.run(cat(&reference, "missing")).await;
    std::fs::remove_file(&link).unwrap();
    assert_eq!(told.stdout().as_bytes(), content);
    assert_eq!(std::fs::read_to_string(asked).unwrap(), host);
}

#[tokio::test]
async fn an_image_that_went_between_staging_and_running_is_fetched_again() {
    use longshore::handler::{Handler, Slot};
    let content = content();
    let registry = Registry::open().await;
    let reference = pushed(&registry, &content).await;
    let bench = Bench::new().await;
    let attempt = bench.attempt(cat(&reference, "missing"));
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    docker(&["rmi", &reference]).await;
    assert!(try_docker(&["image", "inspect", &reference]).await.is_err());
    let result = staged.run(Slot::default()).await;
    let told = attempt.told(result).await;
    assert_eq!(told.stdout().as_bytes(), content);
}
