//! Records in Redis, shared by all workers that use the same server: one hash per task, with indexes beside it.
//!
//! Every change is one script, which compares the revision and the fence first. `lua/common.lua` says which keys there are.
//!
//! # Decisions
//! - The document is stored whole, as JSON; the fields beside it are what is compared, searched, or changed alone by
//!   [`ResultStore::touch`] and [`ResultStore::fulfil`]. They outrank what the document says.
//! - One index serves queue, status and time together, because a change of a record then moves one entry. Its entries carry
//!   the record's size, so that the sum stays right when a record ends by its time to live.
//! - Every record has a time to live, later than any sweep would remove it: when all workers are gone, it still ends.
//! - A record's first revision is the time in microseconds and each change adds one, so that the revisions of a removed
//!   record never come back with a new one of the same id.

mod list;
mod retention;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redis::Value;

use self::retention::Ages;
use super::{
    Expected, Put, Record, RecordQuery, ResultStore, Retention, Revision, Status, StoreAdapter, StoreError,
    StoreInfo, Versioned,
};
use crate::broker::{BrokerUrl, OpenOptions};
use crate::redis::{Health, Link, LinkError, Place, Wants, script, value};
use crate::task::{Fence, TaskId};

/// How this store is found.
pub const STORE: StoreAdapter = StoreAdapter {
    schemes: &["redis", "rediss", "redis+unix"],
    summary: "redis://[user:password@]host[:6379][/db]  shared by all workers that use it; rediss:// for TLS",
    open,
};

script!(PUT, "lua/common.lua", "lua/put.lua");
script!(TOUCH, "lua/common.lua", "lua/touch.lua");
script!(FULFIL, "lua/common.lua", "lua/fulfil.lua");

fn open<'a>(
    url: &'a BrokerUrl,
    options: &'a OpenOptions,
) -> BoxFuture<'a, Result<Arc<dyn ResultStore>, StoreError>> {
    Box::pin(async move {
        let name = url.to_string();
        match RedisStore::open(url, options).await {
            Ok(store) => Ok(Arc::new(store) as Arc<dyn ResultStore>),
            Err(LinkError::Address(reason)) => Err(StoreError::Url(reason)),
            Err(LinkError::Refused(reason)) => {
                Err(StoreError::Url(format!("the store {name} cannot be opened: {reason}")))
            }
            Err(error @ (LinkError::Unavailable(_) | LinkError::Unreadable(_))) => {
                Err(unavailable(&name, &error))
            }
        }
    })
}

fn unavailable(name: &str, error: &LinkError) -> StoreError {
    StoreError::Unavailable { store: name.to_owned(), reason: error.to_string() }
}

struct RedisStore {
    link: Link,
    name: String,
    /// What every key begins with.
    prefix: String,
    ages: Ages,
    /// Sweeps so far: the dearest parts are done by some of them.
    sweeps: AtomicU64,
}

impl RedisStore {
    async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Self, LinkError> {
        let place = Place::parse(&url.expose(), &url.to_string())?;
        let link = Link::open(&place, options.connect_timeout, |_| {}).await?;
        let health = Health::of(&link).await?;
        health.check()?;
        if !options.queues.is_empty() {
            for warning in health.warnings(Wants::Records) {
                tracing::warn!(store = place.name, "{warning}");
            }
        }
        let (name, prefix) = (place.name, place.prefix);
        Ok(Self { link, name, prefix, ages: Ages::default(), sweeps: AtomicU64::new(0) })
    }

    fn cannot(&self) -> impl Fn(LinkError) -> StoreError + '_ {
        |error| unavailable(&self.name, &error)
    }

    /// The key of a record; the id is its hash tag.
    fn key(&self, id: &str) -> String {
        format!("{}:result:{{{id}}}", self.prefix)
    }

    /// What the keys of indexes begin with.
    fn stem(&self) -> String {
        format!("{}:results:", self.prefix)
    }

    fn place(&self, queue: &str, status: Status) -> String {
        format!("{}place:{queue}:{}", self.stem(), status.as_str())
    }

    fn label_key(&self, label: &str) -> String {
        format!("{}label:{label}", self.stem())
    }

    /// What `HMGET revision document lease owed` gave.
    fn parsed(&self, id: &str, found: Value) -> Result<Option<Versioned>, StoreError> {
        let read = Stored::read(found).map_err(self.cannot())?;
        let corrupt = |reason| StoreError::Corrupt { store: self.name.clone(), id: id.to_owned(), reason };
        read.map(|stored| stored.parsed().map_err(corrupt)).transpose()
    }
}

/// A record as it is read.
struct Stored {
    revision: u64,
    document: String,
    lease: Option<i64>,
    owed: Option<String>,
}

impl Stored {
    /// In this order.
    const FIELDS: [&str; 4] = ["revision", "document", "lease", "owed"];

    fn read(found: Value) -> Result<Option<Self>, LinkError> {
        let [revision, document, lease, owed] = value::row(found)?;
        if matches!(revision, Value::Nil) {
            return Ok(None);
        }
        let lease = if matches!(lease, Value::Nil) { None } else { Some(value::int(&lease)?) };
        Ok(Some(Self {
            revision: value::count(&revision)?,
            document: value::text_if_any(document)?.unwrap_or_default(),
            lease,
            owed: value::text_if_any(owed)?,
        }))
    }

    /// The error is what is wrong with it.
    fn parsed(self) -> Result<Versioned, String> {
        let mut record: Record = serde_json::from_str(&self.document).map_err(|error| error.to_string())?;
        record.lease_until = self.lease.and_then(|micros| Timestamp::from_microsecond(micros).ok());
        record.owed = self.owed.unwrap_or_default().lines().map(str::to_owned).collect();
        Ok(Versioned { record, revision: Revision(self.revision) })
    }
}

fn owed_lines(owed: &BTreeSet<String>) -> String {
    owed.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// A label as indexes name it: what would end its line or its name is escaped.
fn label(name: &str, value: &str) -> String {
    let escaped = |text: &str| text.replace('%', "%25").replace('\n', "%0A").replace('=', "%3D");
    format!("{}={}", escaped(name), escaped(value))
}

fn changed(record: &Record) -> i64 {
    record.times.changed.unwrap_or_else(Timestamp::now).as_microsecond()
}

#[async_trait]
impl ResultStore for RedisStore {
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        let mut get = redis::cmd("HMGET");
        get.arg(self.key(id.as_str())).arg(&Stored::FIELDS);
        let found = self.link.send(&get).await.map_err(self.cannot())?;
        self.parsed(id.as_str(), found)
    }

    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError> {
        let labels: Vec<String> = record.labels.iter().map(|(name, value)| label(name, value)).collect();
        let document =
            serde_json::to_vec(record).expect("invariant: a record has text keys and finite numbers only");
        let call = PUT
            .on(&[self.key(record.id.as_str())])
            .arg(self.stem())
            .arg(record.id.as_str())
            .arg(match expected {
                Expected::Absent => String::new(),
                Expected::At(revision) => revision.0.to_string(),
            })
            .arg(record.fence.0)
            .arg(record.status.as_str())
            .arg(record.queue.as_str())
            .arg(changed(record))
            .arg(record.lease_until.map(|until| until.as_microsecond().to_string()).unwrap_or_default())
            .arg(owed_lines(&record.owed))
            .arg(labels.join("\n"))
            .arg(document)
            .arg(self.ages.time_to_live(record.status).as_secs());
        let answer = self.link.call(&call).await.map_err(self.cannot())?;
        let [stored, what] = value::row(answer).map_err(self.cannot())?;
        if value::int(&stored).map_err(self.cannot())? == 1 {
            return Ok(Put::Stored(Revision(value::count(&what).map_err(self.cannot())?)));
        }
        if matches!(what, Value::Nil | Value::Boolean(_)) {
            return Ok(Put::Conflict(None));
        }
        Ok(Put::Conflict(self.parsed(record.id.as_str(), what)?.map(Box::new)))
    }

    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError> {
        let call = TOUCH.on(&[self.key(id.as_str())]).arg(fence.0).arg(until.as_microsecond());
        let answer = self.link.call(&call).await.and_then(|answer| value::int(&answer));
        Ok(answer.map_err(self.cannot())? == 1)
    }

    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError> {
        let call = FULFIL.on(&[self.key(id.as_str())]).arg(self.stem()).arg(id.as_str());
        let answer = self.link.call(&call.arg(fence.0).arg(sink)).await;
        answer.map(drop).map_err(self.cannot())
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
        self.matching(query).await.map_err(self.cannot())
    }

    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError> {
        self.sweep_all(retention).await.map_err(self.cannot())
    }

    fn describe(&self) -> StoreInfo {
        StoreInfo { name: self.name.clone(), shared: true }
    }
}
