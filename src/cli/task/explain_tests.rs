use super::*;
use crate::broker::{Pool, Waiting};
use crate::task::Priority;

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
        standing: Standing::Queued(message),
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
