//! What is known of each task: one [`Record`] per id, changed by compare-and-set only.
//!
//! The record is the one authority on attempts: it hands out fences, counts starts, and holds the outbox of what a
//! finished task still owes to sinks. Brokers are at least once; the record is what makes their repetitions harmless.

pub mod journal;
pub mod memory;
pub mod nats;
pub mod record;
pub mod redis;
pub mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

pub use record::{Details, Outcome, Owner, PhaseTimes, Record, Spooled, Status, StreamBytes};

use crate::broker::{BrokerUrl, OpenOptions};
use crate::task::{Fence, QueueName, TaskId};

/// The stores by URL scheme.
pub const STORES: &[StoreAdapter] = &[sqlite::STORE, nats::STORE, redis::STORE, memory::STORE];

/// Opens the store at `url` with the adapter of its scheme.
pub async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Arc<dyn ResultStore>, StoreError> {
    let adapter = STORES.iter().find(|adapter| adapter.schemes.contains(&url.scheme())).ok_or_else(|| {
        let known: Vec<String> = STORES.iter().map(|adapter| format!("  {}", adapter.summary)).collect();
        StoreError::Url(format!(
            "no store is known by the scheme {:?} of {url}; known are:\n{}",
            url.scheme(),
            known.join("\n")
        ))
    })?;
    (adapter.open)(url, options).await
}

/// Opens a store.
pub type OpenStore =
    for<'a> fn(&'a BrokerUrl, &'a OpenOptions) -> BoxFuture<'a, Result<Arc<dyn ResultStore>, StoreError>>;

/// One way of reaching a kind of store.
#[derive(Clone, Copy)]
pub struct StoreAdapter {
    /// The URL schemes it answers to.
    pub schemes: &'static [&'static str],
    /// One line for `--help` and errors.
    pub summary: &'static str,
    /// Opens it.
    pub open: OpenStore,
}

/// The version of a record, as its store counts. Every change makes a new one, also [`ResultStore::touch`] and
/// [`ResultStore::fulfil`]; no version of an id ever comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A record and its version.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// The document.
    pub record: Record,
    /// Its version.
    pub revision: Revision,
}

/// What a [`ResultStore::put`] expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No record of that id.
    Absent,
    /// The record at this version.
    At(Revision),
}

/// What became of a [`ResultStore::put`].
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// It is stored, at this version.
    Stored(Revision),
    /// Another was faster; this is what stands there now (`None`: it was removed).
    Conflict(Option<Box<Versioned>>),
}

/// The records of all tasks.
#[async_trait]
pub trait ResultStore: Send + Sync {
    /// The record of `id`.
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError>;
    /// Stores `record` if what stands there is what was expected; durable when it returns. The fence must not go
    /// back: a record with a lower fence than the stored one is a conflict whatever `expected` says.
    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError>;
    /// Prolongs the lease in the record if it still carries `fence` and is not finished. `false`: it does not.
    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError>;
    /// Marks `sink` as served in the outbox of the record with `fence`. Idempotent.
    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError>;
    /// Records that match, newest change first. An unreadable record is logged and left out: [`ResultStore::load`]
    /// says what is wrong with it.
    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError>;
    /// Removes finished records beyond `retention` (never one whose outbox is open). Says how many.
    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError>;
    /// What it is and whether several hosts share it.
    fn describe(&self) -> StoreInfo;
}

/// What a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its URL without secrets.
    pub name: String,
    /// Whether workers on several hosts see one another's records.
    pub shared: bool,
}

/// Which records to list; empty fields want all.
#[derive(Clone, Debug, Default)]
pub struct RecordQuery {
    /// In one of these states.
    pub status: Vec<Status>,
    /// Of this queue.
    pub queue: Option<QueueName>,
    /// With all these labels.
    pub labels: Vec<(String, String)>,
    /// Changed at or after.
    pub since: Option<Timestamp>,
    /// Whose outbox is open and whose lease has lapsed by now: for whoever completes them.
    pub owing: bool,
    /// At most so many; 0 means 1,000.
    pub limit: usize,
}

/// How long finished records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Succeeded and canceled ones.
    pub succeeded: Duration,
    /// Failed and dead ones.
    pub failed: Duration,
    /// Records in all take at most so many bytes; the oldest finished go first. 0 means no bound.
    pub bytes: u64,
}

/// Why a store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The URL names nothing that can be opened.
    #[error("{0}")]
    Url(String),
    /// It cannot be reached; trying again may help.
    #[error("the store {store} does not answer: {reason}")]
    Unavailable {
        /// Which, without secrets.
        store: String,
        /// What was seen.
        reason: String,
    },
    /// What it holds is not what we wrote.
    #[error("the store {store} holds an unreadable record {id}: {reason}")]
    Corrupt {
        /// Which, without secrets.
        store: String,
        /// Of which task.
        id: String,
        /// What was seen.
        reason: String,
    },
}
