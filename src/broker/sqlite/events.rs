//! Events in SQL: two shelves, status and chatter, with one numbering over both.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{queue_name, task_id, unreadable};
use crate::broker::OpenOptions;
use crate::events::{Event, EventFilter, EventKind, EventStart};
use crate::sqlite::{Transaction, clock};
use crate::task::{Fence, TaskId};

/// Most events that one read takes.
const READ_AT_ONCE: usize = 512;
/// Most events of a shelf that one look through it removes.
const PRUNED_AT_ONCE: i64 = 20_000;

/// An event as it is stored; made on the publisher's thread.
#[derive(Debug)]
pub(super) struct Written {
    kind: EventKind,
    task: String,
    queue: String,
    fence: i64,
    number: i64,
    time: i64,
    data: String,
}

impl Written {
    pub(super) fn of(event: &Event) -> Self {
        Self {
            kind: event.kind(),
            task: event.task.to_string(),
            queue: event.queue.to_string(),
            fence: i64::try_from(event.fence.0).unwrap_or(i64::MAX),
            number: i64::try_from(event.number).unwrap_or(i64::MAX),
            time: event.time.as_microsecond(),
            data: serde_json::to_string(&event.data)
                .expect("invariant: an event has text keys and finite numbers only"),
        }
    }
}

/// The number of the newest event; 0 when there is none.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    let mut newest = connection.prepare_cached(
        "SELECT max(coalesce((SELECT max(seq) FROM status), 0), coalesce((SELECT max(seq) FROM chatter), 0))",
    )?;
    newest.query_row([], |row| row.get(0))
}

/// Adds `event` behind all others.
pub(super) fn insert(transaction: &mut Transaction<'_>, event: &Written) -> rusqlite::Result<()> {
    let newest = match transaction.newest_event {
        Some(seq) => seq,
        None => newest(transaction.connection())?,
    };
    let seq = newest + 1;
    let mut insert = transaction.statement(if event.kind.is_chatter() {
        "INSERT INTO chatter (seq, task, queue, fence, number, time, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
    } else {
        "INSERT INTO status (seq, task, queue, fence, number, time, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
    })?;
    insert.execute(params![
        seq,
        event.task,
        event.queue,
        event.fence,
        event.number,
        event.time,
        event.data
    ])?;
    transaction.newest_event = Some(seq);
    Ok(())
}

/// How many events of each shelf are kept.
pub(super) fn shelf_size(options: &OpenOptions) -> u64 {
    (options.event_count / 2).max(1)
}

/// Removes from each shelf what is too old or too much; never its newest event.
pub(super) fn prune(transaction: &Transaction<'_>, options: &OpenOptions) -> rusqlite::Result<()> {
    let horizon = clock::wall().saturating_sub(clock::micros(options.event_age));
    let most = i64::try_from(shelf_size(options)).unwrap_or(i64::MAX);
    for [old, count, excess] in [
        [
            "DELETE FROM status WHERE seq < (SELECT max(seq) FROM status) AND seq IN
               (SELECT seq FROM (SELECT seq, time FROM status ORDER BY seq LIMIT ?1) WHERE time < ?2)",
            "SELECT count(*) FROM status",
            "DELETE FROM status WHERE seq IN (SELECT seq FROM status ORDER BY seq LIMIT ?1)",
        ],
        [
            "DELETE FROM chatter WHERE seq < (SELECT max(seq) FROM chatter) AND seq IN
               (SELECT seq FROM (SELECT seq, time FROM chatter ORDER BY seq LIMIT ?1) WHERE time < ?2)",
            "SELECT count(*) FROM chatter",
            "DELETE FROM chatter WHERE seq IN (SELECT seq FROM chatter ORDER BY seq LIMIT ?1)",
        ],
    ] {
        transaction.statement(old)?.execute([PRUNED_AT_ONCE, horizon])?;
        let count: i64 = transaction.statement(count)?.query_row([], |row| row.get(0))?;
        if count > most {
            transaction.statement(excess)?.execute([(count - most).min(PRUNED_AT_ONCE)])?;
        }
    }
    Ok(())
}

/// The number before the first event that a reader wants.
pub(super) fn cursor(connection: &Connection, start: EventStart) -> rusqlite::Result<i64> {
    let time = match start {
        EventStart::Oldest => return Ok(0),
        EventStart::Now => return newest(connection),
        EventStart::Since(time) => time.as_microsecond(),
    };
    let mut first: Option<i64> = None;
    for sql in [
        "SELECT seq FROM status WHERE time >= ?1 ORDER BY seq LIMIT 1",
        "SELECT seq FROM chatter WHERE time >= ?1 ORDER BY seq LIMIT 1",
    ] {
        let seq: Option<i64> =
            connection.prepare_cached(sql)?.query_row([time], |row| row.get(0)).optional()?;
        first = first.into_iter().chain(seq).min();
    }
    first.map_or_else(|| newest(connection), |first| Ok(first - 1))
}

/// Events after `cursor`, at most so many that reading them is short, and the cursor after them.
pub(super) fn after(
    connection: &Connection,
    filter: &EventFilter,
    cursor: i64,
) -> rusqlite::Result<(Vec<Event>, i64)> {
    between(connection, filter, (cursor, i64::MAX))
}

/// Events after `cursor` and not after `newest`, as [`after`] gives them. One statement, so that both shelves are seen at
/// one moment.
pub(super) fn between(
    connection: &Connection,
    filter: &EventFilter,
    (cursor, newest): (i64, i64),
) -> rusqlite::Result<(Vec<Event>, i64)> {
    let shelves = [("status", false), ("chatter", true)];
    let wanted = shelves.iter().filter(|(_, chatter)| {
        filter.kinds.is_empty() || filter.kinds.iter().any(|kind| kind.is_chatter() == *chatter)
    });
    let of_task = if filter.task.is_some() { "task = ?2" } else { "?2 IS NULL" };
    let selects: Vec<String> = wanted
        .map(|(shelf, _)| {
            format!(
                "SELECT seq, task, queue, fence, number, time, data FROM {shelf}
                 WHERE seq > ?1 AND seq <= ?3 AND {of_task}"
            )
        })
        .collect();
    let sql = format!("{} ORDER BY seq LIMIT {READ_AT_ONCE}", selects.join(" UNION ALL "));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![cursor, filter.task.as_ref().map(TaskId::as_str), newest])?;
    let (mut found, mut last) = (Vec::new(), cursor);
    while let Some(row) = rows.next()? {
        last = row.get(0)?;
        match read(row) {
            Ok(event) if filter.matches(&event) => found.push(event),
            Ok(_) => {}
            // One bad row must not hide all that follows it.
            Err(error) => tracing::error!(seq = last, %error, "an event is unreadable and left out"),
        }
    }
    Ok((found, last))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        task: task_id(row.get(1)?)?,
        queue: queue_name(row.get(2)?)?,
        fence: Fence(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0)),
        number: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
        time: clock::timestamp(row.get(5)?),
        data: serde_json::from_str(row.get_ref(6)?.as_str()?).map_err(unreadable)?,
    })
}
