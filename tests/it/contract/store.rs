//! What every store must do.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use longshore::store::{
    Expected, Outcome, Owner, PhaseTimes, Put, Record, RecordQuery, ResultStore, Retention, Revision, Status,
};
use longshore::task::Fence;

use super::dock::{Dock, queue, task};

/// Read from a document, as a store reads it: fields that are of no interest here get their defaults.
fn record(name: &str, status: Status) -> Record {
    serde_json::from_value(serde_json::json!({
        "id": name,
        "kind": "docker_run",
        "queue": "default",
        "priority": 5,
        "generation": 0,
        "status": status,
        "fence": 10,
        "attempts": 1,
        "unfinished_starts": 0,
        "message": "1",
        "times": {"changed": in_micros(Timestamp::now())},
    }))
    .unwrap()
}

/// Stores keep microseconds.
fn in_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap()
}

fn ago(seconds: u64) -> Timestamp {
    in_micros(Timestamp::now() - Duration::from_secs(seconds))
}

fn changed(record: Record, at: Timestamp) -> Record {
    Record { times: PhaseTimes { changed: Some(at), ..record.times.clone() }, ..record }
}

fn owing(record: Record, sinks: &[&str]) -> Record {
    Record { owed: sinks.iter().map(|sink| (*sink).to_owned()).collect(), ..record }
}

async fn stored(store: &dyn ResultStore, record: &Record, expected: Expected) -> Revision {
    match store.put(record, expected).await.unwrap() {
        Put::Stored(revision) => revision,
        Put::Conflict(found) => panic!("a conflict with {found:?}"),
    }
}

async fn add(store: &dyn ResultStore, record: &Record) -> Revision {
    stored(store, record, Expected::Absent).await
}

async fn listed(store: &dyn ResultStore, query: RecordQuery) -> Vec<String> {
    store.list(&query).await.unwrap().into_iter().map(|record| record.id.to_string()).collect()
}

pub(crate) async fn a_record_comes_back_as_it_was_put(dock: &impl Dock) {
    let store = dock.store().await;
    assert_eq!(store.load(&task("a")).await.unwrap(), None);
    let mut full = owing(record("a", Status::Succeeded), &["celery", "girder"]);
    full.outcome = Some(Outcome::Succeeded);
    full.lease_until = Some(ago(5));
    full.owner = Some(Owner {
        worker: "w".to_owned(),
        incarnation: "1".to_owned(),
        instance: "i".to_owned(),
        host: "here".to_owned(),
    });
    full.labels = BTreeMap::from([("study".to_owned(), "ä b".to_owned())]);
    full.details.log_tail = "a\n\"b\"\u{0}".repeat(2_000);
    full.details.cpu_seconds = Some(0.1);
    full.details.result = serde_json::json!({"n": [1, -2, 2.5e300, null]});
    let revision = add(&*store, &full).await;
    let found = store.load(&task("a")).await.unwrap().unwrap();
    assert_eq!(found.record, full);
    assert_eq!(found.revision, revision);
    assert_eq!(store.list(&RecordQuery::default()).await.unwrap(), [full]);
}

pub(crate) async fn of_two_who_expect_the_same_one_wins(dock: &impl Dock) {
    let store = dock.store().await;
    let first = record("a", Status::Staging);
    let revision = add(&*store, &first).await;
    let other = Record { attempts: 9, ..first.clone() };
    match store.put(&other, Expected::Absent).await.unwrap() {
        Put::Conflict(Some(found)) => assert_eq!((found.record, found.revision), (first.clone(), revision)),
        unexpected => panic!("{unexpected:?}"),
    }
    let second = Record { status: Status::Running, ..first.clone() };
    let next = stored(&*store, &second, Expected::At(revision)).await;
    assert_ne!(next, revision);
    match store.put(&other, Expected::At(revision)).await.unwrap() {
        Put::Conflict(Some(found)) => assert_eq!((found.record, found.revision), (second, next)),
        unexpected => panic!("{unexpected:?}"),
    }
    let missing = record("missing", Status::Running);
    assert_eq!(store.put(&missing, Expected::At(revision)).await.unwrap(), Put::Conflict(None));
    // At the same time, and not only one after another.
    let claims: Vec<Record> =
        (0..8).map(|n| Record { attempts: n, ..record("b", Status::Staging) }).collect();
    let puts = claims.iter().map(|claim| store.put(claim, Expected::Absent));
    let results = futures_util::future::join_all(puts).await;
    let winners = results.iter().filter(|put| matches!(put, Ok(Put::Stored(_)))).count();
    assert_eq!(winners, 1, "{results:?}");
}

pub(crate) async fn the_fence_never_goes_back(dock: &impl Dock) {
    let store = dock.store().await;
    let current = Record { fence: Fence(20), ..record("a", Status::Running) };
    let revision = add(&*store, &current).await;
    let older = Record { fence: Fence(19), ..current.clone() };
    match store.put(&older, Expected::At(revision)).await.unwrap() {
        Put::Conflict(Some(found)) => assert_eq!(found.record, current),
        unexpected => panic!("{unexpected:?}"),
    }
    let revision = stored(&*store, &current, Expected::At(revision)).await;
    stored(&*store, &Record { fence: Fence(21), ..current }, Expected::At(revision)).await;
}

pub(crate) async fn a_touch_prolongs_the_current_attempt_only(dock: &impl Dock) {
    let store = dock.store().await;
    let running = record("a", Status::Running);
    let revision = add(&*store, &running).await;
    let until = in_micros(Timestamp::now() + Duration::from_secs(60));
    assert!(store.touch(&task("a"), Fence(10), until).await.unwrap());
    let found = store.load(&task("a")).await.unwrap().unwrap();
    assert_eq!(found.record, Record { lease_until: Some(until), ..running.clone() });
    // Whoever decided on the lease as it was before is told.
    assert_ne!(found.revision, revision);
    assert!(matches!(store.put(&running, Expected::At(revision)).await.unwrap(), Put::Conflict(Some(_))));
    assert!(!store.touch(&task("a"), Fence(9), until).await.unwrap());
    assert!(!store.touch(&task("a"), Fence(11), until).await.unwrap());
    assert!(!store.touch(&task("missing"), Fence(10), until).await.unwrap());
    for (name, status) in [("s", Status::Succeeded), ("f", Status::Failed), ("c", Status::Canceled)] {
        add(&*store, &record(name, status)).await;
        assert!(!store.touch(&task(name), Fence(10), until).await.unwrap(), "{name} is finished");
    }
}

pub(crate) async fn a_served_sink_is_struck_off_the_outbox(dock: &impl Dock) {
    let store = dock.store().await;
    let finished = owing(record("a", Status::Succeeded), &["celery", "events", "girder"]);
    let revision = add(&*store, &finished).await;
    let left = async || store.load(&task("a")).await.unwrap().unwrap().record.owed;
    store.fulfil(&task("a"), Fence(9), "events").await.unwrap();
    store.fulfil(&task("a"), Fence(10), "unknown").await.unwrap();
    assert_eq!(left().await, finished.owed);
    for _ in 0..2 {
        store.fulfil(&task("a"), Fence(10), "events").await.unwrap();
        assert_eq!(left().await, owing(finished.clone(), &["celery", "girder"]).owed);
    }
    let stale = store.put(&finished, Expected::At(revision)).await.unwrap();
    assert!(matches!(stale, Put::Conflict(Some(_))), "a stale put would owe the sink again");
    store.fulfil(&task("a"), Fence(10), "girder").await.unwrap();
    store.fulfil(&task("a"), Fence(10), "celery").await.unwrap();
    assert!(left().await.is_empty());
    store.fulfil(&task("missing"), Fence(10), "celery").await.unwrap();
}

pub(crate) async fn records_are_found_by_state_queue_label_and_time(dock: &impl Dock) {
    let store = dock.store().await;
    let labelled = |record: Record, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Record { labels: labels.collect(), ..record }
    };
    let aged = |name: &str, status, seconds| changed(record(name, status), ago(seconds));
    let both = [("study", "x"), ("site", "north")];
    add(&*store, &labelled(aged("old", Status::Succeeded, 100), &both)).await;
    add(&*store, &Record { queue: queue("gpu"), ..aged("gpu", Status::Failed, 80) }).await;
    let mut run = labelled(aged("run", Status::Staging, 60), &[("study", "x")]);
    let revision = add(&*store, &run).await;
    add(&*store, &aged("new", Status::Succeeded, 20)).await;

    let all = RecordQuery::default;
    assert_eq!(listed(&*store, all()).await, ["new", "run", "gpu", "old"]);
    assert_eq!(listed(&*store, RecordQuery { limit: 2, ..all() }).await, ["new", "run"]);
    let status = |status: &[Status]| RecordQuery { status: status.to_vec(), ..all() };
    assert_eq!(listed(&*store, status(&[Status::Succeeded])).await, ["new", "old"]);
    assert_eq!(listed(&*store, status(&[Status::Failed, Status::Staging])).await, ["run", "gpu"]);
    assert!(listed(&*store, status(&[Status::Dead])).await.is_empty());
    assert_eq!(listed(&*store, RecordQuery { queue: Some(queue("gpu")), ..all() }).await, ["gpu"]);
    assert_eq!(listed(&*store, RecordQuery { since: Some(ago(70)), ..all() }).await, ["new", "run"]);
    let labels = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        RecordQuery { labels: labels.collect(), ..all() }
    };
    assert_eq!(listed(&*store, labels(&[("study", "x")])).await, ["run", "old"]);
    assert_eq!(listed(&*store, labels(&both)).await, ["old"]);
    assert!(listed(&*store, labels(&[("study", "y")])).await.is_empty());
    let narrow =
        RecordQuery { status: vec![Status::Staging], since: Some(ago(70)), ..labels(&[("study", "x")]) };
    assert_eq!(listed(&*store, narrow).await, ["run"]);

    // A change moves a record to where it now belongs.
    run = changed(labelled(Record { status: Status::Succeeded, ..run }, &[("study", "y")]), ago(0));
    stored(&*store, &run, Expected::At(revision)).await;
    assert_eq!(listed(&*store, status(&[Status::Succeeded])).await, ["run", "new", "old"]);
    assert_eq!(listed(&*store, labels(&[("study", "x")])).await, ["old"]);
    assert_eq!(listed(&*store, labels(&[("study", "y")])).await, ["run"]);
}

pub(crate) async fn an_open_outbox_is_found_once_nobody_works_on_it(dock: &impl Dock) {
    let store = dock.store().await;
    let until = |record: Record, lease_until| Record { lease_until, ..record };
    let open = |name: &str| owing(record(name, Status::Failed), &["events"]);
    add(&*store, &until(open("lapsed"), Some(ago(1)))).await;
    add(&*store, &until(open("held"), Some(Timestamp::now() + Duration::from_secs(60)))).await;
    add(&*store, &open("free")).await;
    add(&*store, &record("served", Status::Failed)).await;
    let query = || RecordQuery { owing: true, ..RecordQuery::default() };
    let mut found = listed(&*store, query()).await;
    found.sort();
    assert_eq!(found, ["free", "lapsed"]);
    store.fulfil(&task("free"), Fence(10), "events").await.unwrap();
    assert_eq!(listed(&*store, query()).await, ["lapsed"]);
    let elsewhere = RecordQuery { queue: Some(queue("gpu")), ..query() };
    assert!(listed(&*store, elsewhere).await.is_empty());
}

fn retention(succeeded: u64, failed: u64, bytes: u64) -> Retention {
    Retention { succeeded: Duration::from_secs(succeeded), failed: Duration::from_secs(failed), bytes }
}

pub(crate) async fn old_records_go_unless_they_are_unfinished_or_owe(dock: &impl Dock) {
    let store = dock.store().await;
    let old = |name: &str, status| changed(record(name, status), ago(1_000));
    for (name, status) in [
        ("succeeded", Status::Succeeded),
        ("canceled", Status::Canceled),
        ("failed", Status::Failed),
        ("dead", Status::Dead),
        ("running", Status::Running),
        ("retrying", Status::Retrying),
    ] {
        add(&*store, &old(name, status)).await;
    }
    add(&*store, &owing(old("owing", Status::Succeeded), &["events"])).await;
    add(&*store, &Record { queue: queue("gpu"), ..old("elsewhere", Status::Succeeded) }).await;
    add(&*store, &record("fresh", Status::Succeeded)).await;
    assert_eq!(store.sweep(&retention(2_000, 2_000, 0)).await.unwrap(), 0);
    assert_eq!(store.sweep(&retention(500, 2_000, 0)).await.unwrap(), 3);
    let mut left = listed(&*store, RecordQuery::default()).await;
    left.sort();
    assert_eq!(left, ["dead", "failed", "fresh", "owing", "retrying", "running"]);
    assert_eq!(store.sweep(&retention(2_000, 500, 0)).await.unwrap(), 2);
    assert_eq!(store.load(&task("failed")).await.unwrap(), None);
}

pub(crate) async fn beyond_their_size_the_oldest_records_go(dock: &impl Dock) {
    let store = dock.store().await;
    for number in 0..20_u64 {
        let mut big = changed(record(&format!("r{number:02}"), Status::Succeeded), ago(100 - number));
        big.details.log_tail = "x".repeat(10_000);
        if number == 0 {
            big.status = Status::Running;
        }
        add(&*store, &big).await;
    }
    let removed = store.sweep(&retention(1_000, 1_000, 110_000)).await.unwrap();
    assert!((9..=12).contains(&removed), "{removed} of 20 records of 10 kB are beyond 110 kB");
    let left = listed(&*store, RecordQuery::default()).await;
    assert_eq!(left.len() as u64, 20 - removed);
    assert_eq!(left[0], "r19");
    assert_eq!(left.last().unwrap(), "r00", "what runs is never removed");
    assert_eq!(store.sweep(&retention(1_000, 1_000, 110_000)).await.unwrap(), 0);
}

pub(crate) async fn an_empty_store_lists_nothing_and_sweeps_nothing(dock: &impl Dock) {
    let store = dock.store().await;
    assert_eq!(store.list(&RecordQuery::default()).await.unwrap(), []);
    assert_eq!(
        store.list(&RecordQuery { limit: 1, owing: true, ..RecordQuery::default() }).await.unwrap(),
        []
    );
    assert_eq!(store.sweep(&retention(1, 1, 1)).await.unwrap(), 0);
}

pub(crate) async fn no_revision_comes_back_with_a_new_record(dock: &impl Dock) {
    let store = dock.store().await;
    let old = changed(record("a", Status::Succeeded), ago(1_000));
    let first = add(&*store, &old).await;
    assert_eq!(store.sweep(&retention(1, 1, 0)).await.unwrap(), 1);
    let second = add(&*store, &old).await;
    assert_ne!(first, second);
    let stale = store.put(&old, Expected::At(first)).await.unwrap();
    assert!(matches!(stale, Put::Conflict(Some(_))), "{stale:?}");
}
