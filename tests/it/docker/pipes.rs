//! Named pipes and volumes in real containers, some of them hostile: what they write arrives, and what they try to reach
//! of the host stays as it was.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use longshore::events::LogStream;
use serde_json::{Value, json};

use super::bench::{Bench, Told};

/// How many containers a row of them has.
const IN_A_ROW: u32 = 200;

fn sh(words: &[Value]) -> Value {
    let mut arguments = vec![json!("-c")];
    arguments.extend_from_slice(words);
    json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh", "container_args": arguments})
}

fn output(name: &str) -> Value {
    json!({"$": "NamedOutputPipe", "name": name})
}

/// A stream from the container's pipe `out` into its pipe `in`, which are `$1` and `$2`.
fn looped(script: &str) -> Value {
    let input = json!({"$": "NamedInputPipe", "name": "in"});
    let mut args = sh(&[json!(script), json!("sh"), output("out"), input.clone()]);
    args["stream_connectors"] = json!([{"$": "Connect", "input": output("out"), "output": input}]);
    args
}

fn left_in(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The workspaces of attempts in the worker's own folder.
fn workspaces(bench: &Bench) -> usize {
    left_in(bench.work.path()).iter().map(|folder| left_in(folder).len()).sum()
}

/// A host file with content that must appear nowhere else and stay as it is.
struct Canary {
    folder: tempfile::TempDir,
    content: String,
}

impl Canary {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let content = format!("canary-{}-{}", uuid::Uuid::now_v7(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("canary"), &content).unwrap();
        Self { folder, content }
    }

    fn path(&self) -> String {
        self.folder.path().join("canary").display().to_string()
    }

    /// It is nowhere in what was told of a task, and on the host it is as it was.
    fn assert_unseen(&self, told: &Told) {
        let told = format!("{:?}{:?}{:?}", told.result, told.details, told.events);
        assert!(!told.contains(&self.content), "{told}");
        self.assert_untouched();
    }

    fn assert_untouched(&self) {
        assert_eq!(std::fs::read_to_string(self.path()).unwrap(), self.content);
        assert_eq!(left_in(self.folder.path()).len(), 1);
    }
}

#[tokio::test]
async fn a_slow_container_gets_every_byte_and_then_the_end() {
    let bench = Bench::new().await;
    let script = "head -c 2000003 /dev/urandom > /tmp/x; cat /tmp/x > $1 & dd if=$2 bs=333 2>/dev/null | md5sum; md5sum < /tmp/x";
    let told = bench.run(looped(script)).await;
    let out = told.stdout();
    let sums: Vec<&str> = out.lines().collect();
    assert_eq!(sums.len(), 2, "{out}");
    assert_eq!(sums[0], sums[1]);
    assert_eq!(told.details.streams[0].bytes, 2_000_003);
}

#[tokio::test]
async fn a_reader_that_stops_early_is_no_error_and_one_that_never_comes_neither() {
    let bench = Bench::new().await;
    let told = bench.run(looped("(yes > $1 2>/dev/null || true) & head -c 10 $2 | wc -c; wait")).await;
    assert_eq!(told.stdout().trim(), "10");
    bench.run(looped("echo unread > $1")).await.stdout();
    bench.run(looped("true")).await.stdout();
}

#[tokio::test]
async fn a_container_that_dies_half_way_fails_by_its_own_code() {
    let bench = Bench::new().await;
    let told = bench.run(looped("exec 3> $1; head -c 5 /dev/zero >&3; exit 7")).await;
    assert_eq!(told.error().exit_code, Some(7), "{}", told.error());
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn a_pipe_can_be_neither_removed_nor_replaced() {
    let canary = Canary::new();
    let bench = Bench::new().await;
    let script = "rm -f $0 2>/dev/null && echo removed; mv $0 $0.x 2>/dev/null && echo moved; \
                  ln -sfn $1 $0 2>/dev/null && echo linked; rm -rf $(dirname $0) 2>/dev/null; \
                  cat $0.x $1 2>/dev/null; test -p $0 && echo '{\"current\": 5}' > $0";
    let told = bench.run(sh(&[json!(script), json!({"$": "ProgressPipe"}), json!(canary.path())])).await;
    assert_eq!(told.stdout(), "");
    canary.assert_unseen(&told);
    assert_eq!(told.details.progress.unwrap().current, Some(5.0));
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn links_that_a_container_leaves_are_not_followed_when_its_volume_is_removed() {
    let canary = Canary::new();
    let bench = Bench::new().await;
    let script = "cd $0 && ln -s $1 a && ln -s $2 b && mkdir -p d/e && ln -s $2 d/e/f && ln -s / d/root && \
                  mkfifo p && chmod 0 d/e d p && chmod 0 .";
    let folder = canary.folder.path().display().to_string();
    let words = [json!(script), json!({"$": "TemporaryVolume"}), json!(canary.path()), json!(folder)];
    let told = bench.run(sh(&words)).await;
    told.stdout();
    canary.assert_unseen(&told);
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn pipes_in_a_bound_folder_leave_it_as_it_was() {
    let canary = Canary::new();
    let bench = Bench::new().await;
    for mode in ["rw", "ro"] {
        let bind = json!({"$": "BindMountVolume", "host_path": canary.folder.path(), "container_path": "/data", "mode": mode});
        let pipe = json!({"$": "ProgressPipe", "name": "sub.progress", "volume": bind});
        let told = bench.run(sh(&[json!("test -p $0 && echo '{\"current\": 1}' > $0; echo $0"), pipe])).await;
        assert_eq!(told.stdout(), "/data/sub.progress\n", "{mode}");
        assert_eq!(told.details.progress.unwrap().current, Some(1.0));
        canary.assert_untouched();
    }
}

#[tokio::test]
async fn a_pipe_at_explicit_paths_touches_no_host_path() {
    let canary = Canary::new();
    let bench = Bench::new().await;
    let pipe = json!({"$": "NamedOutputPipe", "name": "p", "container_path": "/some/where", "host_path": canary.folder.path()});
    let stream = json!({"$": "Connect", "input": pipe, "output": {"$": "HostStdErr"}});
    let told = bench.run(sh(&[json!("echo $0; printf '' > $0"), stream])).await;
    assert_eq!(told.stdout(), "/some/where/p\n");
    canary.assert_untouched();
}

#[tokio::test]
async fn any_user_of_a_container_can_use_its_volumes_and_pipes() {
    let bench = Bench::new().await;
    let script = "id -u; echo x > $0/f; mkdir $0/d; echo y > $0/d/f; echo '{\"current\": 2}' > $1";
    let mut args = sh(&[json!(script), json!({"$": "TemporaryVolume"}), json!({"$": "ProgressPipe"})]);
    args["options"] = json!({"user": "12345:12345"});
    let told = bench.run(args).await;
    assert_eq!(told.stdout(), "12345\n");
    assert_eq!(told.details.progress.unwrap().current, Some(2.0));
    assert_eq!(workspaces(&bench), 0);
}

#[tokio::test]
async fn two_hundred_containers_with_progress_leave_nothing_behind_and_none_hangs() {
    let bench = Bench::new().await;
    let script = "for n in $(seq 20); do echo \"{\\\"total\\\": 20, \\\"current\\\": $n}\" > $0; done";
    let run = async || {
        let mut args = sh(&[json!(script), json!({"$": "ProgressPipe"})]);
        args["options"] = json!({"network_mode": "none"});
        let told = bench.run(args).await;
        assert_eq!(told.said(LogStream::Stderr), "");
        told.stdout();
        assert_eq!(told.details.progress.unwrap().current, Some(20.0));
    };
    run().await;
    let before = open_files();
    for _ in 1..IN_A_ROW {
        run().await;
    }
    assert_eq!(workspaces(&bench), 0);
    // Connections to the engine that are kept for the next request come and go.
    assert!(open_files() <= before + 3, "{} files open, {before} before", open_files());
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
