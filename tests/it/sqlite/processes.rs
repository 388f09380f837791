//! Several processes on one file.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use longshore::broker::{Command, Settlement};
use longshore::cancel::CancelScope;

use super::child::{Other, Part};
use super::open;
use crate::contract::dock::{LONG, message, settle, submit, task};

/// Far below the 5 s after which a waiter looks by itself.
const SOON: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_submission_of_another_process_rings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let worker = open(&file, "worker", LONG).await;
    let mut other = Other::start(Part::SubmitsWhenTold, &file);
    for round in 0..5 {
        let name = format!("m{round}");
        let stop = CancelScope::new();
        let (fetched, told) = tokio::join!(worker.source.fetch(1, &stop), async {
            // Long enough for the fetch to have looked and found nothing.
            tokio::time::sleep(Duration::from_millis(50)).await;
            other.tell(&name);
            Instant::now()
        });
        let delivery = fetched.unwrap().remove(0);
        assert!(told.elapsed() < SOON, "heard after {:?}", told.elapsed());
        assert_eq!(delivery.body, name.as_bytes());
        settle(delivery, Settlement::Ack).await;
    }
}

#[tokio::test]
async fn a_cancel_is_heard_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let client = open(&file, "client", LONG).await;
    let mut other = Other::start(Part::HearsCancels, &file);
    for round in 0..3 {
        // So that it waits, and is not just looking.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = format!("t{round}");
        let sent = Instant::now();
        let reason = "by hand".to_owned();
        client.topic.command(Command::Cancel { task: task(&id), reason }).await.unwrap();
        assert_eq!(other.hear(), Some(format!("canceled {id}")));
        assert!(sent.elapsed() < SOON, "heard after {:?}", sent.elapsed());
    }
}

#[tokio::test]
async fn two_processes_share_the_work_without_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let client = open(&file, "client", LONG).await;
    let mut others = [Other::start(Part::Works, &file), Other::start(Part::Works, &file)];
    for batch in 0..20 {
        submit(&client, (0..10).map(|n| message(&format!("m{batch}-{n}"))).collect()).await;
    }
    let said = others.iter_mut().flat_map(Other::hear_all);
    let acked: Vec<String> = said.filter_map(|said| said.strip_prefix("acked ").map(str::to_owned)).collect();
    let distinct: BTreeSet<&String> = acked.iter().collect();
    assert_eq!((acked.len(), distinct.len()), (200, 200));
    assert_eq!(client.admin.queues().await.unwrap()[0].ready, 0);
}

#[tokio::test]
async fn many_processes_may_make_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/longshore.db");
    let starts: Vec<_> = (0..4)
        .map(|number| {
            let file = file.clone();
            std::thread::spawn(move || {
                let mut other = Other::start(Part::SubmitsWhenTold, &file);
                other.tell(&format!("m{number}"));
                assert_eq!(other.hear(), Some(format!("m{number}")));
            })
        })
        .collect();
    for start in starts {
        start.join().unwrap();
    }
    let client = open(&file, "client", LONG).await;
    assert_eq!(client.admin.queues().await.unwrap()[0].ready, 4);
}

#[tokio::test]
async fn the_sockets_of_the_killed_are_removed_by_the_next_who_rings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let client = open(&file, "client", LONG).await;
    let mut other = Other::start(Part::HearsCancels, &file);
    let sockets = || std::fs::read_dir(folder.path().join("longshore.db.bell")).unwrap().count();
    assert_eq!(sockets(), 1);
    other.kill();
    assert_eq!(sockets(), 1, "a killed process removes nothing");
    client.topic.command(Command::Drain { worker: "any".to_owned() }).await.unwrap();
    // The next commit comes after the first one's ring.
    client.topic.command(Command::Drain { worker: "any".to_owned() }).await.unwrap();
    assert_eq!(sockets(), 0);
}

#[tokio::test]
async fn the_bell_rings_however_long_the_path_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("d".repeat(120)).join("longshore.db");
    let client = open(&file, "client", LONG).await;
    let mut other = Other::start(Part::HearsCancels, &file);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sent = Instant::now();
    let reason = "by hand".to_owned();
    client.topic.command(Command::Cancel { task: task("t"), reason }).await.unwrap();
    assert_eq!(other.hear().as_deref(), Some("canceled t"));
    assert!(sent.elapsed() < SOON, "heard after {:?}", sent.elapsed());
}
