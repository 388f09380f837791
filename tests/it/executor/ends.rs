//! Cancel in every phase, drain and stop.

use std::sync::Arc;
use std::time::Duration;

use longshore::broker::Command;
use longshore::lifecycle::LifePhase;
use longshore::store::{Outcome, Status};
use longshore::task::Task;
use tokio::sync::Semaphore;

use super::rig::{Rig, Scripted, settings, task};

async fn cancel(rig: &Rig, task: &Task) {
    let command = Command::Cancel { task: task.id.clone(), reason: "not wanted".to_owned() };
    rig.broker.topic.command(command).await.unwrap();
}

async fn canceled(rig: &Rig, task: &Task) {
    let record = rig.finished(task).await;
    assert_eq!(record.status, Status::Canceled);
    assert_eq!(record.outcome, Some(Outcome::Canceled { reason: "not wanted".to_owned() }));
}

#[tokio::test(start_paused = true)]
async fn canceled_before_it_starts_never_starts() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let task = task(&[]);
    rig.submit(&task).await;
    cancel(&rig, &task).await;
    let worker = rig.start("a", &script, settings(1));
    canceled(&rig, &task).await;
    assert_eq!(script.count("stage"), 0);
    assert!(worker.drained().await);
    assert_eq!(rig.messages().await, 0);
    assert_eq!(rig.broker.topic.cancel_requested(&task.id).await.unwrap(), None, "the request is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_staging_waiting_and_running_tasks() {
    let rig = Rig::new().await;
    let script = Scripted { may_stage: Arc::new(Semaphore::new(2)), ..Scripted::held() };
    let worker = rig.start("a", &script, settings(1));
    let tasks: Vec<Task> = (0..2).map(|_| task(&[])).collect();
    for task in &tasks {
        rig.submit(task).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((script.count("stage"), script.count("run")), (2, 1));
    let (running, waiting) = {
        let steps = script.steps.lock().unwrap();
        let running = steps.iter().find(|(_, step)| *step == "run").unwrap().0.clone();
        let (a, b) = (&tasks[0], &tasks[1]);
        if a.id.as_str() == running { (a, b) } else { (b, a) }
    };
    cancel(&rig, waiting).await;
    canceled(&rig, waiting).await;
    assert_eq!(script.count("discard"), 1, "what was prepared is taken apart");
    let staging = task(&[]);
    rig.submit(&staging).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.count("stage"), 3);
    cancel(&rig, &staging).await;
    canceled(&rig, &staging).await;
    cancel(&rig, running).await;
    canceled(&rig, running).await;
    assert_eq!(script.count("canceled"), 1);
    assert!(worker.drained().await);
    assert_eq!(rig.messages().await, 0);
}

#[tokio::test(start_paused = true)]
async fn the_producers_own_cancel_is_asked_before_the_start() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[("admit", "not wanted")]);
    rig.submit(&task).await;
    canceled(&rig, &task).await;
    assert_eq!(script.count("stage"), 0);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn an_expired_task_never_starts() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    let mut task = task(&[]);
    task.expires = Some(jiff::Timestamp::now() - Duration::from_secs(1));
    rig.submit(&task).await;
    let record = rig.finished(&task).await;
    assert_eq!(record.status, Status::Canceled);
    assert_eq!(script.count("stage"), 0);
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_back_the_rest_uncharged() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let tasks: Vec<Task> = (0..3).map(|_| task(&[])).collect();
    for task in &tasks {
        rig.submit(task).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.lifecycle.advance(LifePhase::Draining);
    let ended = tokio::spawn(worker.executor.ended());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((script.count("discard"), script.count("interrupted")), (1, 0));
    assert_eq!(rig.messages().await, 3, "one runs on, one was given back, one never left");
    script.may_end.add_permits(1);
    assert!(ended.await.unwrap());
    assert_eq!(rig.messages().await, 2);
    let other = Scripted::free();
    let next = rig.start("b", &other, settings(1));
    for task in &tasks {
        let record = rig.finished(task).await;
        assert_eq!((record.status, record.attempts), (Status::Succeeded, 1));
    }
    assert!(next.drained().await);
}

#[tokio::test(start_paused = true)]
async fn what_runs_too_long_into_a_drain_is_interrupted_and_given_back() {
    let rig = Rig::new().await;
    let script = Scripted::held();
    let worker = rig.start("a", &script, settings(1));
    let task = task(&[]);
    rig.submit(&task).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(worker.drained().await, "the drain's 60 s pass, then it is interrupted and settled");
    assert_eq!(script.count("interrupted"), 1);
    let record = rig.store.load(&task.id).await.unwrap().unwrap().record;
    assert_eq!((record.status, record.attempts, record.owner), (Status::Released, 0, None));
    let other = Scripted::free();
    let next = rig.start("b", &other, settings(1));
    assert_eq!(rig.finished(&task).await.attempts, 1);
    assert!(next.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_paused_before_its_first_fetch_works_when_it_is_resumed() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    // Nothing that was started has had its turn yet.
    worker.lifecycle.advance(LifePhase::Paused);
    let task = task(&[]);
    rig.submit(&task).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.count("stage"), 0);
    worker.lifecycle.resume();
    rig.finished(&task).await;
    assert!(worker.drained().await);
}

#[tokio::test(start_paused = true)]
async fn a_paused_worker_takes_nothing_until_it_is_resumed() {
    let rig = Rig::new().await;
    let script = Scripted::free();
    let worker = rig.start("a", &script, settings(1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.broker.topic.command(Command::Drain { worker: "a".to_owned() }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let task = task(&[]);
    rig.submit(&task).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(script.count("stage"), 0);
    rig.broker.topic.command(Command::Resume { worker: "a".to_owned() }).await.unwrap();
    rig.finished(&task).await;
    assert!(worker.drained().await);
}
