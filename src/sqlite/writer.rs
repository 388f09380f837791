//! The one thread of this process that writes to a file: takes all that is pending into one transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection};
use tokio::sync::{mpsc, oneshot};

use super::DatabaseError;
use super::bell::{Bell, Signal, Signals};

/// Most operations of one transaction: bounds how long others wait for the lock.
const GROUP: usize = 512;
/// How long a group is held open for those whom the last commit answered: shorter than a commit takes. Without it the first
/// to come back would have a commit of its own, and all others the next one.
const GATHERING: Duration = Duration::from_micros(150);
/// Between two looks at who has come: each one costs a change of threads.
const NAP: Duration = Duration::from_micros(50);
/// From so many operations in a commit on, the next is held open: then more than a few are under way.
const BUSY: usize = 8;
/// Operations between two looks at how much of the file is free.
const TIDY_EVERY: usize = 20_000;

/// What is asked of the writer.
pub(super) enum Job {
    /// Part of a transaction.
    Write(Box<dyn Operation>),
    /// Outside of any.
    Maintain(Box<dyn FnOnce(&Connection) + Send>),
}

/// The open transaction, as operations see it.
pub(crate) struct Transaction<'a> {
    connection: &'a Connection,
    signals: Signals,
    /// The number of the newest event, once an operation of this transaction has looked it up.
    pub(crate) newest_event: Option<i64>,
}

impl<'a> Transaction<'a> {
    /// The prepared statement of `sql`.
    pub(crate) fn statement(&self, sql: &'static str) -> rusqlite::Result<CachedStatement<'a>> {
        self.connection.prepare_cached(sql)
    }

    /// The number of the row that was inserted last.
    pub(crate) fn last_id(&self) -> i64 {
        self.connection.last_insert_rowid()
    }

    /// The connection, for what also readers do.
    pub(crate) fn connection(&self) -> &'a Connection {
        self.connection
    }

    /// Rings once the transaction is on disk.
    pub(crate) fn ring(&mut self, signal: Signal) {
        self.signals.add(signal);
    }
}

/// A part of a transaction, of one who does not know the others in it.
pub(crate) struct Work(Box<dyn Part>);

trait Part: FnMut(&mut Transaction<'_>) -> rusqlite::Result<bool> + Send {}

impl<T: FnMut(&mut Transaction<'_>) -> rusqlite::Result<bool> + Send> Part for T {}

impl Work {
    /// `work` says whether it found what it was meant for. It may run twice, as what [`Database::write`] gets.
    ///
    /// [`Database::write`]: super::Database::write
    pub(crate) fn new(
        work: impl FnMut(&mut Transaction<'_>) -> rusqlite::Result<bool> + Send + 'static,
    ) -> Self {
        Self(Box::new(work))
    }

    /// Does it.
    pub(crate) fn run(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<bool> {
        (self.0)(transaction)
    }
}

/// Something to do within a transaction.
pub(super) trait Operation: Send {
    fn run(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, committed: Result<(), DatabaseError>);
}

/// An [`Operation`] whose result somebody awaits.
pub(super) struct Pending<T, F> {
    work: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<T, F> Pending<T, F> {
    pub(super) fn new(work: F, reply: oneshot::Sender<Result<T, DatabaseError>>) -> Self {
        Self { work, result: None, reply }
    }
}

impl<T, F> Operation for Pending<T, F>
where
    T: Send,
    F: FnMut(&mut Transaction<'_>) -> rusqlite::Result<T> + Send,
{
    fn run(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()> {
        self.result = Some((self.work)(transaction)?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), DatabaseError>) {
        let result = self.result;
        let answer = committed.and_then(|()| result.ok_or_else(super::gone));
        // Whoever asked may have gone.
        let _ = self.reply.send(answer);
    }
}

/// Starts the thread. It ends when the last sender of its inbox is dropped, after all that is pending.
pub(super) fn start(
    connection: Connection,
    inbox: mpsc::Receiver<Job>,
    bell: Arc<Bell>,
    commits: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let writer = Writer { connection, bell, commits, last_group: 0, since_tidy: 0 };
    std::thread::Builder::new()
        .name("sqlite-writer".to_owned())
        // Its stack is all that an idle writer costs.
        .stack_size(512 * 1024)
        .spawn(move || writer.run(inbox))
        .map(drop)
}

struct Writer {
    connection: Connection,
    bell: Arc<Bell>,
    commits: Arc<AtomicU64>,
    last_group: usize,
    since_tidy: usize,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(GROUP);
        while inbox.blocking_recv_many(&mut jobs, GROUP) > 0 {
            self.gather(&mut inbox, &mut jobs);
            let mut group = Vec::with_capacity(jobs.len());
            for job in jobs.drain(..) {
                match job {
                    Job::Write(operation) => group.push(operation),
                    Job::Maintain(work) => {
                        self.commit_group(&mut group);
                        work(&self.connection);
                    }
                }
            }
            self.commit_group(&mut group);
            self.tidy();
        }
    }

    fn gather(&mut self, inbox: &mut mpsc::Receiver<Job>, jobs: &mut Vec<Job>) {
        let expected = std::mem::take(&mut self.last_group);
        let start = Instant::now();
        while expected >= BUSY && jobs.len() < expected && start.elapsed() < GATHERING {
            std::thread::sleep(NAP);
            while jobs.len() < GROUP
                && let Ok(job) = inbox.try_recv()
            {
                jobs.push(job);
            }
        }
        self.last_group = jobs.len();
    }

    fn commit_group(&mut self, group: &mut Vec<Box<dyn Operation>>) {
        self.since_tidy += group.len();
        match self.transact(group) {
            Ok(()) => group.drain(..).for_each(|operation| operation.answer(Ok(()))),
            Err(error) if group.len() == 1 => {
                group.drain(..).for_each(|operation| operation.answer(Err(error.clone())));
            }
            // One of them failed: only that one may learn of it.
            Err(_) => {
                for mut operation in group.drain(..) {
                    let committed = self.transact(std::slice::from_mut(&mut operation));
                    operation.answer(committed);
                }
            }
        }
    }

    fn transact(&mut self, group: &mut [Box<dyn Operation>]) -> Result<(), DatabaseError> {
        if group.is_empty() {
            return Ok(());
        }
        match self.try_transact(group) {
            Ok(signals) => {
                self.bell.ring(signals);
                Ok(())
            }
            Err(error) => {
                // After some errors SQLite has rolled back by itself.
                if !self.connection.is_autocommit()
                    && let Err(error) = self.connection.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "the database could not roll back");
                }
                Err(error.into())
            }
        }
    }

    fn try_transact(&self, group: &mut [Box<dyn Operation>]) -> rusqlite::Result<Signals> {
        // At once as a writer: a reader that becomes one could only fail.
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut transaction =
            Transaction { connection: &self.connection, signals: Signals::default(), newest_event: None };
        for operation in group {
            operation.run(&mut transaction)?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(transaction.signals)
    }

    /// Gives free pages back to the file system, a few at a time, once they are a quarter of the file.
    fn tidy(&mut self) {
        if self.since_tidy < TIDY_EVERY {
            return;
        }
        self.since_tidy = 0;
        if let Err(error) = give_back_pages(&self.connection) {
            tracing::warn!(%error, "the database could not be shrunk; it will be tried again");
        }
    }
}

fn give_back_pages(connection: &Connection) -> rusqlite::Result<()> {
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let all: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if free < 8_192 || free < all / 4 {
        return Ok(());
    }
    shrink(connection, 2_048)
}

/// Gives at most `pages` free pages back.
pub(crate) fn shrink(connection: &Connection, pages: i64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    // Each step frees one page.
    while rows.next()?.is_some() {}
    Ok(())
}
