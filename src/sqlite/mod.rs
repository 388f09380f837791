//! The embedded database: one file that several processes of one host use at once.
//!
//! Owns the file, its schema, the writer thread with its group commits, the read connections and the doorbell. Knows
//! nothing of queues or records: `broker/sqlite` and `store/sqlite` bring their own statements and share one
//! [`Database`] per file, so that what they write falls into the same commits.
//!
//! # Decisions
//! - One writer thread per process and file takes all that is pending into one transaction: many tasks share one fsync.
//!   Operations are not isolated by savepoints, which would copy every page they touch; when one fails, the whole
//!   group is rolled back and each is run again in a transaction of its own. Operations can therefore run twice.
//! - Point reads run on the caller's thread: they take some 10 µs, less than handing them to another thread.
//! - `synchronous=FULL`: with NORMAL a power loss can undo commits that were already answered.

mod bell;
pub(crate) mod clock;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use self::bell::Bell;
pub(crate) use self::bell::{Signal, Waiter};
use self::writer::{Job, Pending};
pub(crate) use self::writer::{Transaction, Work, shrink};

/// How long a process waits for another one's transaction before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Operations that may wait for the writer before callers wait for a place.
const PENDING: usize = 4_096;
/// Read connections kept open while unused.
const READERS_KEPT: usize = 4;

/// An opened database file. One per file and process, however often it is opened.
pub struct Database {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    readers: Mutex<Vec<Connection>>,
    bell: Arc<Bell>,
    commits: Arc<AtomicU64>,
    looks: AtomicU64,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the file at `path`, makes it (and its folder) when it is not there, and brings its schema up to date.
    /// Blocks; call it from where blocking is allowed.
    pub fn open(path: &Path) -> Result<Arc<Self>, DatabaseError> {
        static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Database>>>> = LazyLock::new(Mutex::default);
        let path = schema::prepare_file(path)?;
        // Held while opening: two threads must not start two writers for one file.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, database| database.strong_count() > 0);
        if let Some(database) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(database);
        }
        let connection = schema::open_for_writing(&path)?;
        let bell = Arc::new(Bell::beside(&path));
        let (jobs, inbox) = mpsc::channel(PENDING);
        let commits = Arc::new(AtomicU64::new(0));
        let started = writer::start(connection, inbox, Arc::clone(&bell), Arc::clone(&commits));
        started.map_err(|error| DatabaseError::Unavailable {
            reason: format!("no thread could be started for it: {error}"),
        })?;
        let readers = Mutex::default();
        let looks = AtomicU64::new(0);
        let database = Arc::new(Self { path: path.clone(), jobs, readers, bell, commits, looks });
        open.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    /// [`Database::open`] for async callers.
    pub(crate) async fn opened(path: PathBuf) -> Result<Arc<Self>, DatabaseError> {
        tokio::task::spawn_blocking(move || Self::open(&path)).await.map_err(|_| gone())?
    }

    /// Runs `work` in the next group commit and answers once that is on disk. `work` runs again when the group had to
    /// be rolled back, so it must not keep anything from an earlier run. It is done even if this future is dropped.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Job::Write(Box::new(Pending::new(work, reply)));
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Runs `work` on the writer's connection outside any transaction.
    pub(crate) async fn maintain<T, F>(&self, work: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Job::Maintain(Box::new(move |connection| {
            // Whoever asked may have gone.
            let _ = reply.send(work(connection).map_err(DatabaseError::from));
        }));
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// A short read on the caller's thread.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let kept = self.readers().pop();
        let connection = match kept {
            Some(connection) => connection,
            None => schema::open_for_reading(&self.path)?,
        };
        let result = work(&connection);
        let mut readers = self.readers();
        if readers.len() < READERS_KEPT {
            readers.push(connection);
        }
        Ok(result?)
    }

    /// A read that may take long, on the blocking pool.
    pub(crate) async fn read_long<T, F>(self: &Arc<Self>, work: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let database = Arc::clone(self);
        tokio::task::spawn_blocking(move || database.read(work)).await.map_err(|_| gone())?
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// One who waits for `wanted`. Rings of all processes that come after this call are heard.
    pub(crate) fn waiter(&self, wanted: Signal) -> Waiter {
        self.bell.waiter(wanted)
    }

    /// How many transactions this process has committed: each is one sync.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Counts a look for work.
    pub(crate) fn count_look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// How often fetchers of this process looked for work: what a test needs to see that idling polls nothing.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }
}

/// Why the database could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be reached now; trying again may help.
    #[error("{reason}")]
    Unavailable {
        /// What was seen and what to do.
        reason: String,
    },
    /// It will not open or write until a person changes something.
    #[error("{reason}")]
    Refused {
        /// What was seen and what to do.
        reason: String,
    },
    /// It holds what we did not write.
    #[error("{reason}")]
    Corrupt {
        /// What was seen.
        reason: String,
    },
}

fn gone() -> DatabaseError {
    DatabaseError::Unavailable { reason: "its writer thread has ended; restart this process".to_owned() }
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        let reason = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Unavailable {
                reason: format!(
                    "another process has kept it locked for {} s: find it with `fuser FILE` ({reason})",
                    BUSY_TIMEOUT.as_secs()
                ),
            },
            Some(ErrorCode::DiskFull) => {
                Self::Unavailable { reason: format!("its disk is full: free some space ({reason})") }
            }
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                Self::Refused {
                    reason: format!(
                        "it cannot be written: check the owner and mode of the file and its folder ({reason})"
                    ),
                }
            }
            // None: not from SQLite but from reading a row that is not of the form in which we write.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => Self::Corrupt { reason },
            Some(_) => Self::Unavailable { reason },
        }
    }
}
