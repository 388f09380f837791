//! Removing finished records that are too old or too much, and giving their room back.
//!
//! In many short steps, because the writer serves everybody else in between.

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::list::every_queue;
use super::{FIRST_FINISHED, Retention, Status, status_number};
use crate::sqlite::{Database, DatabaseError, Transaction, clock, shrink};

/// Records removed by one transaction.
const STEP: usize = 500;
/// Pages given back to the file system between other writes.
const PAGES: i64 = 1_000;

pub(super) async fn sweep(database: &Arc<Database>, retention: &Retention) -> Result<u64, DatabaseError> {
    let mut removed = 0;
    for queue in database.read_long(every_queue).await? {
        for (status, kept) in [
            (Status::Succeeded, retention.succeeded),
            (Status::Canceled, retention.succeeded),
            (Status::Failed, retention.failed),
            (Status::Dead, retention.failed),
        ] {
            let horizon = clock::wall().saturating_sub(clock::micros(kept));
            let place = (queue.clone(), status_number(status), horizon);
            removed += in_steps(database, move |transaction| remove_aged(transaction, &place)).await?;
        }
    }
    if retention.bytes > 0 {
        let most = i64::try_from(retention.bytes).unwrap_or(i64::MAX);
        let ids = database.read_long(move |connection| excess(connection, most)).await?;
        for step in ids.chunks(STEP) {
            let step = step.to_vec();
            removed += database.write(move |transaction| remove(transaction, &step)).await?;
        }
    }
    if removed > 0 {
        give_room_back(database).await?;
    }
    Ok(removed)
}

async fn in_steps<F>(database: &Arc<Database>, step: F) -> Result<u64, DatabaseError>
where
    F: Fn(&Transaction<'_>) -> rusqlite::Result<u64> + Send + Sync + 'static,
{
    let step = Arc::new(step);
    let mut removed = 0;
    loop {
        let step = Arc::clone(&step);
        match database.write(move |transaction| step(transaction)).await? {
            0 => return Ok(removed),
            some => removed += some,
        }
    }
}

fn remove_aged(
    transaction: &Transaction<'_>,
    (queue, status, horizon): &(String, i64, i64),
) -> rusqlite::Result<u64> {
    let mut oldest = transaction.statement(
        "SELECT id FROM records WHERE queue = ?1 AND status = ?2 AND changed < ?3 AND owed IS NULL
         ORDER BY changed LIMIT ?4",
    )?;
    let step = i64::try_from(STEP).unwrap_or(i64::MAX);
    let ids = oldest.query_map(params![queue, status, horizon, step], |row| row.get(0))?;
    remove(transaction, &ids.collect::<Result<Vec<i64>, _>>()?)
}

/// The oldest finished records whose removal leaves at most so many bytes.
fn excess(connection: &Connection, most: i64) -> rusqlite::Result<Vec<i64>> {
    // Answered from the index alone.
    let sum: i64 =
        connection.query_row("SELECT coalesce(sum(bytes), 0) FROM records", [], |row| row.get(0))?;
    let mut excess = sum - most;
    let mut oldest = connection.prepare_cached(
        "SELECT id, bytes FROM records WHERE status >= ?1 AND owed IS NULL ORDER BY changed, id",
    )?;
    let mut rows = oldest.query([FIRST_FINISHED])?;
    let mut ids = Vec::new();
    while excess > 0 {
        let Some(row) = rows.next()? else { break };
        ids.push(row.get(0)?);
        excess -= row.get::<_, i64>(1)?;
    }
    Ok(ids)
}

/// Removes those that are still finished and owe nothing: they may have been looked up a while ago.
fn remove(transaction: &Transaction<'_>, ids: &[i64]) -> rusqlite::Result<u64> {
    let mut records =
        transaction.statement("DELETE FROM records WHERE id = ?1 AND status >= ?2 AND owed IS NULL")?;
    let mut labels = transaction.statement("DELETE FROM labels WHERE record = ?1")?;
    let mut removed = 0;
    for id in ids {
        if records.execute([*id, FIRST_FINISHED])? > 0 {
            labels.execute([id])?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn give_room_back(database: &Arc<Database>) -> Result<(), DatabaseError> {
    let free = |connection: &Connection| {
        connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0))
    };
    let mut left = database.maintain(free).await?;
    // What others free meanwhile is left to the next sweep.
    while left > 0 {
        database.maintain(|connection| shrink(connection, PAGES)).await?;
        left -= PAGES;
    }
    database.maintain(truncate).await
}

/// The file itself shrinks when the log is written back to it.
fn truncate(connection: &Connection) -> rusqlite::Result<()> {
    // Readers may keep part of the log: then it happens at a later checkpoint.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
