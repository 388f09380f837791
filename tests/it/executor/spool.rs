//! Outputs that nobody takes when their task ends: kept, tried again, and never a reason to run the task once more.

use std::time::Duration;

use longshore::broker::Command;
use longshore::executor::Settings;
use longshore::store::{Outcome, Record, Status};
use longshore::task::Secret;

use super::rig::{Rig, Scripted, settings, task};

fn waits(record: &Record) -> bool {
    record.status == Status::Uploading && record.spooled.is_some()
}

#[tokio::test(start_paused = true)]
async fn outputs_that_nobody_takes_wait_without_a_lane_and_are_tried_until_they_are_taken() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    let record = rig.until(&kept, "uploading", waits).await;
    let spooled = record.spooled.as_ref().unwrap();
    assert_eq!((spooled.tries, spooled.error.code.as_str()), (1, "girder_unavailable"));
    assert!(spooled.until > spooled.since && spooled.next.is_some(), "{spooled:?}");
    assert_eq!(record.owner.as_ref().unwrap().worker, "quay");
    assert_eq!((record.outcome, record.attempts, record.unfinished_starts), (None, 1, 0));

    let other = task(&[]);
    rig.submit(&other).await;
    assert_eq!(rig.finished(&other).await.status, Status::Succeeded, "the one lane is free");

    rig.until(&kept, "tried thrice", |record| record.spooled.as_ref().is_some_and(|s| s.tries >= 3)).await;
    script.may_upload.add_permits(1);
    let record = rig.finished(&kept).await;
    assert_eq!((record.status, record.attempts, record.spooled), (Status::Succeeded, 1, None));
    assert_eq!(record.details.result, "brought");
    assert!(worker.drained().await);
    assert_eq!((script.count("run"), script.count("forget")), (2, 1), "neither ran twice");
    assert_eq!(rig.messages().await, 0);
    assert_eq!(rig.told(&kept).await, ["staging", "running", "succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_wakes_them_at_once_with_its_token() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    rig.until(&kept, "uploading", waits).await;
    script.may_upload.add_permits(1);
    let token = Some(Secret::new("fresh"));
    rig.broker.topic.command(Command::Upload { task: kept.id.clone(), token }).await.unwrap();
    assert_eq!(rig.finished(&kept).await.status, Status::Succeeded);
    assert_eq!(*script.tokens.lock().unwrap(), [Some("fresh".to_owned())]);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_the_wait() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    rig.until(&kept, "uploading", waits).await;
    let cancel = Command::Cancel { task: kept.id.clone(), reason: "enough".to_owned() };
    rig.broker.topic.command(cancel).await.unwrap();
    let record = rig.finished(&kept).await;
    assert_eq!(record.outcome, Some(Outcome::Canceled { reason: "enough".to_owned() }));
    assert!(worker.drained().await);
    assert_eq!((script.count("forget"), rig.messages().await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn when_their_time_is_over_the_task_fails_for_good_and_says_why() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let spool_wait = Duration::from_secs(2);
    let worker = rig.start("quay", &script, Settings { spool_wait, ..settings(1) });
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    let record = rig.finished(&kept).await;
    let Some(Outcome::Failed { error }) = record.outcome else { panic!("{record:?}") };
    assert_eq!(error.code, "girder_unavailable");
    assert!(error.message.starts_with("nobody takes it; ") && error.message.contains("worker.spool_wait"));
    assert!(worker.drained().await);
    assert_eq!((script.count("run"), script.count("forget")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_no_later_try_mends_fails_the_task_at_once() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "forbidden")]);
    rig.submit(&kept).await;
    let record = rig.finished(&kept).await;
    let Some(Outcome::Failed { error }) = record.outcome else { panic!("{record:?}") };
    assert_eq!((error.code.as_str(), script.count("upload")), ("girder_forbidden", 1));
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_them_to_the_next_process_and_no_other_worker_takes_them() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    let before = rig.until(&kept, "uploading", waits).await;
    assert!(worker.drained().await, "it does not wait for them");
    let left = rig.until(&kept, "left", |record| record.left.is_some()).await;
    assert_eq!((left.status, left.fence), (Status::Uploading, before.fence));
    assert_eq!(left.spooled.unwrap().until, before.spooled.unwrap().until);
    assert_eq!(rig.messages().await, 1);

    let other = rig.start("other", &script, settings(1));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(rig.store.load(&kept.id).await.unwrap().unwrap().record.owner, left.owner);
    assert_eq!(script.count("run"), 1);

    script.may_upload.add_permits(1);
    let next = rig.start("quay", &script, settings(1));
    let record = rig.finished(&kept).await;
    assert_eq!((record.status, record.fence, record.attempts), (Status::Succeeded, before.fence, 1));
    assert_eq!((script.count("run"), script.count("reopen")), (1, 1));
    assert!(next.drained().await && other.drained().await);
    assert_eq!(rig.messages().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_came_while_nobody_kept_them_is_heeded_by_the_next_process() {
    let (rig, script) = (Rig::new().await, Scripted::free());
    let worker = rig.start("quay", &script, settings(1));
    let kept = task(&[("spool", "")]);
    rig.submit(&kept).await;
    rig.until(&kept, "uploading", waits).await;
    assert!(worker.drained().await);
    let cancel = Command::Cancel { task: kept.id.clone(), reason: "enough".to_owned() };
    rig.broker.topic.command(cancel).await.unwrap();
    let next = rig.start("quay", &script, settings(1));
    assert_eq!(rig.finished(&kept).await.status, Status::Canceled);
    assert!(next.drained().await);
    assert_eq!(script.count("run"), 1);
}
