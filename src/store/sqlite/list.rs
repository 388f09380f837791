//! Finding records through the index of queue, state and time, or through a label.

use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

use super::{RecordQuery, StoredRow, status_number};
use crate::sqlite::clock;
use crate::store::Status;

/// A record that matches, before it is read.
type Match = (i64, i64);

/// Records that match `query`, newest change first.
pub(super) fn matching(connection: &Connection, query: &RecordQuery) -> rusqlite::Result<Vec<StoredRow>> {
    let mut matches = if query.owing {
        owing(connection, query)?
    } else if query.labels.is_empty() {
        by_place(connection, query)?
    } else {
        by_label(connection, query)?
    };
    matches.sort_unstable_by_key(|(changed, id)| std::cmp::Reverse((*changed, *id)));
    matches.truncate(limit(query));
    let sql = format!("SELECT {} FROM records WHERE id = ?1", StoredRow::COLUMNS);
    let mut read = connection.prepare_cached(&sql)?;
    // One that was removed since is none of the answer.
    let rows = matches.into_iter().map(|(_, id)| read.query_row([id], StoredRow::read));
    rows.filter(|row| !matches!(row, Err(rusqlite::Error::QueryReturnedNoRows))).collect()
}

fn limit(query: &RecordQuery) -> usize {
    if query.limit == 0 { 1_000 } else { query.limit }
}

/// The newest of each queue and state: each a walk along the index, as far as wanted.
fn by_place(connection: &Connection, query: &RecordQuery) -> rusqlite::Result<Vec<Match>> {
    let mut newest = connection.prepare_cached(
        "SELECT changed, id FROM records
         WHERE queue = ?1 AND status = ?2 AND changed >= ?3 ORDER BY changed DESC, id DESC LIMIT ?4",
    )?;
    let most = i64::try_from(limit(query)).unwrap_or(i64::MAX);
    let mut matches = Vec::new();
    for queue in queues(connection, query)? {
        for status in statuses(query) {
            let rows = newest.query_map(params![queue, status, since(query), most], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
            for row in rows {
                matches.push(row?);
            }
        }
    }
    Ok(matches)
}

/// The wanted queue, or each that has records: by leaps through the index, not by a walk along it.
fn queues(connection: &Connection, query: &RecordQuery) -> rusqlite::Result<Vec<String>> {
    match &query.queue {
        Some(queue) => Ok(vec![queue.to_string()]),
        None => every_queue(connection),
    }
}

pub(super) fn every_queue(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut next = connection.prepare_cached("SELECT min(queue) FROM records WHERE queue > ?1")?;
    let mut queues: Vec<String> = Vec::new();
    loop {
        let last = queues.last().map_or("", String::as_str);
        let Some(queue) = next.query_row([last], |row| row.get::<_, Option<String>>(0))? else {
            return Ok(queues);
        };
        queues.push(queue);
    }
}

fn statuses(query: &RecordQuery) -> Vec<i64> {
    let wanted = if query.status.is_empty() { &Status::ALL[..] } else { &query.status };
    let mut numbers: Vec<i64> = wanted.iter().copied().map(status_number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn since(query: &RecordQuery) -> i64 {
    query.since.map_or(i64::MIN, jiff::Timestamp::as_microsecond)
}

fn by_label(connection: &Connection, query: &RecordQuery) -> rusqlite::Result<Vec<Match>> {
    let ids = query.labels.iter().map(|_| "SELECT record FROM labels WHERE name = ? AND value = ?");
    let source = format!("id IN ({})", ids.collect::<Vec<_>>().join(" INTERSECT "));
    let values = query.labels.iter().flat_map(|(name, value)| [name.clone().into(), value.clone().into()]);
    filtered(connection, query, &source, values.collect())
}

/// Those whose outbox is open while nobody works on them.
fn owing(connection: &Connection, query: &RecordQuery) -> rusqlite::Result<Vec<Match>> {
    let source = "owed IS NOT NULL AND (lease_until IS NULL OR lease_until <= ?)";
    let mut matches = filtered(connection, query, source, vec![clock::wall().into()])?;
    if !query.labels.is_empty() {
        let labelled = by_label(connection, query)?;
        matches.retain(|found| labelled.contains(found));
    }
    Ok(matches)
}

/// Records of `source`, which is little, that also match the rest of the query.
fn filtered(
    connection: &Connection,
    query: &RecordQuery,
    source: &str,
    mut values: Vec<Value>,
) -> rusqlite::Result<Vec<Match>> {
    let statuses: Vec<String> = statuses(query).iter().map(i64::to_string).collect();
    let queue = query.queue.as_ref().map(|queue| queue.as_str().to_owned());
    let sql = format!(
        "SELECT changed, id FROM records WHERE {source} AND changed >= ? AND status IN ({}) AND coalesce(queue = ?, 1)
         ORDER BY changed DESC, id DESC",
        statuses.join(", ")
    );
    values.extend([since(query).into(), queue.into()]);
    let mut statement = connection.prepare(&sql)?;
    statement.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
