//! What only the embedded database does: several processes on one file, crashes, and the file itself.

mod child;
mod crashes;
mod endings;
mod file;
mod processes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore::broker::{self, Broker, BrokerUrl, OpenOptions};
use longshore::store::{self, ResultStore};

use crate::contract::dock::queue;

fn options(worker: &str, lease: Duration) -> OpenOptions {
    OpenOptions {
        queues: vec![queue("default")],
        worker: worker.to_owned(),
        incarnation: "1".to_owned(),
        lease,
        connect_timeout: Duration::from_secs(20),
        event_age: Duration::from_secs(3_600),
        event_count: 1_000,
    }
}

/// The broker in the file at `path`, for a worker on the queue `default`.
async fn open(path: &Path, worker: &str, lease: Duration) -> Broker {
    broker::open(&BrokerUrl::sqlite(path), &options(worker, lease)).await.unwrap()
}

/// The store in the file at `path`.
async fn open_store(path: &Path) -> Arc<dyn ResultStore> {
    store::open(&BrokerUrl::sqlite(path), &options("one", Duration::from_secs(60))).await.unwrap()
}
