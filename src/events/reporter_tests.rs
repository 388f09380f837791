//! Order, coalescing, bounds and redaction of what an attempt tells.

use std::sync::Mutex as StdMutex;

use async_trait::async_trait;

use super::super::{EventSink, Notice, SinkError};
use super::*;
use crate::crew::Crew;

#[derive(Default)]
struct Kept(StdMutex<Vec<Event>>);

#[async_trait]
impl EventSink for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        self.0.lock().unwrap().extend(notices.iter().map(|notice| (*notice.event).clone()));
        Ok(())
    }
}

fn reporter(rate: f64, limits: LogLimits) -> (Reporter, Arc<Kept>, Bus) {
    let kept = Arc::new(Kept::default());
    let bus = Bus::new(vec![kept.clone()], rate, Crew::new());
    let task = Task::new("longshore.ping", crate::task::ArgMap::default());
    (Reporter::new(Arc::new(task), Fence(9), bus.clone(), limits), kept, bus)
}

/// Closes the attempt and returns everything that was told, the last event included.
async fn told(reporter: &Reporter, kept: &Kept, bus: &Bus) -> Vec<Event> {
    let last = reporter.close(EventData::Succeeded { exit_code: Some(0) });
    bus.deliver("kept", Notice { event: Arc::new(last), task: None }).await.unwrap();
    let events = kept.0.lock().unwrap().clone();
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event.number, n as u64, "numbers have no gaps");
    }
    events
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_progress_is_coalesced_and_its_last_is_told() {
    let (reporter, kept, bus) = reporter(10.0, LogLimits::default());
    for n in 0..1_000 {
        reporter.progress(Progress { current: Some(f64::from(n)), ..Progress::default() });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = told(&reporter, &kept, &bus).await;
    assert!(events.len() < 15, "{}", events.len());
    let EventData::Progress(last) = &events[events.len() - 2].data else { panic!("{events:?}") };
    assert_eq!(last.current, Some(999.0));
}

#[tokio::test(start_paused = true)]
async fn log_lines_keep_their_order_and_wait_before_a_status() {
    let (reporter, kept, bus) = reporter(1.0, LogLimits::default());
    reporter.log(LogStream::Stdout, "1");
    reporter.log(LogStream::Stdout, "2");
    reporter.log(LogStream::Stdout, "3");
    reporter.log(LogStream::Stderr, "4");
    reporter.running(Some("c"));
    let events = told(&reporter, &kept, &bus).await;
    let texts: Vec<String> = events
        .iter()
        .map(|event| match &event.data {
            EventData::Log { text, .. } => text.clone(),
            other => other.kind().as_str().to_owned(),
        })
        .collect();
    assert_eq!(texts, ["1", "2\n3", "4", "running", "succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn the_middle_of_a_long_log_is_left_out_and_said_so() {
    let (reporter, kept, bus) = reporter(1e9, LogLimits { log_max: 50, log_tail: 30 });
    for n in 0..100 {
        reporter.log(LogStream::Stdout, &format!("line {n:04}"));
    }
    let (_, details) = reporter.snapshot();
    assert_eq!(details.log_tail, "line 0097\nline 0098\nline 0099\n");
    assert_eq!(details.log_dropped, 950);
    let events = told(&reporter, &kept, &bus).await;
    let log: String = events
        .iter()
        .filter_map(|event| match &event.data {
            EventData::Log { text, .. } => Some(format!("{text}\n")),
            _ => None,
        })
        .collect();
    insta::assert_snapshot!(log);
}

#[tokio::test]
async fn secrets_are_told_nowhere() {
    let (reporter, kept, bus) = reporter(1e9, LogLimits::default());
    reporter.redact(&Secret::new("hunter2"));
    reporter.log(LogStream::Stderr, "token=hunter2!");
    reporter.warn("bad hunter2");
    reporter.progress(Progress { message: Some("at hunter2".to_owned()), ..Progress::default() });
    reporter.describe(|details| details.argv = vec!["--token".to_owned(), "hunter2".to_owned()]);
    let (_, details) = reporter.snapshot();
    let events = told(&reporter, &kept, &bus).await;
    assert!(!format!("{details:?}{events:?}").contains("hunter2"));
    assert_eq!(details.argv, ["--token", "[redacted]"]);
}
