//! kill -9 at any moment corrupts nothing and loses nothing that was answered.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use longshore::broker::{Broker, Settlement, WaitingQuery};
use rusqlite::Connection;

use super::child::{Other, Part};
use super::open;
use crate::contract::dock::{LONG, fetch_within, message, settle, submit};

fn assert_sound(file: &Path) {
    let connection = Connection::open(file).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM messages"), count("SELECT count(*) FROM bodies"));
}

async fn waiting(broker: &Broker) -> BTreeSet<String> {
    let query = WaitingQuery { limit: 1_000_000, ..WaitingQuery::default() };
    broker.admin.waiting(&query).await.unwrap().into_iter().map(|waiting| waiting.task.to_string()).collect()
}

#[tokio::test]
async fn what_was_answered_to_a_killed_submitter_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    // Opened before and after: once with the log of a living process, once with that of a dead one.
    for round in 0..3 {
        let mut other = Other::start(Part::SubmitsForEver, &file);
        let mut answered: BTreeSet<String> = (0..200 + round * 77).map(|_| other.hear().unwrap()).collect();
        other.kill();
        answered.extend(other.hear_all());
        assert_sound(&file);
        let broker = open(&file, "one", LONG).await;
        let queued = waiting(&broker).await;
        let lost: Vec<&String> = answered.difference(&queued).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}

#[tokio::test]
async fn what_a_killed_worker_had_not_settled_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let broker = open(&file, "one", LONG).await;
    let all: BTreeSet<String> = (0..300).map(|n| format!("m{n}")).collect();
    submit(&broker, all.iter().map(|name| message(name)).collect()).await;
    let mut said = Vec::new();
    for kill_after in [31, 64, 90] {
        let mut other = Other::start(Part::Works, &file);
        said.extend((0..kill_after).map(|_| other.hear().unwrap()));
        other.kill();
        said.extend(other.hear_all());
        assert_sound(&file);
    }
    let named = |word: &str| -> BTreeSet<String> {
        said.iter().filter_map(|said| said.strip_prefix(word)).map(str::to_owned).collect()
    };
    let (acking, acked) = (named("acking "), named("acked "));

    // Leases of the killed lapse within half a second of their last claim.
    let mut back = BTreeSet::new();
    loop {
        let fetched = fetch_within(&broker, 50, Duration::from_millis(1_500)).await;
        if fetched.is_empty() {
            break;
        }
        for delivery in fetched {
            back.insert(String::from_utf8(delivery.body.to_vec()).unwrap());
            settle(delivery, Settlement::Ack).await;
        }
    }
    assert!(acked.is_disjoint(&back), "settled ones came again: {:?}", acked.intersection(&back));
    let unsettled: BTreeSet<String> = all.difference(&acking).cloned().collect();
    assert!(unsettled.is_subset(&back), "lost: {:?}", unsettled.difference(&back));
    // Each killed one was at most about to settle one.
    assert!(all.len() - acked.len() - back.len() <= 3);
    assert!(waiting(&broker).await.is_empty());
}
