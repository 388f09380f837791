//! From a queue to a settled record.

use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore::store::{Outcome, Status};
use longshore::task::{Generation, Priority, Resources};
use longshore::units::Span;

use super::rig::{Rig, Scripted, settings, task};

#[tokio::test(start_paused = true)]
async fn a_task_is_recorded_told_and_taken_off_the_queue() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(2));
    let task = task(&[("study", "x")]);
    rig.submit(&task).await;
    let record = rig.finished(&task).await;
    assert_eq!((record.status, record.attempts), (Status::Succeeded, 1));
    assert_eq!(record.details.result, "done");
    assert_eq!(record.labels["study"], "x");
    assert!(record.times.queued.is_some() && record.times.staged.is_some() && record.times.started.is_some());
    assert!(worker.drained().await);
    let record = rig.finished(&task).await;
    assert!(record.owed.is_empty(), "the outbox is served: {:?}", record.owed);
    assert_eq!(rig.told(&task).await, ["staging", "running", "succeeded"]);
    assert_eq!(rig.messages().await, 0);
}

#[tokio::test(start_paused = true)]
async fn retryable_failures_are_tried_again_until_they_pass_or_are_used_up() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(2));
    let (once, never, broken) =
        (task(&[("fail", "once")]), task(&[("fail", "retryable")]), task(&[("fail", "permanent")]));
    for task in [&once, &never, &broken] {
        rig.submit(task).await;
    }
    let record = rig.finished(&once).await;
    assert_eq!((record.status, record.attempts), (Status::Succeeded, 2));
    assert_eq!(rig.told(&once).await, ["staging", "running", "retrying", "staging", "running", "succeeded"]);
    let record = rig.finished(&never).await;
    assert_eq!((record.status, record.attempts), (Status::Failed, 3));
    let Some(Outcome::Failed { error }) = record.outcome else { panic!() };
    assert_eq!(error.code, "flaky");
    assert!(record.envelope.is_some(), "what failed can be submitted again");
    assert_eq!(rig.finished(&broken).await.attempts, 1);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn never_more_is_fetched_than_there_is_room_for() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(3));
    for _ in 0..20 {
        rig.submit(&task(&[])).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((script.count("stage"), script.count("run")), (6, 3), "three lanes and three ahead");
    script.may_end.add_permits(20);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(script.count("end"), 20);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_runs_once_and_a_next_life_runs_again() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    let mut task = task(&[]);
    rig.submit(&task).await;
    rig.finished(&task).await;
    let mut copy = longshore::broker::Submission::of(&task, longshore::task::ContentType::Json, 0);
    copy.dedup_id = "another".to_owned();
    rig.broker.submit.submit(vec![copy]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((script.count("run"), rig.messages().await), (1, 0));
    task.generation = Generation(1);
    rig.submit(&task).await;
    rig.until(&task, "run again", |record| record.generation == Generation(1) && record.status.is_finished())
        .await;
    assert_eq!(script.count("run"), 2);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_task_is_parked_with_the_reason() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let task = task(&[]);
    let mut bad = longshore::broker::Submission::of(&task, longshore::task::ContentType::Json, 0);
    bad.body = bytes::Bytes::from_static(b"{\"v\": 1}");
    rig.broker.submit.submit(vec![bad]).await.unwrap();
    let mut stranger = task.clone();
    stranger.id = longshore::task::TaskId::fresh();
    stranger.kind = "strange".to_owned();
    rig.submit(&stranger).await;
    let record = rig.finished(&stranger).await;
    assert_eq!(record.status, Status::Dead);
    let dead = rig.broker.dead.list(None, 10).await.unwrap();
    let mut reasons: Vec<_> = dead.into_iter().map(|letter| letter.reason).collect();
    reasons.sort();
    assert!(reasons[0].starts_with("field task: is missing"), "{reasons:?}");
    assert!(reasons[1].contains("no live worker knows the task kind \"strange\""), "{reasons:?}");
    assert_eq!(rig.told(&stranger).await, ["dead"]);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn what_fits_no_live_worker_is_given_back_and_at_last_refused() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let mut large = task(&[]);
    large.resources = Resources { gpus: Some(2), ..Resources::default() };
    rig.submit(&large).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(rig.store.load(&large.id).await.unwrap().is_none(), "it waits, uncharged");
    assert!(worker.drained().await);
    // Paused time does not move the wall clock that submission times are told in, so the second worker waits for nothing.
    let impatient = super::rig::settings(1);
    let impatient = longshore::executor::Settings { unfit_timeout: Duration::ZERO, ..impatient };
    let worker = rig.start("b", &Scripted::free(), impatient);
    let record = rig.finished(&large).await;
    let Some(Outcome::Failed { error }) = record.outcome else { panic!() };
    assert_eq!(error.code, "unfit");
    assert!(
        error.message.starts_with("the task needs 2 gpus (here 0), and no live worker"),
        "{}",
        error.message
    );
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_higher_priority_is_run_first() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let mut order = Vec::new();
    for priority in [1, 5, 9] {
        let mut task = task(&[]);
        task.priority = Priority::new(priority).unwrap();
        rig.submit(&task).await;
        order.insert(0, task.id.to_string());
    }
    let worker = rig.start("a", &script, settings(1));
    script.may_end.add_permits(3);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let ran: Vec<String> = script
        .steps
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, step)| *step == "run")
        .map(|(task, _)| task.clone())
        .collect();
    assert_eq!(ran, order);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_was_away_is_told_later_and_the_message_waits_for_it() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    rig.moody.refuses.store(true, Ordering::SeqCst);
    let task = task(&[]);
    rig.submit(&task).await;
    let record = rig.finished(&task).await;
    assert!(record.owed.contains("moody"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(rig.messages().await, 1, "its message is not taken off while somebody must still be told");
    rig.moody.refuses.store(false, Ordering::SeqCst);
    rig.until(&task, "told everywhere", |record| record.owed.is_empty()).await;
    let told = rig.moody.told.lock().unwrap().last().cloned().unwrap();
    assert_eq!((told.task, told.data.kind().as_str()), (task.id.clone(), "succeeded"));
    assert_eq!(script.count("run"), 1);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_sink_hears_only_of_the_tasks_that_it_wants_and_a_record_keeps_those_that_it_may_still_need() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let private = task(&[("private", "yes")]);
    rig.submit(&private).await;
    let record = rig.finished(&private).await;
    assert!(record.envelope.is_none(), "nobody needs it again");
    let open = task(&[]);
    rig.submit(&open).await;
    let record = rig.finished(&open).await;
    assert!(record.envelope.is_some(), "whoever completes the outbox must know the task");
    assert!(worker.drained().await);
    let told = rig.moody.told.lock().unwrap().clone();
    assert!(!told.is_empty());
    assert!(told.iter().all(|event| event.task == open.id));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_handler_fails_the_attempt_and_not_the_worker() {
    let rig = Rig::new().await;
    let script = Scripted { panics: true, ..Scripted::free() };
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[]);
    rig.submit(&task).await;
    let record = rig.finished(&task).await;
    assert_eq!((record.status, record.attempts), (Status::Succeeded, 2));
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_runs_too_long_is_ended_and_failed() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let mut task = task(&[]);
    task.timeout = Some(Span::seconds(90));
    rig.submit(&task).await;
    let record = rig.finished(&task).await;
    let Some(Outcome::Failed { error }) = record.outcome else { panic!() };
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("time_limit", "it ran longer than its time limit of 1m 30s")
    );
    assert_eq!(script.count("timed out"), 1);
    assert!(worker.drained().await);
}
