//! Celery messages at the door: read, refused with an answer, or passed on.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::broker::{Contents, DeadSummary, Submission, WaitingQuery};
use longshore::store::{Expected, Outcome, Record, Status};
use longshore::task::celery::CeleryContext;
use longshore::task::celery::canvas::{self, Ended};
use longshore::task::json::Json;
use longshore::task::message::{self as messages, Properties};
use longshore::task::{ArgMap, Decoded, Fence, Limits, Priority, QueueName, Task, TaskId};
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
        properties: Properties::default(),
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

/// A ping in Celery's words that is followed by `embed`.
fn ping(embed: &Value) -> Submission {
    message("longshore.ping", &json!([[], {}, embed]))
}

fn signature(task: &str, options: &Value) -> Value {
    json!({"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": null, "immutable": true})
}

/// The messages that wait in the queue `celery`: id, task and body.
async fn called(rig: &Rig) -> Vec<(String, String, Value)> {
    let query = WaitingQuery {
        queue: Some(QueueName::new("celery").unwrap()),
        contents: Contents::Given,
        ..WaitingQuery::default()
    };
    let waiting = rig.broker.admin.waiting(&query).await.unwrap();
    let read = waiting.into_iter().map(|one| {
        let raw = one.raw.unwrap();
        let name = raw.header("task").and_then(Json::text).unwrap().to_owned();
        (one.task.to_string(), name, serde_json::from_slice(&raw.body).unwrap())
    });
    read.collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_to_follow_a_task_stands_in_its_queue_when_the_task_is_settled() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let embed = json!({
        "chain": [signature("last", &json!({"task_id": "l"})), signature("next", &json!({"task_id": "n"}))],
        "callbacks": [signature("callback", &json!({}))],
        "errbacks": [signature("errback", &json!({}))],
    });
    rig.broker.submit.submit(vec![ping(&embed)]).await.unwrap();
    assert_eq!(rig.finished(&task()).await.status, Status::Succeeded);
    assert!(rig.until(&task(), "owes nothing", |record| record.owed.is_empty()).await.owed.is_empty());
    let mut all = called(&rig).await;
    all.sort_by(|a, b| a.1.cmp(&b.1));
    let [(_, callback, _), (id, next, body)] = &all[..] else { panic!("{all:?}") };
    assert_eq!((callback.as_str(), id.as_str(), next.as_str()), ("callback", "n", "next"));
    assert_eq!(body[2]["chain"][0]["task"], "last");
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_followed_by_its_errbacks_alone_and_a_canceled_one_by_nothing() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let embed =
        json!({"chain": [signature("next", &json!({}))], "errbacks": [{"task": "errback", "args": ["own"]}]});
    let fails = message("longshore.ping", &json!([[], {"fail": "permanent"}, embed]));
    rig.broker.submit.submit(vec![fails]).await.unwrap();
    rig.until(&task(), "owes nothing", |record| record.status == Status::Failed && record.owed.is_empty())
        .await;
    let all = called(&rig).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].1.as_str(), &all[0].2[0]), ("errback", &json!([ID, "own"])));
    let other = TaskId::new("other").unwrap();
    let mut late = ping(&embed);
    late.task = other.clone();
    late.headers.insert("id".to_owned(), json!("other"));
    late.headers.insert("expires".to_owned(), json!("2020-01-01T00:00:00"));
    late.dedup_id = "other".to_owned();
    rig.broker.submit.submit(vec![late]).await.unwrap();
    let expired = Task { id: other, ..task() };
    rig.until(&expired, "is over", |record| record.status == Status::Canceled && record.owed.is_empty())
        .await;
    assert_eq!(called(&rig).await.len(), 1);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_worker_did_not_call_is_called_by_whoever_tidies_up_and_is_the_same_task() {
    let rig = Rig::new().await;
    let raw = ping(&json!({"callbacks": [signature("longshore.ping", &json!({"queue": "default"}))]})).raw();
    let Ok(Decoded::Task(ended)) = messages::decode(&raw, &Limits::default()) else { panic!() };
    let first = canvas::successors(
        &ended,
        &CeleryContext::of(&ended).unwrap(),
        (Ended::Well, jiff::Timestamp::now()),
        &Limits::default(),
    );
    let id = first.unwrap()[0].id.clone();
    let record = Record {
        status: Status::Succeeded,
        outcome: Some(Outcome::Succeeded),
        fence: Fence(7),
        owed: ["successors".to_owned()].into(),
        source: Some(rig.broker.name.clone()),
        envelope: serde_json::to_value(&ended).ok(),
        ..Record::empty(&ended)
    };
    rig.store.put(&record, Expected::Absent).await.unwrap();
    let worker = rig.start("a", &Scripted::free(), settings(1));
    let callback = Task { id, ..task() };
    assert_eq!(rig.finished(&callback).await.status, Status::Succeeded);
    // As if its fulfilment had been lost: it is called again, and not run again.
    let found = rig.store.load(&ended.id).await.unwrap().unwrap();
    assert!(found.record.owed.is_empty());
    let again = Record { owed: ["successors".to_owned()].into(), ..found.record };
    rig.store.put(&again, Expected::At(found.revision)).await.unwrap();
    rig.until(&ended, "is told again", |record| record.owed.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.messages().await, 0);
    assert_eq!(rig.finished(&callback).await.attempts, 1);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_chord_is_refused_and_those_who_wait_for_it_hear_why() {
    let rig = Rig::new().await;
    let worker = rig.start("a", &Scripted::free(), settings(1));
    rig.broker
        .submit
        .submit(vec![ping(&json!({"chord": signature("body", &json!({"task_id": "b"}))}))])
        .await
        .unwrap();
    let record = rig.finished(&task()).await;
    let Some(Outcome::Dead { reason }) = record.outcome else { panic!() };
    assert!(reason.contains("canvas not supported") && reason.contains("a chord"), "{reason}");
    assert_eq!(parked(&rig).await.reason, reason);
    assert!(worker.drained().await);
}
