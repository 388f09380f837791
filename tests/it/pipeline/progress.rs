//! Progress pipes: opened again and again, fed rubbish, or never ending a line.

use std::time::Instant;

use longshore::cancel::CancelScope;
use longshore::crew::Crew;
use longshore::events::reporter::{LogLimits, Reporter};
use longshore::events::{Bus, EventData, EventSink, Notice, Progress, SinkError};
use longshore::handler::{FenceGate, Identity};
use longshore::task::Fence;
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

/// Half of all lines are events on the bus within 5 ms of their being written; the rest is what a busy machine adds, and
/// the figures are printed (`--nocapture` shows them).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_is_an_event_within_five_milliseconds() {
    const LINES: u32 = 200;
    let (sink, mut events) = Timed::new();
    let bus = Bus::new(vec![sink], 1e9, Crew::new());
    let mut rig = Rig::of(attempt_on(bus), progress_pipe(), |_| {}).await.unwrap();
    rig.pipeline.open().unwrap();
    let pipe = rig.host(&rig.plan.arguments[0]);
    let writing = tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
        let mut delays = Vec::new();
        for n in 0..LINES {
            let written = Instant::now();
            std::io::Write::write_all(&mut pipe, format!("{{\"current\": {n}}}\n").as_bytes()).unwrap();
            let told = events.blocking_recv().unwrap();
            delays.push(told.duration_since(written));
        }
        delays
    });
    let mut delays = writing.await.unwrap();
    delays.sort_unstable();
    let at = |percent: usize| delays[(delays.len() * percent / 100).min(delays.len() - 1)];
    println!("from a line to its event: median {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
    assert!(at(50) < Duration::from_millis(5), "{:?}", at(50));
    rig.run("true").await.assert_clean();
}

/// An attempt that tells `bus`.
fn attempt_on(bus: Bus) -> Attempt {
    struct Open;
    #[async_trait]
    impl FenceGate for Open {
        async fn check(&self) -> Result<(), TaskError> {
            Ok(())
        }
    }
    let task = Arc::new(Task::new("docker_run", ArgMap::new()));
    let report = Reporter::new(task.clone(), Fence(1), bus, LogLimits::default());
    let here: Arc<str> = Arc::from("detached");
    let identity =
        Identity { worker: here.clone(), instance: here.clone(), incarnation: here.clone(), host: here };
    Attempt::new(task, (1, Fence(1)), CancelScope::new(), report, (Box::new(Open), identity))
}

/// Notes when each progress event reached it.
struct Timed(tokio::sync::mpsc::UnboundedSender<Instant>);

impl Timed {
    fn new() -> (Arc<Self>, tokio::sync::mpsc::UnboundedReceiver<Instant>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (Arc::new(Self(sender)), receiver)
    }
}

#[async_trait]
impl EventSink for Timed {
    fn name(&self) -> &'static str {
        "timed"
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        for _ in notices.iter().filter(|notice| matches!(notice.event.data, EventData::Progress(_))) {
            self.0.send(Instant::now()).unwrap();
        }
        Ok(())
    }
}
