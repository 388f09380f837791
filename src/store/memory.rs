//! The store without a file (`memory:`), with the rules of the durable ones.
//!
//! `memory:` is a store of its own with each opening; `memory:NAME` is shared by all who open that name in this process,
//! as long as one of them lives.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{
    Expected, Put, Record, RecordQuery, ResultStore, Retention, Revision, Status, StoreAdapter, StoreError,
    StoreInfo, Versioned,
};
use crate::broker::{BrokerUrl, OpenOptions};
use crate::task::{Fence, TaskId};

/// How this store is found.
pub const STORE: StoreAdapter = StoreAdapter {
    schemes: &["memory"],
    summary: "memory:  in this process only, forgotten when it ends",
    open,
};

/// Records in a mutexed map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    name: String,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    records: HashMap<TaskId, Entry>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    versioned: Versioned,
    /// As the record says, or when it was put.
    changed: Timestamp,
}

impl MemoryStore {
    /// The store of that name, made when nobody in this process holds it; a new one when the name is empty.
    pub fn named(name: &str) -> Arc<Self> {
        static STORES: LazyLock<Mutex<HashMap<String, Weak<MemoryStore>>>> = LazyLock::new(Mutex::default);
        let made = || Arc::new(Self { name: format!("memory:{name}"), kept: Mutex::default() });
        if name.is_empty() {
            return made();
        }
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, store| store.strong_count() > 0);
        stores.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let store = made();
            stores.insert(name.to_owned(), Arc::downgrade(&store));
            store
        })
    }

    /// A poisoned lock is taken all the same: every change is complete before anything in it can panic.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open<'a>(
    url: &'a BrokerUrl,
    _options: &'a OpenOptions,
) -> BoxFuture<'a, Result<Arc<dyn ResultStore>, StoreError>> {
    let store: Arc<dyn ResultStore> = MemoryStore::named(url.rest());
    Box::pin(std::future::ready(Ok(store)))
}

#[async_trait]
impl ResultStore for MemoryStore {
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        Ok(self.kept().records.get(id).map(|entry| entry.versioned.clone()))
    }

    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError> {
        let mut kept = self.kept();
        let found = kept.records.get(&record.id).map(|entry| &entry.versioned);
        let as_expected = match (expected, found) {
            (Expected::Absent, None) => true,
            (Expected::At(revision), Some(found)) => {
                found.revision == revision && found.record.fence <= record.fence
            }
            (Expected::Absent, Some(_)) | (Expected::At(_), None) => false,
        };
        if !as_expected {
            return Ok(Put::Conflict(found.cloned().map(Box::new)));
        }
        let revision = kept.next_revision();
        let changed = record.times.changed.unwrap_or_else(Timestamp::now);
        let versioned = Versioned { record: record.clone(), revision };
        kept.records.insert(record.id.clone(), Entry { versioned, changed });
        Ok(Put::Stored(revision))
    }

    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError> {
        Ok(self.kept().change(id, |record| {
            let alive = record.fence == fence && !record.status.is_finished();
            if alive {
                record.lease_until = Some(until);
            }
            alive
        }))
    }

    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError> {
        self.kept().change(id, |record| record.fence == fence && record.owed.remove(sink));
        Ok(())
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
        let now = Timestamp::now();
        let kept = self.kept();
        let mut found: Vec<&Entry> =
            kept.records.values().filter(|entry| entry.matches(query, now)).collect();
        found.sort_by_key(|entry| std::cmp::Reverse((entry.changed, entry.versioned.revision)));
        found.truncate(if query.limit == 0 { 1_000 } else { query.limit });
        Ok(found.into_iter().map(|entry| entry.versioned.record.clone()).collect())
    }

    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError> {
        let now = Timestamp::now();
        let mut kept = self.kept();
        let before = kept.records.len();
        kept.records.retain(|_, entry| !entry.is_over(retention, now));
        kept.shrink_to(retention.bytes);
        Ok((before - kept.records.len()) as u64)
    }

    fn describe(&self) -> StoreInfo {
        StoreInfo { name: self.name.clone(), shared: false }
    }
}

impl Entry {
    fn matches(&self, query: &RecordQuery, now: Timestamp) -> bool {
        let record = &self.versioned.record;
        (query.status.is_empty() || query.status.contains(&record.status))
            && query.queue.as_ref().is_none_or(|queue| *queue == record.queue)
            && query.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
            && query.since.is_none_or(|since| self.changed >= since)
            && (!query.owing
                || (!record.owed.is_empty() && record.lease_until.is_none_or(|until| until <= now)))
    }

    fn may_go(&self) -> bool {
        self.versioned.record.status.is_finished() && self.versioned.record.owed.is_empty()
    }

    fn is_over(&self, retention: &Retention, now: Timestamp) -> bool {
        let kept = match self.versioned.record.status {
            Status::Succeeded | Status::Canceled => retention.succeeded,
            Status::Failed | Status::Dead => retention.failed,
            Status::Queued
            | Status::Staging
            | Status::Running
            | Status::Uploading
            | Status::Retrying
            | Status::Released => return false,
        };
        let horizon = now.saturating_sub(kept).unwrap_or(Timestamp::MIN);
        self.may_go() && self.changed < horizon
    }

    fn bytes(&self) -> u64 {
        serde_json::to_vec(&self.versioned.record).map_or(0, |bytes| bytes.len() as u64)
    }
}

impl Kept {
    /// Grows over the whole store, so that a removed and remade record never shows an old revision again.
    fn next_revision(&mut self) -> Revision {
        self.last += 1;
        Revision(self.last)
    }

    fn change(&mut self, id: &TaskId, change: impl FnOnce(&mut Record) -> bool) -> bool {
        let revision = Revision(self.last + 1);
        let Some(Entry { versioned, .. }) = self.records.get_mut(id) else { return false };
        let changed = change(&mut versioned.record);
        if changed {
            versioned.revision = revision;
            self.last = revision.0;
        }
        changed
    }

    fn shrink_to(&mut self, most: u64) {
        if most == 0 {
            return;
        }
        let mut total: u64 = self.records.values().map(Entry::bytes).sum();
        let going = self.records.iter().filter(|(_, entry)| entry.may_go());
        let mut oldest: Vec<(Timestamp, TaskId, u64)> =
            going.map(|(id, entry)| (entry.changed, id.clone(), entry.bytes())).collect();
        oldest.sort_unstable();
        for (_, id, bytes) in oldest {
            if total <= most {
                return;
            }
            self.records.remove(&id);
            total -= bytes;
        }
    }
}
