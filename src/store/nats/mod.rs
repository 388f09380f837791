//! Records in a NATS key-value bucket, so that an edge cluster needs NATS alone.
//!
//! A record is one key of the bucket `PREFIX_records` (readable with `nats kv get`), its revision the message's place in the
//! stream below. What lists want to know stands in the message's headers (`index`), so that they need not read records.
//!
//! # Decisions
//! - Compare-and-set is the server's: a message names the place of the one that it replaces. Of what this process wrote or
//!   read last it keeps a copy, so that the fence is known without asking; a stale copy is found out by the server.
//! - A record is removed by its place, not by a marker: the removal misses when the record was changed meanwhile, and
//!   leaves nothing behind.
//! - With replicas the leader is asked: another one may be behind.

mod index;
mod list;
mod retention;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;

use self::list::Owing;
use self::retention::Swept;
use super::{
    Expected, Put, Record, RecordQuery, ResultStore, Retention, Revision, StoreAdapter, StoreError,
    StoreInfo, Versioned,
};
use crate::broker::{BrokerUrl, OpenOptions};
use crate::nats::stream::{self, Wanted};
use crate::nats::{Link, LinkError, Place, Stored, header, token};
use crate::task::{Fence, TaskId};

/// How this store is found.
pub const STORE: StoreAdapter = StoreAdapter {
    schemes: &["nats", "tls"],
    summary: "nats://[user:password@]host[:4222]  a key-value bucket of NATS JetStream; tls:// for TLS",
    open,
};

/// Records of which a copy is kept.
const COPIES: usize = 2_048;
/// Tries of a change that others overtake.
const TRIES: usize = 16;

fn open<'a>(
    url: &'a BrokerUrl,
    options: &'a OpenOptions,
) -> BoxFuture<'a, Result<Arc<dyn ResultStore>, StoreError>> {
    Box::pin(async move {
        let name = url.to_string();
        match NatsStore::open(url, options).await {
            Ok(store) => Ok(Arc::new(store) as Arc<dyn ResultStore>),
            Err(LinkError::Address(reason)) => Err(StoreError::Url(reason)),
            Err(LinkError::Refused(reason) | LinkError::Missing(reason)) => {
                Err(StoreError::Url(format!("the store {name} cannot be opened: {reason}")))
            }
            Err(error) => Err(unavailable(&name, &error)),
        }
    })
}

fn unavailable(name: &str, error: &LinkError) -> StoreError {
    StoreError::Unavailable { store: name.to_owned(), reason: error.to_string() }
}

struct NatsStore {
    link: Link,
    place: Place,
    /// The stream below the bucket.
    stream: String,
    /// What the subjects of keys begin with.
    stem: String,
    copies: Mutex<Copies>,
    owing: tokio::sync::Mutex<Owing>,
    swept: tokio::sync::Mutex<Swept>,
}

/// What this process wrote or read last.
#[derive(Default)]
struct Copies {
    known: HashMap<TaskId, Versioned>,
    order: VecDeque<TaskId>,
}

impl Copies {
    fn keep(&mut self, found: Versioned) {
        let id = found.record.id.clone();
        // Nothing changes any more but its end.
        if found.record.status.is_finished() && found.record.owed.is_empty() {
            self.known.remove(&id);
            return;
        }
        if self.known.insert(id.clone(), found).is_none() {
            self.order.push_back(id);
        }
        while self.known.len() > COPIES || self.order.len() > 2 * COPIES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
    }
}

impl NatsStore {
    async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Self, LinkError> {
        let place = Place::parse(&url.expose(), &url.to_string())?;
        let who = format!("longshore {} (records)", options.worker);
        let link = Link::open(&place, &who, options.connect_timeout).await?;
        let bucket = format!("{}_records", place.prefix);
        let store = Self {
            link,
            stream: format!("KV_{bucket}"),
            stem: format!("$KV.{bucket}."),
            place,
            copies: Mutex::default(),
            owing: tokio::sync::Mutex::default(),
            swept: tokio::sync::Mutex::default(),
        };
        store.ensure().await?;
        Ok(store)
    }

    /// Makes sure of the bucket. Ages are not left to it: they depend on how a task ended.
    async fn ensure(&self) -> Result<(), LinkError> {
        let config = json!({
            "subjects": [format!("{}>", self.stem)], "retention": "limits", "discard": "new",
            "max_msgs_per_subject": 1, "max_age": 0, "allow_direct": true,
            "allow_rollup_hdrs": true, "deny_delete": false,
        });
        let serde_json::Value::Object(config) = config else { return Ok(()) };
        let wanted = Wanted { name: self.stream.clone(), config };
        stream::ensure(&self.link, &self.place, &wanted).await.map(drop)
    }

    fn subject(&self, id: &TaskId) -> String {
        format!("{}{}", self.stem, token(id.as_str()))
    }

    fn cannot(&self) -> impl Fn(LinkError) -> StoreError + '_ {
        |error| unavailable(&self.place.name, &error)
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self, id: &TaskId) -> Option<Versioned> {
        self.copies().known.get(id).cloned()
    }

    fn keep(&self, record: &Record, revision: Revision) {
        self.copies().keep(Versioned { record: record.clone(), revision });
    }

    fn parsed(&self, id: &str, stored: &Stored) -> Result<Versioned, StoreError> {
        let record = serde_json::from_slice(&stored.body).map_err(|error| StoreError::Corrupt {
            store: self.place.name.clone(),
            id: id.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Versioned { record, revision: Revision(stored.sequence) })
    }

    /// What stands at the server now.
    async fn current(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        let subject = self.subject(id);
        let found = match self.place.replicas {
            1 => self.link.last(&self.stream, &subject).await,
            _ => self.link.last_of_leader(&self.stream, &subject).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(LinkError::Missing(_)) => {
                // Somebody removed the bucket.
                self.ensure().await.map_err(self.cannot())?;
                None
            }
            Err(error) => return Err(self.cannot()(error)),
        };
        let found = found.filter(|stored| !stored.body.is_empty());
        let found = found.map(|stored| self.parsed(id.as_str(), &stored)).transpose()?;
        match &found {
            Some(found) => self.copies().keep(found.clone()),
            None => drop(self.copies().known.remove(id)),
        }
        Ok(found)
    }

    /// Writes `record` in the place of the message at `revision`; `None` when another one stands there.
    async fn write(&self, record: &Record, revision: u64) -> Result<Option<Revision>, StoreError> {
        let mut headers = index::headers(record);
        headers.insert(header::EXPECTED_LAST, revision.to_string().as_str());
        let body =
            serde_json::to_vec(record).expect("invariant: a record has text keys and finite numbers only");
        let subject = self.subject(&record.id);
        let mut written = self.link.publish(subject.clone(), headers.clone(), body.clone().into()).await;
        if let Err(LinkError::Missing(_)) = written {
            self.ensure().await.map_err(self.cannot())?;
            written = self.link.publish(subject, headers, body.into()).await;
        }
        match written {
            Ok(published) => {
                let revision = Revision(published.sequence);
                self.keep(record, revision);
                Ok(Some(revision))
            }
            Err(LinkError::Overtaken) => {
                self.copies().known.remove(&record.id);
                Ok(None)
            }
            Err(error) => {
                // It may have been written.
                self.copies().known.remove(&record.id);
                Err(self.cannot()(error))
            }
        }
    }

    /// Changes the record of `id` until nobody is faster. `change` says whether there is something to change.
    async fn change(
        &self,
        id: &TaskId,
        change: impl Fn(&mut Record) -> bool + Send + Sync,
    ) -> Result<bool, StoreError> {
        let mut copy = self.copy(id);
        for _ in 0..TRIES {
            let known = copy.is_some();
            let found = match copy.take() {
                Some(found) => Some(found),
                None => self.current(id).await?,
            };
            let Some(Versioned { mut record, revision }) = found else { return Ok(false) };
            if !change(&mut record) {
                if known {
                    // The copy may be stale.
                    continue;
                }
                return Ok(false);
            }
            if self.write(&record, revision.0).await?.is_some() {
                return Ok(true);
            }
        }
        let busy = "others change the record faster than it can be read".to_owned();
        Err(StoreError::Unavailable { store: self.place.name.clone(), reason: busy })
    }
}

#[async_trait]
impl ResultStore for NatsStore {
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        self.current(id).await
    }

    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError> {
        let revision = match expected {
            Expected::Absent => 0,
            Expected::At(revision) => {
                let copy = self.copy(&record.id).filter(|copy| copy.revision == revision);
                let found = match copy {
                    Some(copy) => Some(copy),
                    None => self.current(&record.id).await?,
                };
                match found {
                    Some(found) if found.revision == revision && found.record.fence <= record.fence => {
                        revision.0
                    }
                    found => return Ok(Put::Conflict(found.map(Box::new))),
                }
            }
        };
        if let Some(revision) = self.write(record, revision).await? {
            return Ok(Put::Stored(revision));
        }
        match self.current(&record.id).await? {
            // A try before this one was stored, and its answer was lost.
            Some(found) if found.record == *record => Ok(Put::Stored(found.revision)),
            found => Ok(Put::Conflict(found.map(Box::new))),
        }
    }

    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError> {
        let until = Timestamp::from_microsecond(until.as_microsecond()).unwrap_or(until);
        self.change(id, |record| {
            let ours = record.fence == fence && !record.status.is_finished();
            record.lease_until = Some(until);
            ours
        })
        .await
    }

    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError> {
        self.change(id, |record| record.fence == fence && record.owed.remove(sink)).await.map(drop)
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
        self.matching(query).await.map_err(self.cannot())
    }

    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError> {
        self.sweep_all(retention).await.map_err(self.cannot())
    }

    fn describe(&self) -> StoreInfo {
        StoreInfo { name: self.place.name.clone(), shared: true }
    }
}

/// How far clocks may differ.
const CLOCKS_APART: Duration = Duration::from_secs(60);

fn before(time: Timestamp) -> Timestamp {
    time.checked_sub(CLOCKS_APART).unwrap_or(Timestamp::MIN)
}
