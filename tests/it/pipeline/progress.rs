//! Progress pipes: opened again and again, fed rubbish, or never ending a line.

use longshore::events::Progress;
use serde_json::json;

use super::*;
use crate::support::poll::eventually;

fn progress_pipe() -> Request {
    request(&[json!({"$": "ProgressPipe"})])
}

#[tokio::test]
async fn a_progress_pipe_may_be_opened_a_hundred_times() {
    let script = r#"for n in $(seq 100); do echo "{\"message\": \"step $n\", \"total\": 100, \"current\": $n}" > $1; done"#;
    let ran = Rig::new(progress_pipe()).await.run(script).await;
    ran.assert_clean();
    let last = Progress { message: Some("step 100".to_owned()), current: Some(100.0), total: Some(100.0) };
    assert_eq!(ran.details.progress, Some(last));
    assert!(ran.details.warnings.is_empty(), "{:?}", ran.details.warnings);
}

#[tokio::test]
async fn a_last_line_without_its_end_counts_and_bad_ones_are_told_once() {
    let script = r#"printf 'rubbish\n\n[1]\n{"current": 3, "total": 4}\nmore\n{"current": 4}' > $1"#;
    let ran = Rig::new(progress_pipe()).await.run(script).await;
    ran.assert_clean();
    assert_eq!(ran.details.progress, Some(Progress { message: None, current: Some(4.0), total: Some(4.0) }));
    let [warning] = &ran.details.warnings[..] else { panic!("{:?}", ran.details.warnings) };
    assert!(warning.contains("3 lines ignored") && warning.contains("rubbish"), "{warning}");
}

#[tokio::test]
async fn an_endless_line_costs_no_memory_and_what_follows_is_heard() {
    let rig = Rig::new(progress_pipe()).await;
    let before = resident();
    let script = r#"head -c 268435456 /dev/zero > $1; printf '\n{"current": 7}\n' > $1"#;
    let ran = rig.run(script).await;
    ran.assert_clean();
    assert_eq!(ran.details.progress.unwrap().current, Some(7.0));
    assert!(ran.details.warnings[0].contains("longer than 65536 bytes"), "{:?}", ran.details.warnings);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[tokio::test]
async fn progress_is_heard_while_the_container_runs() {
    let mut rig = Rig::new(progress_pipe()).await;
    rig.pipeline.open().unwrap();
    let mut container = rig.start(r#"exec 3> $1; echo '{"current": 1}' >&3; sleep 1000"#);
    eventually(DEADLINE, "progress", async || rig.attempt.report().snapshot().1.progress).await;
    container.kill().await;
    rig.run("true").await.streams.unwrap();
}

/// What this process keeps in memory. Other tests run in other processes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
