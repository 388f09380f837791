//! The end of a task in one step where queue, events and records lie in one file: all of it happens or nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use longshore::broker::{Broker, Delivery, Ending, Settled, Settlement};
use longshore::events::{Event, EventData, EventFilter, EventStart};
use longshore::sqlite::Database;
use longshore::store::{Expected, Outcome, Put, Record, ResultStore, Revision, Status};
use longshore::task::Fence;

use super::{open, open_store};
use crate::contract::dock::{LONG, assert_nothing_comes, fetch_one, message, queue, submit, task};

/// A task that a worker is at.
struct Work {
    broker: Broker,
    store: Arc<dyn ResultStore>,
    delivery: Delivery,
    running: Record,
    revision: Revision,
}

impl Work {
    async fn begun(file: &Path, lease: Duration) -> Self {
        let (broker, store) = (open(file, "one", lease).await, open_store(file).await);
        submit(&broker, vec![message("t")]).await;
        let delivery = fetch_one(&broker).await;
        let running: Record = serde_json::from_value(serde_json::json!({
            "id": "t", "kind": "longshore.ping", "queue": "default", "priority": 5, "generation": 0,
            "status": "running", "fence": 10, "attempts": 1, "unfinished_starts": 1, "times": {},
        }))
        .unwrap();
        let Put::Stored(revision) = store.put(&running, Expected::Absent).await.unwrap() else { panic!() };
        Self { broker, store, delivery, running, revision }
    }

    fn ending(&self) -> Ending {
        let finished =
            Record { status: Status::Succeeded, outcome: Some(Outcome::Succeeded), ..self.running.clone() };
        Ending {
            record: self.store.part(&finished, self.revision).unwrap(),
            settlement: self.delivery.lease.settler.acknowledgement().unwrap(),
        }
    }

    /// Ends it behind an event of another task; the indexes of what was refused.
    async fn end(&self) -> Vec<usize> {
        let events =
            [event("other", EventData::Queued), event("t", EventData::Succeeded { exit_code: None })];
        self.broker.topic.end(&events, vec![(1, self.ending())]).await.unwrap()
    }

    async fn told(&self) -> Vec<String> {
        let events = self.broker.topic.replay(EventFilter::default(), EventStart::Oldest).await.unwrap();
        let events: Vec<Event> = events.try_collect().await.unwrap();
        events.iter().map(|event| format!("{} {}", event.task, event.kind().as_str())).collect()
    }

    async fn status(&self) -> Status {
        self.store.load(&task("t")).await.unwrap().unwrap().record.status
    }

    async fn messages(&self) -> u64 {
        let queues = self.broker.admin.queues().await.unwrap();
        queues.iter().map(|queue| queue.ready + queue.leased + queue.delayed).sum()
    }
}

fn event(name: &str, data: EventData) -> Event {
    Event {
        task: task(name),
        queue: queue("default"),
        fence: Fence(10),
        number: 2,
        time: Timestamp::now(),
        data,
    }
}

#[tokio::test]
async fn an_end_is_recorded_told_and_settled_by_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let work = Work::begun(&file, LONG).await;
    let database = Database::open(&file).unwrap();
    let before = database.commits();
    assert_eq!(work.end().await, [0; 0]);
    assert_eq!(database.commits() - before, 1);
    assert_eq!((work.status().await, work.messages().await), (Status::Succeeded, 0));
    assert_eq!(work.told().await, ["other queued", "t succeeded"]);
}

#[tokio::test]
async fn of_an_end_whose_record_changed_meanwhile_nothing_happens() {
    let folder = tempfile::tempdir().unwrap();
    let work = Work::begun(&folder.path().join("longshore.db"), LONG).await;
    let ours = work.store.touch(&task("t"), Fence(10), Timestamp::now() + LONG).await.unwrap();
    assert!(ours, "the keeper prolongs the lease");
    assert_eq!(work.end().await, [1]);
    assert_eq!((work.status().await, work.messages().await), (Status::Running, 1));
    assert_eq!(work.told().await, ["other queued"], "what is no end is told all the same");
    let settled = work.delivery.lease.settler.settle(Settlement::Ack).await;
    assert_eq!(settled, Settled::Settled, "the message is still this worker's");
}

#[tokio::test]
async fn an_end_holds_also_when_its_message_is_anothers_by_now() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let work = Work::begun(&file, Duration::from_millis(200)).await;
    let other = open(&file, "two", LONG).await;
    let theirs = fetch_one(&other).await;
    assert_eq!(work.end().await, [0; 0], "the record decides, and nobody else has begun in it");
    assert_eq!((work.status().await, work.messages().await), (Status::Succeeded, 1));
    assert_eq!(theirs.lease.settler.settle(Settlement::Ack).await, Settled::Settled);
    assert_nothing_comes(&other).await;
}

#[tokio::test]
async fn one_file_is_one_place_however_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let broker = open(&file, "one", LONG).await;
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let place = broker.topic.place();
    assert!(place.is_some());
    assert_eq!(open_store(&link.join("longshore.db")).await.place(), place);
    assert_ne!(open_store(&folder.path().join("other.db")).await.place(), place);
}
