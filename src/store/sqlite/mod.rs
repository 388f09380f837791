//! Records in the SQLite file that also holds the queue, written by the same thread into the same commits.
//!
//! # Decisions
//! - The document is stored whole, as JSON; the columns beside it are what is searched, and what [`ResultStore::touch`]
//!   and [`ResultStore::fulfil`] change without reading it. They outrank what the document says.
//! - A record's first revision is the time in microseconds and each change adds one, so that the revisions of a removed
//!   record never come back with a new one of the same id.

mod list;
mod retention;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Expected, Put, Record, RecordQuery, ResultStore, Retention, Revision, Status, StoreAdapter, StoreError,
    StoreInfo, Versioned,
};
use crate::broker::{BrokerUrl, OpenOptions, Part, Place};
use crate::sqlite::{Database, DatabaseError, Transaction, Work, clock};
use crate::task::{Fence, TaskId};

/// How this store is found.
pub const STORE: StoreAdapter = StoreAdapter {
    schemes: &["sqlite"],
    summary: "sqlite:///path/to/file.db  embedded, for the processes of this host",
    open,
};

fn open<'a>(
    url: &'a BrokerUrl,
    options: &'a OpenOptions,
) -> BoxFuture<'a, Result<Arc<dyn ResultStore>, StoreError>> {
    Box::pin(async move {
        let name = url.to_string();
        let opened = tokio::time::timeout(options.connect_timeout, Database::opened(url.file()));
        let late = |_| DatabaseError::Unavailable {
            reason: format!("it could not be opened within {:?}", options.connect_timeout),
        };
        match opened.await.map_err(late).flatten() {
            Ok(database) => Ok(Arc::new(SqliteStore { database, name }) as Arc<dyn ResultStore>),
            Err(DatabaseError::Refused { reason }) => {
                Err(StoreError::Url(format!("the store {name} cannot be opened: {reason}")))
            }
            Err(error) => Err(unavailable(&name, &error)),
        }
    })
}

fn unavailable(name: &str, error: &DatabaseError) -> StoreError {
    StoreError::Unavailable { store: name.to_owned(), reason: error.to_string() }
}

struct SqliteStore {
    database: Arc<Database>,
    name: String,
}

impl SqliteStore {
    fn cannot(&self) -> impl Fn(DatabaseError) -> StoreError + '_ {
        |error| unavailable(&self.name, &error)
    }

    fn parsed(&self, row: StoredRow) -> Result<Versioned, StoreError> {
        row.parsed().map_err(|(id, reason)| StoreError::Corrupt { store: self.name.clone(), id, reason })
    }
}

#[async_trait]
impl ResultStore for SqliteStore {
    async fn load(&self, id: &TaskId) -> Result<Option<Versioned>, StoreError> {
        let row = self.database.read(|connection| load(connection, id.as_str()));
        row.map_err(self.cannot())?.map(|row| self.parsed(row)).transpose()
    }

    async fn put(&self, record: &Record, expected: Expected) -> Result<Put, StoreError> {
        let columns = Columns::of(record);
        let written = self.database.write(move |transaction| columns.put(transaction, expected));
        match written.await.map_err(self.cannot())? {
            Written::Stored(revision) => Ok(Put::Stored(revision)),
            Written::Conflict(None) => Ok(Put::Conflict(None)),
            Written::Conflict(Some(row)) => Ok(Put::Conflict(Some(Box::new(self.parsed(*row)?)))),
        }
    }

    fn place(&self) -> Option<Place> {
        Some(Place::new(self.database.path().to_string_lossy()))
    }

    fn part(&self, record: &Record, revision: Revision) -> Option<Part> {
        let columns = Columns::of(record);
        Some(Part::new(Work::new(move |transaction| Ok(columns.update(transaction, revision)?.is_some()))))
    }

    async fn touch(&self, id: &TaskId, fence: Fence, until: Timestamp) -> Result<bool, StoreError> {
        let (id, fence, until) = (id.as_str().to_owned(), signed(fence), until.as_microsecond());
        let written = self.database.write(move |transaction| {
            let mut touch = transaction.statement(
                "UPDATE records SET lease_until = ?3, revision = revision + 1
                 WHERE task = ?1 AND fence = ?2 AND status < ?4",
            )?;
            Ok(touch.execute(params![id, fence, until, FIRST_FINISHED])? > 0)
        });
        written.await.map_err(self.cannot())
    }

    async fn fulfil(&self, id: &TaskId, fence: Fence, sink: &str) -> Result<(), StoreError> {
        let (id, fence, sink) = (id.as_str().to_owned(), signed(fence), sink.to_owned());
        let written = self.database.write(move |transaction| fulfil(transaction, &id, fence, &sink));
        written.await.map_err(self.cannot())
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
        let query = query.clone();
        let rows = self.database.read_long(move |connection| list::matching(connection, &query));
        let rows = rows.await.map_err(self.cannot())?;
        let parsed = rows.into_iter().map(StoredRow::parsed);
        let readable = parsed.filter_map(|parsed| {
            let report = |(id, reason): &(String, String)| {
                tracing::error!(store = %self.name, task = %id, %reason, "a record is unreadable and left out");
            };
            parsed.inspect_err(report).ok()
        });
        Ok(readable.map(|versioned| versioned.record).collect())
    }

    async fn sweep(&self, retention: &Retention) -> Result<u64, StoreError> {
        retention::sweep(&self.database, retention).await.map_err(self.cannot())
    }

    fn describe(&self) -> StoreInfo {
        StoreInfo { name: self.name.clone(), shared: false }
    }
}

/// Numbers of the states in the file; never change one. All finished ones come last.
fn status_number(status: Status) -> i64 {
    match status {
        Status::Queued => 0,
        Status::Staging => 1,
        Status::Running => 2,
        Status::Uploading => 3,
        Status::Retrying => 4,
        Status::Released => 5,
        Status::Succeeded => FIRST_FINISHED,
        Status::Canceled => FIRST_FINISHED + 1,
        Status::Failed => FIRST_FINISHED + 2,
        Status::Dead => FIRST_FINISHED + 3,
    }
}

const FIRST_FINISHED: i64 = 16;

fn signed(fence: Fence) -> i64 {
    i64::try_from(fence.0).unwrap_or(i64::MAX)
}

fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

/// A record as it is read.
struct StoredRow {
    task: String,
    revision: i64,
    lease_until: Option<i64>,
    owed: Option<String>,
    document: String,
}

impl StoredRow {
    /// In this order.
    const COLUMNS: &str = "task, revision, lease_until, owed, document";

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            task: row.get(0)?,
            revision: row.get(1)?,
            lease_until: row.get(2)?,
            owed: row.get(3)?,
            // A document that is no text is told of by the parser, with the task's id.
            document: String::from_utf8_lossy(row.get_ref(4)?.as_bytes().unwrap_or_default()).into_owned(),
        })
    }

    /// The error is the task and what is wrong with its record.
    fn parsed(self) -> Result<Versioned, (String, String)> {
        let mut record: Record = match serde_json::from_str(&self.document) {
            Ok(record) => record,
            Err(error) => return Err((self.task, error.to_string())),
        };
        record.lease_until = self.lease_until.map(clock::timestamp);
        record.owed = owed(self.owed.as_deref());
        Ok(Versioned { record, revision: revision(self.revision) })
    }
}

fn owed(lines: Option<&str>) -> BTreeSet<String> {
    lines.unwrap_or_default().lines().map(str::to_owned).collect()
}

fn owed_lines(owed: &BTreeSet<String>) -> Option<String> {
    (!owed.is_empty()).then(|| owed.iter().map(String::as_str).collect::<Vec<_>>().join("\n"))
}

fn load(connection: &Connection, id: &str) -> rusqlite::Result<Option<StoredRow>> {
    let mut load = connection
        .prepare_cached("SELECT task, revision, lease_until, owed, document FROM records WHERE task = ?1")?;
    load.query_row([id], StoredRow::read).optional()
}

/// A record as it is written; made on the caller's thread.
struct Columns {
    task: String,
    fence: i64,
    status: i64,
    queue: String,
    changed: i64,
    lease_until: Option<i64>,
    owed: Option<String>,
    labels: Vec<(String, String)>,
    label_sum: i64,
    document: String,
}

enum Written {
    Stored(Revision),
    Conflict(Option<Box<StoredRow>>),
}

impl Columns {
    fn of(record: &Record) -> Self {
        let labels: Vec<_> =
            record.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Self {
            task: record.id.to_string(),
            fence: signed(record.fence),
            status: status_number(record.status),
            queue: record.queue.to_string(),
            changed: record.times.changed.unwrap_or_else(Timestamp::now).as_microsecond(),
            lease_until: record.lease_until.map(Timestamp::as_microsecond),
            owed: owed_lines(&record.owed),
            label_sum: label_sum(&labels),
            labels,
            document: serde_json::to_string(record)
                .expect("invariant: a record has text keys and finite numbers only"),
        }
    }

    fn put(&self, transaction: &Transaction<'_>, expected: Expected) -> rusqlite::Result<Written> {
        let stored = match expected {
            Expected::Absent => self.insert(transaction)?,
            Expected::At(at) => self.update(transaction, at)?,
        };
        match stored {
            Some(revision) => Ok(Written::Stored(revision)),
            None => Ok(Written::Conflict(load(transaction.connection(), &self.task)?.map(Box::new))),
        }
    }

    fn insert(&self, transaction: &Transaction<'_>) -> rusqlite::Result<Option<Revision>> {
        let first = clock::wall();
        let inserted = transaction
            .statement(
                "INSERT OR IGNORE INTO records
                   (task, revision, fence, status, queue, changed, bytes, lease_until, owed, labels, document)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, length(?10), ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                self.task,
                first,
                self.fence,
                self.status,
                self.queue,
                self.changed,
                self.lease_until,
                self.owed,
                self.label_sum,
                self.document,
            ])?;
        if inserted > 0 && self.label_sum != 0 {
            self.write_labels(transaction, transaction.last_id())?;
        }
        Ok((inserted > 0).then(|| revision(first)))
    }

    fn update(&self, transaction: &Transaction<'_>, at: Revision) -> rusqlite::Result<Option<Revision>> {
        let at = i64::try_from(at.0).unwrap_or(i64::MAX);
        let mut statement = transaction.statement(
            "UPDATE records SET revision = revision + 1, fence = ?3, status = ?4, queue = ?5, changed = ?6,
                   bytes = length(?10), lease_until = ?7, owed = ?8, labels = ?9, document = ?10
                 WHERE task = ?1 AND revision = ?2 AND fence <= ?3 AND (labels = ?9 OR ?11)",
        )?;
        let mut update = |labels_may_change: bool| {
            statement.execute(params![
                self.task,
                at,
                self.fence,
                self.status,
                self.queue,
                self.changed,
                self.lease_until,
                self.owed,
                self.label_sum,
                self.document,
                labels_may_change,
            ])
        };
        // Labels hardly ever change: the first try is all that most puts need.
        if update(false)? == 0 {
            if update(true)? == 0 {
                return Ok(None);
            }
            self.replace_labels(transaction)?;
        }
        Ok(Some(revision(at + 1)))
    }

    fn replace_labels(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut find = transaction.statement("SELECT id FROM records WHERE task = ?1")?;
        let id: i64 = find.query_row([&self.task], |row| row.get(0))?;
        transaction.statement("DELETE FROM labels WHERE record = ?1")?.execute([id])?;
        self.write_labels(transaction, id)
    }

    fn write_labels(&self, transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
        let mut insert =
            transaction.statement("INSERT INTO labels (name, value, record) VALUES (?1, ?2, ?3)")?;
        self.labels.iter().try_for_each(|(name, value)| insert.execute(params![name, value, id]).map(drop))
    }
}

/// Tells whether labels changed; 0 when there are none.
fn label_sum(labels: &[(String, String)]) -> i64 {
    if labels.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    labels.hash(&mut hasher);
    hasher.finish().cast_signed() | 1
}

fn fulfil(transaction: &Transaction<'_>, id: &str, fence: i64, sink: &str) -> rusqlite::Result<()> {
    // Mostly it is the only one that is owed.
    let mut last = transaction.statement(
        "UPDATE records SET owed = NULL, revision = revision + 1 WHERE task = ?1 AND fence = ?2 AND owed = ?3",
    )?;
    if last.execute(params![id, fence, sink])? > 0 {
        return Ok(());
    }
    let mut find = transaction.statement("SELECT id, owed FROM records WHERE task = ?1 AND fence = ?2")?;
    let found = find.query_row(params![id, fence], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((id, lines)): Option<(i64, Option<String>)> = found else { return Ok(()) };
    let mut owed = owed(lines.as_deref());
    if owed.remove(sink) {
        transaction
            .statement("UPDATE records SET owed = ?2, revision = revision + 1 WHERE id = ?1")?
            .execute(params![id, owed_lines(&owed)])?;
    }
    Ok(())
}
