//! Volumes and streams of the pipeline around a real container, and what is left behind: nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use longshore::cancel::CancelReason;
use longshore::error::ErrorClass;
use longshore::events::{EventData, LogStream};
use longshore::handler::{Handler, Slot};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::bench::{Bench, Told, script, settings};
use crate::support::docker::{containers_labelled, docker};
use crate::support::poll::eventually;

fn sh(words: &[Value]) -> Value {
    let mut arguments = vec![json!("-c")];
    arguments.extend_from_slice(words);
    json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh", "container_args": arguments})
}

fn left_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// The workspaces of attempts in the worker's own folder.
fn workspaces(bench: &Bench) -> usize {
    let folders = std::fs::read_dir(bench.work.path()).unwrap();
    folders.map(|folder| left_in(&folder.unwrap().path())).sum()
}

#[tokio::test]
async fn the_default_volume_is_mounted_and_removed_with_all_that_is_in_it() {
    let bench = Bench::new().await;
    let path = json!({"$": "VolumePath", "filename": "a/b.txt"});
    let told = bench
        .run(sh(&[json!("mkdir -p $(dirname $0) && echo hi > $0 && chmod 0 $0 && echo $0"), path]))
        .await;
    let out = told.stdout();
    assert!(out.starts_with("/mnt/girder_worker/") && out.ends_with("/a/b.txt\n"), "{out}");
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn an_output_pipe_reaches_the_log_and_progress_its_events() {
    let bench = Bench::new().await;
    let script = "echo '{\"message\": \"half\", \"current\": 1, \"total\": 2}' > $0; echo hello > $1; echo '{\"current\": 2}' > $0";
    let output = json!({"$": "Connect", "input": {"$": "NamedOutputPipe", "name": "out"}, "output": {"$": "HostStdOut"}});
    let told = bench.run(sh(&[json!(script), json!({"$": "ProgressPipe"}), output])).await;
    told.stdout();
    let progress: Vec<_> = told
        .events
        .iter()
        .filter_map(|event| match &event.data {
            EventData::Progress(progress) => {
                Some((progress.message.clone(), progress.current, progress.total))
            }
            _ => None,
        })
        .collect();
    assert_eq!(progress.first(), Some(&(Some("half".to_owned()), Some(1.0), Some(2.0))));
    assert_eq!(progress.last().unwrap().1, Some(2.0));
    let mut carried: Vec<u64> = told.details.streams.iter().map(|stream| stream.bytes).collect();
    carried.sort_unstable();
    assert_eq!(carried, [6, 61], "{:?}", told.details.streams);
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn standard_output_goes_to_a_sink_byte_for_byte_when_it_is_connected() {
    let (url, received) = sink("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let bench = Bench::new().await;
    let mut args = script("head -c 3000000 /dev/urandom | tee /tmp/x; md5sum < /tmp/x >&2");
    args["stream_connectors"] = json!([{"$": "Connect", "input": {"$": "ContainerStdOut"},
        "output": {"$": "ChunkedTransferEncodingStream", "url": url}}]);
    let told = bench.run(args).await;
    assert_eq!(told.stdout(), "");
    let sum = told.said(LogStream::Stderr);
    let body = received.await.unwrap();
    assert_eq!(body.len(), 3_000_000);
    let check = docker_md5(&body).await;
    assert_eq!(check.split_whitespace().next(), sum.split_whitespace().next());
}

#[tokio::test]
async fn a_sink_that_fails_stops_the_container_and_says_why() {
    let (url, _received) =
        sink("HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\nnot you").await;
    let bench = Bench::new().await;
    let mut args = script("while true; do echo line; sleep 0.1; done");
    args["stream_connectors"] = json!([{"$": "Connect", "input": {"$": "ContainerStdOut"},
        "output": {"$": "ChunkedTransferEncodingStream", "url": url}}]);
    let started = Instant::now();
    let told = bench.run(args).await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let message = &told.error().message;
    assert!(message.contains("403") && message.contains("not you"), "{message}");
    bench.settled().await;
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn the_policy_of_hosts_holds_for_streams() {
    let policy = serde_json::from_value(json!({"http": {"allowed_hosts": ["only.example"]}})).unwrap();
    let bench = Bench::under(settings(), &policy).await;
    let mut args = script("true");
    args["stream_connectors"] = json!([{"$": "Connect", "input": {"$": "ContainerStdOut"},
        "output": {"$": "ChunkedTransferEncodingStream", "url": "http://127.0.0.1:1/"}}]);
    let told = bench.run(args).await;
    assert_eq!(told.error().code, "denied_by_policy");
    assert!(told.error().message.contains("policy.http.allowed_hosts"), "{}", told.error());
}

#[tokio::test]
async fn a_discarded_attempt_leaves_nothing() {
    let bench = Bench::new().await;
    let attempt = bench.attempt(sh(&[json!("true"), json!({"$": "ProgressPipe"})]));
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    assert_eq!(workspaces(&bench), 1);
    staged.discard().await;
    assert_eq!(workspaces(&bench), 0);
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn a_cancel_is_heeded_while_a_container_waits_for_a_pipe() {
    let bench = Bench::new().await;
    // Nobody ever writes: the container waits in open().
    let input = json!({"$": "NamedInputPipe", "name": "in"});
    let connect = json!({"$": "Connect", "input": {"$": "ChunkedTransferEncodingStream", "url": "http://127.0.0.1:1/"}, "output": input});
    let told = bench.run(sh(&[json!("cat $0"), connect])).await;
    assert_eq!(told.error().class, ErrorClass::Permanent, "{}", told.error());

    let pipe = json!({"$": "NamedOutputPipe", "name": "out"});
    let output = json!({"$": "Connect", "input": pipe, "output": {"$": "HostStdOut"}});
    let told =
        canceled_once_running(&bench, sh(&[json!("trap 'exit 0' TERM; exec 3>$0; sleep 60 & wait"), output]))
            .await;
    assert!(told.result.is_err());
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn a_cancel_before_the_start_makes_no_container() {
    let bench = Bench::new().await;
    let attempt = bench.attempt(script("true"));
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    attempt.scope.cancel(CancelReason::Interrupted);
    let told = attempt.told(staged.run(Slot::default()).await).await;
    assert!(told.result.is_err());
    assert_eq!(told.times.started, None);
    bench.settled().await;
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn a_cancel_while_an_upload_finishes_ends_the_attempt() {
    // The server never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let bench = Bench::new().await;
    let mut args = script("echo hello");
    args["stream_connectors"] = json!([{"$": "Connect", "input": {"$": "ContainerStdOut"},
        "output": {"$": "ChunkedTransferEncodingStream", "url": url}}]);
    let attempt = bench.attempt(args);
    let (scope, report) = (attempt.scope.clone(), attempt.attempt.report().clone());
    let instance = format!("longshore.instance={}", bench.instance);
    let cancel = async {
        report.runs().await;
        eventually(Duration::from_secs(20), "the container is gone", async || {
            containers_labelled(&instance).await.is_empty().then_some(())
        })
        .await;
        scope.cancel(CancelReason::Canceled("by a test".to_owned()));
        Instant::now()
    };
    let (told, at) = tokio::join!(attempt.run(), cancel);
    assert!(at.elapsed() < Duration::from_secs(2), "{:?}", at.elapsed());
    assert!(told.result.is_err());
    drop(listener);
}

#[tokio::test]
async fn the_cleaner_removes_what_root_locked_away() {
    use longshore::docker::cleaner::ContainerCleaner;
    use longshore::pipeline::Cleaner;
    let bench = Bench::new().await;
    let folder = bench.work.path().join("locked");
    std::fs::create_dir_all(folder.join("deep/.hidden")).unwrap();
    std::fs::write(folder.join("deep/file"), "x").unwrap();
    std::fs::write(folder.join("..odd"), "x").unwrap();
    std::fs::write(folder.join("-rf *"), "x").unwrap();
    std::os::unix::fs::symlink(bench.work.path(), folder.join("link")).unwrap();
    for path in ["deep/file", "deep"] {
        std::fs::set_permissions(folder.join(path), std::fs::Permissions::from_mode(0o0)).unwrap();
    }
    let attempt = bench.attempt(script("true"));
    let cleaner = ContainerCleaner::new(bench.engine.clone(), &attempt.attempt, "busybox:latest");
    cleaner.clean(&folder).await.unwrap();
    assert_eq!(left_in(&folder), 0);
    assert!(bench.work.path().exists());

    let pullless = ContainerCleaner::new(bench.engine.clone(), &attempt.attempt, "longshore-test/nowhere:1");
    let error = pullless.clean(&folder).await.unwrap_err();
    assert!(
        error.message.contains("longshore-test/nowhere:1") && error.message.contains("docker.cleaner_image"),
        "{error}"
    );
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

/// Cancels the attempt as soon as it runs.
async fn canceled_once_running(bench: &Bench, args: Value) -> Told {
    let attempt = bench.attempt(args);
    let (scope, report) = (attempt.scope.clone(), attempt.attempt.report().clone());
    let cancel = async {
        report.runs().await;
        scope.cancel(CancelReason::Canceled("by a test".to_owned()));
        Instant::now()
    };
    let (told, at) = tokio::join!(attempt.run(), cancel);
    assert!(at.elapsed() < Duration::from_secs(4), "{:?}", at.elapsed());
    told
}

/// A server that takes one chunked request, answers it at once or at its end, and tells its body.
async fn sink(answer: &'static str) -> (String, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let received = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut raw = Vec::new();
        if !answer.contains("200") {
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        }
        while !raw.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(&mut raw).await.unwrap_or(0) == 0 {
                break;
            }
        }
        if answer.contains("200") {
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        }
        unchunked(&raw)
    });
    (url, received)
}

fn unchunked(raw: &[u8]) -> Vec<u8> {
    let start = raw.windows(4).position(|four| four == b"\r\n\r\n").map_or(raw.len(), |n| n + 4);
    let (mut rest, mut body) = (&raw[start..], Vec::new());
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap_or("0"), 16).unwrap_or(0);
        if size == 0 || end + 2 + size > rest.len() {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}

async fn docker_md5(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), bytes).unwrap();
    let bind = format!("{}:/x:ro", folder.path().display());
    docker(&["run", "--rm", "--network", "none", "-v", &bind, "busybox:latest", "md5sum", "/x/x"]).await
}
