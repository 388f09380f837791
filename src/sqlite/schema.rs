//! The file itself: made with mode 0600, opened, and its schema brought up to date.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{BUSY_TIMEOUT, DatabaseError, clock};

/// `lnsh`: tells our files from others (SQLite's `application_id`).
const APPLICATION: i32 = 0x6c6e_7368;

/// What brings a file from each version to the next; `user_version` says how many were applied.
const MIGRATIONS: &[&str] = &[include_str!("schema_1.sql")];

/// Statements kept prepared per connection: more than there are.
const STATEMENTS: usize = 128;

/// Makes the file and its folder when they are not there. Returns the file's one true path.
pub(super) fn prepare_file(path: &Path) -> Result<PathBuf, DatabaseError> {
    let refused = |error: std::io::Error| DatabaseError::Refused {
        reason: format!("{} cannot be opened: {error}; name a file in a writable folder", path.display()),
    };
    if path.as_os_str().is_empty() {
        return Err(DatabaseError::Refused {
            reason: "the address names no file: write sqlite:///path/to/file.db".to_owned(),
        });
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refused)?;
    }
    // Messages hold tokens: nobody else may read the file. SQLite gives its companions the same mode.
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(refused)?;
    path.canonicalize().map_err(refused)
}

/// The writer's connection; applies migrations.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection, DatabaseError> {
    let mut connection = open(path)?;
    // Both only work on a file without tables, and this one before the next.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    switch_to_wal(&connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// A connection for reading only.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, DatabaseError> {
    let connection = open(path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn open(path: &Path) -> Result<Connection, DatabaseError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // Otherwise statements are planned anew for each value that is bound to them, which costs more than they do.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_handler(Some(wait_for_lock))?;
    Ok(connection)
}

/// SQLite's own handler sleeps up to 100 ms at a time; transactions here last about one, so that shorter naps find the gaps
/// between those of a busy process.
fn wait_for_lock(turn: i32) -> bool {
    const LONGEST: Duration = Duration::from_millis(2);
    let turn = u32::try_from(turn).unwrap_or(0);
    std::thread::sleep((Duration::from_micros(50) * (turn + 1).min(40)).min(LONGEST));
    // The first 40 naps take 41 ms together.
    Duration::from_millis(41) + LONGEST * turn.saturating_sub(40) < BUSY_TIMEOUT
}

/// SQLite does not ask the busy handler when several processes switch a new file at once.
fn switch_to_wal(connection: &Connection) -> Result<(), DatabaseError> {
    let start = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Ok(()) => return Ok(()),
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && start.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), DatabaseError> {
    let newest = u32::try_from(MIGRATIONS.len()).expect("invariant: few migrations");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && tables > 0 {
        return Err(DatabaseError::Refused {
            reason: format!("{} is another program's database: name another file", path.display()),
        });
    }
    if version > newest {
        return Err(DatabaseError::Refused {
            reason: format!(
                "{} was written by a newer longshore (schema {version}, this one knows {newest}): use that version or name another file",
                path.display()
            ),
        });
    }
    for migration in MIGRATIONS.iter().skip(version as usize) {
        transaction.execute_batch(migration)?;
    }
    if version < newest {
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", newest)?;
    }
    end_leases_of_an_earlier_boot(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn end_leases_of_an_earlier_boot(connection: &Connection) -> rusqlite::Result<()> {
    let boot = clock::boot();
    let known: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE name = 'boot'", [], |row| row.get(0))
        .optional()?;
    if known.as_deref() != Some(boot.as_str()) {
        connection.execute("UPDATE messages SET due = 0 WHERE state = 2", [])?;
        connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('boot', ?1)", [&boot])?;
    }
    Ok(())
}
