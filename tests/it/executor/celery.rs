//! Celery messages at the door: read, refused with an answer, or passed on.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::broker::{DeadSummary, Submission};
use longshore::store::{Outcome, Status};
use longshore::task::celery::CeleryContext;
use longshore::task::{ArgMap, Priority, QueueName, Task, TaskId};
use serde_json::{Value, json};

use super::rig::{Rig, Scripted, settings};

const ID: &str = "cd0af453-68be-44b3-996a-446a5602df21";

/// A message of protocol 2 for the task `name` with `body`.
fn message(name: &str, body: &Value) -> Submission {
    let headers = BTreeMap::from([
        ("task".to_owned(), json!(name)),
        ("id".to_owned(), json!(ID)),
        ("retries".to_owned(), json!(0)),
    ]);
    Submission {
        task: TaskId::new(ID).unwrap(),
        queue: QueueName::default(),
        priority: Priority::default(),
        body: body.to_string().into(),
        content_type: "application/json".to_owned(),
        content_encoding: Some("utf-8".to_owned()),
        headers,
        dedup_id: ID.to_owned(),
        not_before: None,
        expires: None,
    }
}

fn docker_run(body: &Value) -> Submission {
    message("girder_worker.docker.tasks.docker_run", body)
}

fn task() -> Task {
    Task { id: TaskId::new(ID).unwrap(), ..Task::new("docker_run", ArgMap::new()) }
}

async fn parked(rig: &Rig) -> DeadSummary {
    for _ in 0..1_000 {
        if let Some(letter) = rig.broker.dead.list(None, 10).await.unwrap().pop() {
            return letter;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was parked");
}

#[tokio::test(start_paused = true)]
async fn a_celery_message_becomes_the_task_that_it_names() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let body = json!([["busybox"], {"container_args": ["true"]}, {}]);
    rig.broker.submit.submit(vec![docker_run(&body)]).await.unwrap();
    let record = rig.finished(&task()).await;
    assert_eq!((record.kind.as_str(), record.status), ("docker_run", Status::Dead));
    let Some(Outcome::Dead { reason }) = record.outcome else { panic!() };
    assert!(reason.contains("no live worker knows the task kind \"docker_run\""), "{reason}");
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_celery_message_is_parked_and_its_sender_hears_why() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    rig.broker.submit.submit(vec![docker_run(&json!([["busybox"], ["no", "map"], {}]))]).await.unwrap();
    let letter = parked(&rig).await;
    assert!(letter.reason.contains("kwargs"), "{}", letter.reason);
    let record = rig.finished(&task()).await;
    assert_eq!(record.outcome, Some(Outcome::Dead { reason: letter.reason }));
    let told = rig.moody.tasks.lock().unwrap().clone();
    let sender = told[0].as_ref().unwrap().extra.get(CeleryContext::KEY).unwrap();
    assert_eq!(sender["id"], ID);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_garbled_message_ends_no_task_of_the_same_id() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(2));
    let running = Task { id: task().id, ..super::rig::task(&[]) };
    rig.submit(&running).await;
    rig.until(&running, "is here", |record| record.status == Status::Staging).await;
    rig.broker.submit.submit(vec![docker_run(&json!([["busybox"], ["no", "map"], {}]))]).await.unwrap();
    parked(&rig).await;
    script.may_end.add_permits(1);
    assert_eq!(rig.finished(&running).await.status, Status::Succeeded);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_ours_is_parked_with_the_advice_to_pass_it_on() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let ingest = message("slicer_cli_web.image_job.ingest_from_docker", &json!([[], {}, {}]));
    rig.broker.submit.submit(vec![ingest]).await.unwrap();
    let letter = parked(&rig).await;
    assert!(
        letter.reason.contains("ingest_from_docker") && letter.reason.contains("celery.forward_unknown_to"),
        "{}",
        letter.reason
    );
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_follow_a_task_is_refused_and_never_dropped() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let next = json!({"task": "other", "args": [], "kwargs": {}, "options": {}, "immutable": false});
    let body = json!([["busybox"], {}, {"chain": [next]}]);
    rig.broker.submit.submit(vec![docker_run(&body)]).await.unwrap();
    let record = rig.finished(&task()).await;
    let Some(Outcome::Dead { reason }) = record.outcome else { panic!() };
    assert!(reason.contains("canvas not supported") && reason.contains("a chain"), "{reason}");
    assert_eq!(parked(&rig).await.reason, reason);
    assert!(worker.drained().await);
}
