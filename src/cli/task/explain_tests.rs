use super::*;
use crate::broker::{Pool, Waiting};
use crate::task::{Priority, Resources, Task};
use crate::units::Size;

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    now() + jiff::SignedDuration::from_secs(seconds)
}

fn message() -> Waiting {
    Waiting {
        task: TaskId::new("t1").unwrap(),
        queue: QueueName::default(),
        priority: Priority::default(),
        submitted: later(-60),
        not_before: None,
        lease: None,
        ahead: Some(0),
        raw: None,
    }
}

fn worker(queues: &[&str], busy: u32) -> Presence {
    Presence {
        worker: "w1".to_owned(),
        incarnation: "i".to_owned(),
        host: "h".to_owned(),
        version: "0.1.0".to_owned(),
        kinds: vec!["docker_run".to_owned()],
        envelope: 1,
        queues: queues.iter().map(|name| QueueName::new(*name).unwrap()).collect(),
        lanes: 2,
        busy,
        pool: Pool::default(),
        disks: Vec::new(),
        phase: "running".to_owned(),
        seen: now(),
        deadline: later(60),
    }
}

fn queue(intake: Intake) -> QueueInfo {
    QueueInfo { name: QueueName::default(), ready: 1, leased: 0, delayed: 0, dead: 0, intake, oldest: None }
}

fn facts(message: Waiting, workers: Vec<Presence>) -> Facts {
    Facts {
        standing: Standing::Queued(message.clone()),
        message: Some(message),
        asked: Asked::Untold,
        cancel: None,
        queue: Some(queue(Intake::Open)),
        workers,
        now: now(),
    }
}

#[test]
fn each_thing_that_holds_a_queued_task_is_told() {
    let told = |facts: Facts| facts.reasons().join("\n");
    let leased = Waiting { lease: Some((later(30), "w1".to_owned())), ..message() };
    let paused = Facts {
        queue: Some(queue(Intake::Paused)),
        cancel: Some("too late".to_owned()),
        ..facts(message(), vec![worker(&["default"], 0)])
    };
    let stopping = Presence { phase: "draining".to_owned(), ..worker(&["default"], 0) };
    let not_yet = Waiting { not_before: Some(later(60)), ..message() };
    let all = [
        told(facts(message(), vec![])),
        told(facts(message(), vec![worker(&["gpu", "b"], 0)])),
        told(facts(Waiting { ahead: Some(3), ..message() }, vec![worker(&["default"], 2)])),
        told(facts(not_yet, vec![worker(&["default"], 0)])),
        told(facts(leased, vec![worker(&["default"], 0)])),
        told(paused),
        told(facts(message(), vec![stopping])),
        told(facts(message(), vec![worker(&["default"], 0)])),
    ];
    insta::assert_snapshot!(all.join("\n--\n"));
}

/// What is told of a task that asks for `resources`, beside each of `workers`.
fn asking(resources: Resources, workers: Vec<Presence>) -> String {
    let mut task = Task::new("docker_run", crate::task::ArgMap::default());
    task.resources = resources;
    let facts = Facts { asked: Asked::Task(Box::new(task)), ..facts(message(), workers) };
    let workers = facts.fits().into_iter().map(|fit| fit.to_string());
    facts.reasons().into_iter().chain(workers).collect::<Vec<_>>().join("\n")
}

fn pooled(name: &str, pool: Pool) -> Presence {
    Presence { worker: name.to_owned(), pool, ..worker(&["default"], 0) }
}

fn pool() -> Pool {
    Pool { cpus: 4.0, memory: 8 << 30, platform: "linux/amd64".to_owned(), ..Pool::default() }
}

#[test]
fn each_worker_is_told_with_what_it_lacks_for_the_task() {
    let small = pooled("small", Pool { cpus: 1.0, memory: 1 << 30, ..pool() });
    let arm = pooled("arm", Pool { platform: "linux/arm64".to_owned(), ..pool() });
    let gpu = Pool { gpus: vec!["0".to_owned()], custom: [("licence".to_owned(), 1)].into(), ..pool() };
    let elsewhere = Presence { worker: "elsewhere".to_owned(), pool: pool(), ..worker(&["gpu"], 0) };
    let leaving = Presence { phase: "draining".to_owned(), kinds: vec![], ..pooled("leaving", pool()) };
    let full = Presence { busy: 2, ..pooled("full", pool()) };
    let two = Resources { cpus: Some(2.0), memory: Some(Size(2 << 30)), ..Resources::default() };
    let device = Resources { gpus: Some(1), custom: [("licence".to_owned(), 2)].into(), ..two.clone() };
    let amd64 = Resources { platform: Some("linux/amd64".to_owned()), ..two.clone() };
    let all = [
        asking(two.clone(), vec![small.clone(), pooled("large", pool()), elsewhere, leaving]),
        asking(device, vec![small, pooled("gpu", gpu)]),
        asking(amd64, vec![arm, full]),
    ];
    insta::assert_snapshot!(all.join("\n--\n"));
}

#[test]
fn an_envelope_of_a_later_version_and_a_strange_name_are_told_for_what_they_are() {
    let told = |asked: Asked| {
        let facts = Facts { asked, ..facts(message(), vec![worker(&["default"], 0)]) };
        facts.fits().remove(0).why_not.join("; ")
    };
    assert_eq!(told(Asked::Later(2)), "it reads envelopes up to version 1, not 2");
    assert_eq!(told(Asked::Other("app.add".to_owned())), "it knows no tasks of the kind app.add");
    assert_eq!(told(Asked::Untold), "");
    let unreadable = Facts { asked: Asked::Unreadable("x".to_owned()), ..facts(message(), vec![]) };
    assert!(unreadable.reasons()[0].contains("dead letter: x"));
}

#[test]
fn outputs_that_wait_are_told_with_their_keeper_their_time_and_the_remedy() {
    let mut record = Record::empty(&Task::new("docker_run", crate::task::ArgMap::default()));
    record.id = TaskId::new("t1").unwrap();
    record.status = Status::Uploading;
    record.owner = Some(crate::store::Owner {
        worker: "quay".to_owned(),
        incarnation: "1".to_owned(),
        instance: "i".to_owned(),
        host: "pier".to_owned(),
    });
    // The owner died: its lease lapsed, and the outputs are still its own.
    record.lease_until = Some(later(-10));
    record.spooled = Some(crate::store::Spooled {
        since: later(-60),
        until: later(3_600),
        tries: 3,
        next: Some(later(20)),
        error: crate::error::TaskError::permanent("girder_unauthorized", "POST file: Girder answered 401"),
    });
    let told = |record: &Record| {
        let standing = Standing::Known(Box::new(record.clone()));
        Facts { standing, ..facts(message(), vec![worker(&["default"], 0)]) }.reasons().join("\n")
    };
    insta::assert_snapshot!(told(&record), @r"
    its container ended well, but Girder did not take its outputs: POST file: Girder answered 401
    quay on pier keeps them until 2026-11-23T11:00:00Z and tries to bring them away (tried 3 times, again at 2026-11-23T10:00:20Z); then the task fails
    to try now: longshore task upload t1, with --token or --token-file where the token has expired
    ");
    record.spooled.as_mut().unwrap().until = later(-1);
    assert!(told(&record).ends_with("another worker will take it over"));
}
