//! Who works here.

use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::{Broker, Disk, Pool, Presence};

use super::dock::{Dock, LONG, queue};
use crate::support::poll::eventually;

fn presence(worker: &str, lasts: Duration) -> Presence {
    Presence {
        worker: worker.to_owned(),
        incarnation: "1".to_owned(),
        host: "here".to_owned(),
        version: "0.1.0".to_owned(),
        kinds: vec!["docker_run".to_owned()],
        envelope: 1,
        queues: vec![queue("default")],
        lanes: 2,
        busy: 1,
        pool: Pool { cpus: 1.5, gpus: vec!["0".to_owned()], ..Pool::default() },
        disks: vec![Disk { path: "/work".to_owned(), total: 10, free: 3 }],
        phase: "running".to_owned(),
        seen: Timestamp::now(),
        deadline: Timestamp::now() + lasts,
    }
}

async fn names(broker: &Broker) -> Vec<String> {
    broker.fleet.workers().await.unwrap().into_iter().map(|presence| presence.worker).collect()
}

pub(crate) async fn a_presence_is_seen_until_its_deadline(dock: &impl Dock) {
    let (one, other) = (dock.one().await, dock.client("other", &[], LONG).await);
    let stays = presence("stays", LONG);
    one.fleet.announce(&stays).await.unwrap();
    one.fleet.announce(&presence("dies", Duration::from_millis(700))).await.unwrap();
    assert_eq!(names(&other).await, ["dies", "stays"]);
    let gone = async || (names(&other).await == ["stays"]).then_some(());
    eventually(Duration::from_secs(5), "the dead worker is forgotten", gone).await;
    assert_eq!(other.fleet.workers().await.unwrap(), std::slice::from_ref(&stays));
    // Said again, it replaces what was said before.
    let busier = Presence { busy: 2, phase: "draining".to_owned(), ..stays };
    one.fleet.announce(&busier).await.unwrap();
    assert_eq!(other.fleet.workers().await.unwrap(), [busier]);
}

pub(crate) async fn a_worker_that_left_is_not_seen(dock: &impl Dock) {
    let one = dock.one().await;
    one.fleet.announce(&presence("one", LONG)).await.unwrap();
    one.fleet.leave("one").await.unwrap();
    assert!(names(&one).await.is_empty());
    one.fleet.leave("never was here").await.unwrap();
}
