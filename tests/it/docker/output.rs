//! Standard output and error: apart, in order, to the last byte, bounded.

use std::sync::Arc;
use std::time::Duration;

use longshore::events::LogStream;
use tokio::task::JoinSet;

use super::bench::{Bench, script};
use crate::support::docker::containers_labelled;

#[tokio::test]
async fn a_container_runs_and_its_record_tells_all_of_it() {
    let bench = Bench::new().await;
    let told = bench.run(script("echo to out; echo to err >&2")).await;
    assert_eq!(told.stdout(), "to out\n");
    assert_eq!(told.said(LogStream::Stderr), "to err\n");
    let details = &told.details;
    assert_eq!((details.exit_code, details.oom_killed), (Some(0), Some(false)));
    assert_eq!(details.image.as_deref(), Some("busybox:latest"));
    assert!(details.image_digest.as_deref().unwrap().contains("sha256:"), "{details:?}");
    assert_eq!(details.argv, ["sh", "-c", "echo to out; echo to err >&2"]);
    assert_eq!(details.container.as_ref().unwrap().len(), 64);
    let times = [told.times.pulled, told.times.staged, told.times.started, told.times.ended];
    assert!(times.is_sorted() && times[0].is_some(), "{times:?}");
    bench.settled().await;
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn lines_of_one_stream_keep_their_order() {
    let bench = Bench::new().await;
    let told =
        bench.run(script("i=0; while [ $i -lt 3000 ]; do echo $i; echo e$i >&2; i=$((i+1)); done")).await;
    let expected: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(told.stdout().lines().collect::<Vec<_>>(), expected);
    let expected: Vec<String> = (0..3000).map(|n| format!("e{n}")).collect();
    assert_eq!(told.said(LogStream::Stderr).lines().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_at_once_lose_nothing() {
    let bench = Arc::new(Bench::new().await);
    let mut lanes = JoinSet::new();
    for lane in 0..8 {
        let bench = bench.clone();
        lanes.spawn(async move {
            for n in 0..25 {
                let told = bench.run(script(&format!("echo {lane}.{n}; printf end >&2"))).await;
                assert_eq!(told.stdout(), format!("{lane}.{n}\n"));
                assert_eq!(told.said(LogStream::Stderr), "end\n");
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    bench.settled().await;
    assert!(containers_labelled(&format!("longshore.instance={}", bench.instance)).await.is_empty());
}

#[tokio::test]
async fn a_flood_of_output_takes_bounded_memory_and_does_not_hold_up_the_end() {
    let bench = Bench::new().await;
    let before = resident_kib();
    let started = std::time::Instant::now();
    let told = bench.run(script("timeout 3 yes 'a line of a flood that says nothing'; echo end")).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(told.stdout().ends_with("end\n"));
    let lines = told.said(LogStream::Stdout).lines().count();
    assert!(lines > 10_000, "{lines}");
    assert!(told.details.log_tail.len() <= 64 << 10);
    // The events that this test keeps are bounded by log_max, 64 MiB.
    let grown = resident_kib().saturating_sub(before) >> 10;
    assert!(grown < 400, "{grown} MiB");
}

#[tokio::test]
async fn a_line_longer_than_the_cap_is_told_in_pieces_without_loss() {
    let bench = Bench::with(|settings| settings.line_max = longshore::units::Size(1 << 10)).await;
    let told = bench.run(script("head -c 5000 /dev/zero | tr '\\0' x; printf '\\377'")).await;
    let said = told.stdout();
    assert!(said.lines().all(|line| line.len() <= 1 << 10), "{}", said.len());
    assert_eq!(said.replace('\n', ""), "x".repeat(5000) + "\u{fffd}");
}

#[tokio::test]
async fn a_slicer_modules_elements_become_progress_and_leave_the_log() {
    let bench = Bench::new().await;
    let mut module = script(
        "echo before; echo '<filter-start><filter-name>Median</filter-name></filter-start>'; \
         for n in 0.25 0.5 1; do echo \"<filter-progress>$n</filter-progress>\"; echo at $n; done; \
         printf '<filter-comment>a &lt; b</fil'; sleep 0.2; echo 'ter-comment>'; \
         echo '<filter-end><filter-time>1</filter-time></filter-end>'; echo '<filter-progress>' >&2; printf '<filter-comment>open'",
    );
    module["stdout_filter"] = "slicer_progress".into();
    let told = bench.run(module).await;
    assert_eq!(told.stdout(), "before\nat 0.25\nat 0.5\nat 1\n<filter-comment>open\n");
    assert_eq!(told.said(LogStream::Stderr), "<filter-progress>\n", "standard error is left alone");
    let progress = told.details.progress.clone().unwrap();
    assert_eq!(progress.message.as_deref(), Some("a < b"));
    assert_eq!((progress.current, progress.total), (Some(1.0), Some(1.0)));
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_record_tells_processor_time_and_peak_memory() {
    let bench = Bench::new().await;
    let work =
        "x=$(head -c 8000000 /dev/zero | tr '\\0' a); i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";
    // On a machine out of breath the engine may take the control group away before it is read.
    for _ in 0..5 {
        let told = bench.run(script(work)).await;
        told.stdout();
        let (Some(cpu), Some(memory)) = (told.details.cpu_seconds, told.details.peak_memory) else {
            continue;
        };
        assert!(cpu > 0.02 && cpu < 100.0, "{cpu} s of processor time");
        assert!(memory > 6_000_000 && memory < 1_000_000_000, "{memory} bytes at most");
        return;
    }
    panic!("none of five records tells what its container took");
}
