//! Listing and steering queues.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::submit::make_queue;
use super::{Client, count, headers, limit, priority, queue_name, task_id};
use crate::broker::{Admin, BrokerError, CONTENTS_MAX, Contents, Intake, QueueInfo, Waiting, WaitingQuery};
use crate::sqlite::{Signal, clock};
use crate::task::{QueueName, RawMessage};

#[async_trait]
impl Admin for Client {
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        self.database.read_long(queues).await.map_err(self.cannot("list its queues"))
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        let queue = queue.clone();
        let written = self.database.write(move |transaction| {
            make_queue(transaction, &queue)?;
            transaction
                .statement("UPDATE queues SET paused = ?2 WHERE name = ?1")?
                .execute(params![queue.as_str(), intake == Intake::Paused])?;
            transaction.ring(Signal::Work);
            Ok(())
        });
        written.await.map_err(self.cannot("pause or resume a queue"))
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let queue = queue.clone();
        let written = self.database.write(move |transaction| {
            transaction
                .statement(
                    "DELETE FROM bodies WHERE id IN (SELECT id FROM messages WHERE queue = ?1 AND state <> 2)",
                )?
                .execute([queue.as_str()])?;
            transaction
                .statement("DELETE FROM messages WHERE queue = ?1 AND state <> 2")?
                .execute([queue.as_str()])
        });
        written.await.map(|removed| removed as u64).map_err(self.cannot("purge a queue"))
    }

    async fn waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError> {
        let query = query.clone();
        let read = self.database.read_long(move |connection| waiting(connection, &query));
        read.await.map_err(self.cannot("list what waits"))
    }
}

fn queues(connection: &Connection) -> rusqlite::Result<Vec<QueueInfo>> {
    // Each count runs over the index that holds just these.
    let mut statement = connection.prepare_cached(
        "SELECT q.name, q.paused,
            (SELECT count(*) FROM messages m WHERE m.queue = q.name AND m.state = 0),
            (SELECT count(*) FROM messages m INDEXED BY messages_leased WHERE m.state = 2 AND m.queue = q.name),
            (SELECT count(*) FROM messages m INDEXED BY messages_delayed WHERE m.state = 1 AND m.queue = q.name),
            (SELECT count(*) FROM dead d WHERE d.queue = q.name)
         FROM queues q ORDER BY q.name",
    )?;
    let rows = statement.query_map([], |row| {
        let name = queue_name(row.get(0)?)?;
        Ok(QueueInfo {
            oldest: oldest(connection, &name)?,
            name,
            intake: if row.get(1)? { Intake::Paused } else { Intake::Open },
            ready: count(row.get(2)?),
            leased: count(row.get(3)?),
            delayed: count(row.get(4)?),
            dead: count(row.get(5)?),
        })
    })?;
    rows.collect()
}

/// The oldest ready message is the first of some priority.
fn oldest(connection: &Connection, queue: &QueueName) -> rusqlite::Result<Option<jiff::Timestamp>> {
    let mut first = connection.prepare_cached(
        "SELECT min(id) FROM messages INDEXED BY messages_ready WHERE queue = ?1 AND rank = ?2 AND state = 0",
    )?;
    let mut oldest: Option<i64> = None;
    for rank in 0..=9_i64 {
        let id: Option<i64> = first.query_row(params![queue.as_str(), rank], |row| row.get(0))?;
        oldest = [oldest, id].into_iter().flatten().min();
    }
    let Some(id) = oldest else { return Ok(None) };
    let mut submitted = connection.prepare_cached("SELECT submitted FROM messages WHERE id = ?1")?;
    submitted.query_row([id], |row| Ok(Some(clock::timestamp(row.get(0)?))))
}

/// A listed message and what its place is reckoned from.
struct Listed {
    id: i64,
    rank: i64,
    state: i64,
    waiting: Waiting,
}

/// Leased ones first, then ready ones in the order in which they would go, then delayed ones by their time.
fn waiting(connection: &Connection, query: &WaitingQuery) -> rusqlite::Result<Vec<Waiting>> {
    let most = limit(query.limit);
    let mut listed = of_task_or_queue(connection, query, most)?;
    listed.sort_by_key(|Listed { id, rank, state, waiting }| {
        let place = [2, 0, 1].iter().position(|ordered| ordered == state);
        (place, waiting.not_before, *rank, *id)
    });
    listed.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    add_places(connection, &mut listed)?;
    match query.contents {
        Contents::Left => {}
        Contents::Given => add_contents(connection, &mut listed)?,
    }
    Ok(listed.into_iter().map(|listed| listed.waiting).collect())
}

fn of_task_or_queue(
    connection: &Connection,
    query: &WaitingQuery,
    most: i64,
) -> rusqlite::Result<Vec<Listed>> {
    let queue = query.queue.as_ref().map(QueueName::as_str);
    let columns = "SELECT id, rank, state, due, owner, submitted, task, queue FROM messages";
    if let Some(task) = &query.task {
        let sql = format!("{columns} WHERE task = ?1 AND (?2 IS NULL OR queue = ?2)");
        let mut statement = connection.prepare_cached(&sql)?;
        return statement.query_map(params![task.as_str(), queue], read_row)?.collect();
    }
    let mut listed = Vec::new();
    // Through the index of each state, and of each queue, so that a long queue is not sorted to see its head.
    for state in ["state = 2 ORDER BY rank, id", "state = 1 ORDER BY due"] {
        let sql = format!("{columns} WHERE (?1 IS NULL OR queue = ?1) AND {state} LIMIT ?2");
        let mut statement = connection.prepare_cached(&sql)?;
        for row in statement.query_map(params![queue, most], read_row)? {
            listed.push(row?);
        }
    }
    let mut names = connection.prepare_cached("SELECT name FROM queues WHERE ?1 IS NULL OR name = ?1")?;
    let names: Vec<String> = names.query_map([queue], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let sql = format!("{columns} WHERE queue = ?1 AND state = 0 ORDER BY rank, id LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    for name in names {
        for row in statement.query_map(params![name, most], read_row)? {
            listed.push(row?);
        }
    }
    Ok(listed)
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<Listed> {
    let (rank, state) = (row.get(1)?, row.get(2)?);
    let due: Option<i64> = row.get(3)?;
    let owner: Option<String> = row.get(4)?;
    let lease = due.filter(|_| state == 2).map(|due| {
        let left = clock::until(due, clock::machine());
        (clock::timestamp(clock::wall().saturating_add(clock::micros(left))), owner.unwrap_or_default())
    });
    let waiting = Waiting {
        task: task_id(row.get(6)?)?,
        queue: queue_name(row.get(7)?)?,
        priority: priority(rank),
        submitted: clock::timestamp(row.get(5)?),
        not_before: due.filter(|_| state == 1).map(clock::timestamp),
        ahead: lease.is_some().then_some(0),
        lease,
        raw: None,
    };
    Ok(Listed { id: row.get(0)?, rank, state, waiting })
}

/// Counts what stands before each. Counting starts from the place before it in the same queue, so that a long list is
/// counted through once.
fn add_places(connection: &Connection, listed: &mut [Listed]) -> rusqlite::Result<()> {
    let mut between = connection.prepare_cached(
        "SELECT count(*) FROM messages INDEXED BY messages_ready
         WHERE queue = ?1 AND state = 0 AND (rank, id) >= (?2, ?3) AND (rank, id) < (?4, ?5)",
    )?;
    let mut counted: std::collections::HashMap<QueueName, (i64, i64, u64)> = std::collections::HashMap::new();
    let mut order: Vec<usize> = (0..listed.len()).filter(|index| listed[*index].state != 2).collect();
    order.sort_by_key(|index| (listed[*index].rank, listed[*index].id));
    for index in order {
        let Listed { id, rank, waiting, .. } = &mut listed[index];
        let from = counted.entry(waiting.queue.clone()).or_insert((0, 0, 0));
        let more: i64 = between
            .query_row(params![waiting.queue.as_str(), from.0, from.1, *rank, *id], |row| row.get(0))?;
        *from = (*rank, *id, from.2 + count(more));
        waiting.ahead = Some(from.2);
    }
    Ok(())
}

/// Reads the messages themselves, as far as [`CONTENTS_MAX`] goes.
fn add_contents(connection: &Connection, listed: &mut [Listed]) -> rusqlite::Result<()> {
    let mut body = connection.prepare_cached(
        "SELECT content_type, content_encoding, headers, body FROM bodies WHERE id = ?1 AND length(body) <= ?2",
    )?;
    let mut room = CONTENTS_MAX;
    for Listed { id, waiting, .. } in listed {
        let most = i64::try_from(room).unwrap_or(i64::MAX);
        let read = body.query_row(params![*id, most], |row| {
            let headers = headers(row.get(2)?)?;
            Ok(RawMessage {
                content_type: row.get(0)?,
                content_encoding: row.get(1)?,
                queue: Some(waiting.queue.to_string()),
                ..RawMessage::new(row.get::<_, Vec<u8>>(3)?).with_headers(&headers)
            })
        });
        if let Some(raw) = read.optional()? {
            room -= raw.body.len();
            waiting.raw = Some(raw);
        }
    }
    Ok(())
}
