//! Leaving and adopting: what one process of a worker leaves, and what the next makes of it.

use std::collections::HashMap;

use super::*;
use crate::events::reporter::LogLimits;
use crate::events::{Bus, Event, EventData, EventSink, Notice, Reporter, SinkError};
use crate::handler::{FenceGate, GONE, Identity, LEFT, Remains};
use crate::store::memory::MemoryStore;
use crate::store::{Details, Expected, Owner, Record, ResultStore, Status};
use crate::task::TransformSpec;

#[derive(Default)]
struct Kept(Mutex<Vec<Event>>);

#[async_trait::async_trait]
impl EventSink for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        self.0.lock().unwrap().extend(notices.iter().map(|notice| (*notice.event).clone()));
        Ok(())
    }
}

struct Open;
#[async_trait::async_trait]
impl FenceGate for Open {
    async fn check(&self) -> Result<(), TaskError> {
        Ok(())
    }
}

/// An attempt at `task` with the fence of `of`, as another process of the same worker has it.
fn process(of: &Attempt, kept: &Arc<Kept>) -> Attempt {
    let bus = Bus::new(vec![kept.clone()], 1e9, Crew::new());
    let report = Reporter::new(of.task().clone(), of.fence(), bus, LogLimits::default());
    let text: Arc<str> = Arc::from("detached");
    let identity =
        Identity { worker: text.clone(), instance: text.clone(), incarnation: text.clone(), host: text };
    let scope = crate::cancel::CancelScope::new();
    Attempt::new(of.task().clone(), (1, of.fence()), scope, report, (Box::new(Open), identity))
}

/// What the engine says of the container that was made for `attempt`.
fn made_for(attempt: &Attempt, running: bool) -> Inspected {
    let own = labels::labels(attempt, None, labels::Afterwards::Remove);
    Inspected { id: "c1".to_owned(), labels: own, began: true, running, ..Inspected::default() }
}

/// Runs an attempt until it said `x`, then ends it for `reason`; how it ended.
async fn begun(rig: &mut Rig, kept: &Arc<Kept>, reason: CancelReason) -> TaskError {
    rig.attempt = process(&rig.attempt, kept);
    let (scope, report) = (rig.attempt.scope().clone(), rig.attempt.report().clone());
    let end = async {
        while !report.snapshot().1.log_tail.contains('x') {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        scope.cancel(reason);
    };
    let staged = rig.handler.stage(rig.attempt.clone()).await.unwrap();
    let (result, ()) = tokio::join!(staged.run(Slot::default()), end);
    report.fall_silent();
    // What was told is on its way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    result.unwrap_err()
}

/// The next process: an engine with the container as `found`, whose log is `logged` and which ends with `code`.
fn next(rig: &Rig, found: &Inspected, logged: (&'static str, bool), code: i64) -> Rig {
    let engine = Scripted {
        logged: Mutex::new([logged].into()),
        waits: Mutex::new([Ok(code)].into()),
        oldest_log: Mutex::new(Some(jiff::Timestamp::UNIX_EPOCH)),
        ..Scripted::default()
    };
    let looks = [Ok(Some(found.clone())), Ok(Some(found.clone())), Ok(Some(found.clone()))];
    *engine.inspects.lock().unwrap() = looks.into();
    rig_in(engine, rig.attempt.clone(), rig.work.clone())
}

async fn adopted(rig: &mut Rig, kept: &Arc<Kept>) -> Result<serde_json::Value, TaskError> {
    rig.attempt = process(&rig.attempt, kept);
    let (task, fence) = (rig.attempt.task().clone(), rig.attempt.fence());
    assert_eq!(rig.handler.remains(&task, fence, "detached").await.unwrap(), Remains::Adoptable);
    let staged = rig.handler.adopt(rig.attempt.clone()).await?;
    let result = staged.run(Slot::default()).await;
    assert!(rig.crew.dismissed(Duration::from_secs(60)).await);
    rig.attempt.report().fall_silent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    result
}

fn said(kept: &Kept) -> Vec<String> {
    let events = kept.0.lock().unwrap();
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>(), "{events:?}");
    let texts = events.iter().filter_map(|event| match &event.data {
        EventData::Log { stream: crate::events::LogStream::Stdout, text } => Some(text.clone()),
        _ => None,
    });
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn workspaces(rig: &Rig) -> usize {
    crate::pipeline::workspace::list(rig.work.path(), "detached").len()
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_left_is_neither_stopped_nor_removed_and_the_next_process_tells_the_rest() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("w\nx\nhalf a li", false)], vec![]));
    let error = begun(&mut first, &kept, CancelReason::Left).await;
    assert_eq!(error.code, LEFT);
    assert_eq!(first.engine.calls(), ["create", "attach", "start", "wait"]);
    assert_eq!(workspaces(&first), 1);
    let found = made_for(&first.attempt, true);
    let mut second = next(&first, &found, ("w\nx\nhalf a line\ny\n", true), 0);
    adopted(&mut second, &kept).await.unwrap();
    assert_eq!(second.engine.calls(), ["inspect", "inspect", "logs", "wait", "remove c1"]);
    assert_eq!(said(&kept), ["w", "x", "half a line", "y"]);
    assert_eq!(workspaces(&second), 0);
    let Details { exit_code, log_tail, image, .. } = second.attempt.report().snapshot().1;
    assert_eq!((exit_code, image.as_deref()), (Some(0), Some("busybox")));
    assert!(log_tail.contains("w\nx\n") && log_tail.contains("half a line\ny\n"), "{log_tail}");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ended_meanwhile_ends_as_it_did_and_can_be_left_twice() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\n", false)], vec![]));
    begun(&mut first, &kept, CancelReason::Left).await;
    let mut second = next(&first, &made_for(&first.attempt, true), ("x\ny\n", false), 0);
    second.engine.waits.lock().unwrap().clear();
    second.attempt = process(&second.attempt, &kept);
    let staged = second.handler.adopt(second.attempt.clone()).await.unwrap();
    let (scope, report) = (second.attempt.scope().clone(), second.attempt.report().clone());
    let leave = async {
        while !report.snapshot().1.log_tail.contains('y') {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        scope.cancel(CancelReason::Left);
    };
    let (result, ()) = tokio::join!(staged.run(Slot::default()), leave);
    assert_eq!(result.unwrap_err().code, LEFT);
    report.fall_silent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut third = next(&second, &made_for(&first.attempt, false), ("x\ny\nz\n", true), 3);
    let error = adopted(&mut third, &kept).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.exit_code), ("nonzero_exit", Some(3)));
    assert_eq!(said(&kept), ["x", "y", "z"]);
    assert_eq!(third.engine.calls().last().map(String::as_str), Some("remove c1"));
}

#[tokio::test(start_paused = true)]
async fn a_container_with_a_pipe_is_stopped_by_a_leave_and_nothing_of_it_stays() {
    let kept = Arc::new(Kept::default());
    let mut rig = rig(engine(&[("x\n", false)], vec![]));
    let pipe: TransformSpec = serde_json::from_value(json!({"$": "ProgressPipe"})).unwrap();
    let mut task = (**rig.attempt.task()).clone();
    task.args.insert("container_args".to_owned(), Arg::List(vec![Arg::Transform(Box::new(pipe))]));
    rig.attempt = Attempt::detached(task);
    let error = begun(&mut rig, &kept, CancelReason::Left).await;
    assert_ne!(error.code, LEFT);
    assert!(rig.crew.dismissed(Duration::from_secs(60)).await);
    assert_eq!(rig.engine.calls()[3..], ["wait", "stop 10", "remove c1"]);
    assert_eq!(workspaces(&rig), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_gone_on_with_is_removed_by_its_id_and_what_is_anothers_is_not_touched() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\n", false)], vec![]));
    begun(&mut first, &kept, CancelReason::Left).await;
    let ours = made_for(&first.attempt, true);
    let never_started = Inspected { began: false, running: false, ..ours.clone() };
    let going = Inspected { removing: true, ..ours.clone() };
    let foreign = Inspected { labels: HashMap::new(), ..ours.clone() };
    for (found, calls) in [
        (never_started, &["inspect", "remove c1"][..]),
        (going, &["inspect", "remove c1"]),
        (foreign, &["inspect"]),
    ] {
        let second = next(&first, &found, ("", true), 0);
        let (task, fence) = (first.attempt.task().clone(), first.attempt.fence());
        assert_eq!(second.handler.remains(&task, fence, "detached").await.unwrap(), Remains::Nothing);
        assert_eq!(second.engine.calls(), calls);
    }
    let bookless = rig_in(Scripted::default(), first.attempt.clone(), Arc::new(tempfile::tempdir().unwrap()));
    bookless.engine.inspects.lock().unwrap().push_back(Ok(Some(ours)));
    let (task, fence) = (first.attempt.task().clone(), first.attempt.fence());
    assert_eq!(bookless.handler.remains(&task, fence, "detached").await.unwrap(), Remains::Nothing);
    assert_eq!(bookless.engine.calls(), ["inspect", "remove c1"]);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_told_by_the_next_process_no_more_than_by_the_first() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\n", false)], vec![]));
    let mut task = (**first.attempt.task()).clone();
    let girder = json!({"api_url": "http://girder/api/v1", "token": "swordfish"});
    task.girder = Some(serde_json::from_value(girder).unwrap());
    first.attempt = Attempt::detached(task);
    begun(&mut first, &kept, CancelReason::Left).await;
    let mut second = next(&first, &made_for(&first.attempt, true), ("x\nopen with swordfish\n", true), 0);
    adopted(&mut second, &kept).await.unwrap();
    assert_eq!(said(&kept), ["x", "open with [redacted]"]);
}

#[tokio::test(start_paused = true)]
async fn a_log_whose_beginning_the_engine_dropped_is_told_from_where_it_is_and_said_so() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("w\nx\n", false)], vec![]));
    begun(&mut first, &kept, CancelReason::Left).await;
    let mut second = next(&first, &made_for(&first.attempt, true), ("z\n", true), 0);
    *second.engine.oldest_log.lock().unwrap() = Some(jiff::Timestamp::now() + Duration::from_secs(60));
    adopted(&mut second, &kept).await.unwrap();
    assert_eq!(said(&kept), ["w", "x", "z"]);
    assert!(second.engine.calls().contains(&"logs since".to_owned()));
    let warnings = second.attempt.report().snapshot().1.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("output may be missing")), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_removal_was_under_way_when_it_was_found_is_begun_anew_and_fails_nothing() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\n", false)], vec![]));
    begun(&mut first, &kept, CancelReason::Left).await;
    let mut second = next(&first, &made_for(&first.attempt, false), ("", true), 0);
    let message = "No such container: c1".to_owned();
    let missing = EngineError::Refused { call: "wait for the container", status: Some(404), message };
    *second.engine.waits.lock().unwrap() = [Err(missing)].into();
    assert_eq!(adopted(&mut second, &kept).await.unwrap_err().code, GONE);
    assert_eq!(workspaces(&second), 0);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ended_well_stays_until_that_is_recorded_and_so_does_what_the_next_process_needs() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\ny\n", true)], vec![Ok(0)]));
    first.attempt = process(&first.attempt, &kept);
    first.attempt.will_be_recorded();
    let staged = first.handler.stage(first.attempt.clone()).await.unwrap();
    staged.run(Slot::default()).await.unwrap();
    first.attempt.report().fall_silent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // This process dies before the record is stored: the next one finds what it needs to end it as it ended.
    assert_eq!(first.engine.calls(), ["create", "attach", "start", "wait"]);
    assert_eq!(workspaces(&first), 1);
    let mut second = next(&first, &made_for(&first.attempt, false), ("x\ny\n", true), 0);
    adopted(&mut second, &kept).await.unwrap();
    assert_eq!(said(&kept), ["x", "y"]);
    // This one does not.
    first.attempt.finish_rest().await;
    assert!(first.crew.dismissed(Duration::from_secs(60)).await);
    assert_eq!(first.engine.calls().last().map(String::as_str), Some("remove c1"));
    assert_eq!(workspaces(&first), 0);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_adopted_while_orphans_are_looked_for_is_none() {
    let kept = Arc::new(Kept::default());
    let mut first = rig(engine(&[("x\n", false)], vec![]));
    begun(&mut first, &kept, CancelReason::Left).await;
    let second = next(&first, &made_for(&first.attempt, true), ("", true), 0);
    let labels = made_for(&first.attempt, true).labels;
    *second.engine.listed.lock().unwrap() =
        vec![Listed { id: "c1".to_owned(), labels, running: true, ..Listed::default() }];
    let text: Arc<str> = Arc::from("detached");
    let identity = Identity {
        worker: text.clone(),
        instance: text.clone(),
        incarnation: Arc::from("second"),
        host: text.clone(),
    };
    let store = MemoryStore::named("adopted meanwhile");
    let reaper = second.handler.reaper(&identity, store.clone(), Duration::from_secs(300));
    let owner = Owner {
        worker: text.to_string(),
        instance: text.to_string(),
        incarnation: "second".to_owned(),
        host: text.to_string(),
    };
    // The record is this process's by now, and nothing of that was known when the lives were looked at.
    let (task, fence) = (first.attempt.task(), first.attempt.fence());
    let until = |seconds| Some(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds));
    let record = Record {
        status: Status::Running,
        fence,
        owner: Some(owner),
        lease_until: until(60),
        ..Record::empty(task)
    };
    store.put(&record, Expected::Absent).await.unwrap();
    assert_eq!(reaper.clear(&std::collections::HashSet::new).await.unwrap(), [""; 0]);
    assert_eq!(workspaces(&second), 1);
    let current = store.load(&task.id).await.unwrap().unwrap();
    assert_eq!(current.record, record, "an attempt that is at work is claimed by nobody");
    // One of this process whose lease nobody keeps has ended.
    let lapsed = Record { lease_until: until(-1), ..record };
    store.put(&lapsed, Expected::At(current.revision)).await.unwrap();
    assert_eq!(reaper.clear(&std::collections::HashSet::new).await.unwrap(), ["c1"]);
}
