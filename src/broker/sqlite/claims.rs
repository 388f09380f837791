//! The life of a claim in SQL: taken from the ready ones, prolonged, ended.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use serde_json::Value;

use super::headers;
use crate::broker::{Settled, Settlement};
use crate::sqlite::{Signal, Transaction, clock};
use crate::task::QueueName;

/// Which claim of which message.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimKey {
    pub(super) id: i64,
    pub(super) token: i64,
}

/// A message as it is claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) key: ClaimKey,
    pub(super) queue: QueueName,
    pub(super) rank: i64,
    pub(super) submitted: i64,
    pub(super) content_type: String,
    pub(super) content_encoding: Option<String>,
    pub(super) headers: BTreeMap<String, Value>,
    pub(super) body: Bytes,
}

/// What a look for work found.
#[derive(Debug)]
pub(super) enum Look {
    /// These, now claimed.
    Found(Vec<Claimed>),
    /// Nothing, and nothing will become ready by itself before this time has passed.
    Nothing {
        /// `None`: nothing is delayed or leased.
        next: Option<Duration>,
    },
}

/// Claims the best ready messages of `queues`, at most `credit`.
pub(super) fn look(
    transaction: &mut Transaction<'_>,
    queues: &[QueueName],
    credit: usize,
    lease: Duration,
    owner: &str,
) -> rusqlite::Result<Look> {
    promote(transaction)?;
    let until = clock::machine().saturating_add(clock::micros(lease));
    let best = best(transaction, queues, credit)?;
    let mut found = Vec::with_capacity(best.len());
    for place in best {
        if let Some(claimed) = claim(transaction, place.id, &queues[place.queue], until, owner)? {
            found.push(claimed);
        }
    }
    if found.is_empty() { Ok(Look::Nothing { next: next_due(transaction)? }) } else { Ok(Look::Found(found)) }
}

/// Makes ready what is due or whose lease lapsed.
fn promote(transaction: &mut Transaction<'_>) -> rusqlite::Result<()> {
    let delayed = transaction
        .statement("UPDATE messages SET state = 0, due = NULL WHERE state = 1 AND due <= ?1")?
        .execute([clock::wall()])?;
    let lapsed = transaction
        .statement("UPDATE messages SET state = 0, due = NULL WHERE state = 2 AND due <= ?1")?
        .execute([clock::machine()])?;
    if delayed + lapsed > 0 {
        // It may be of a queue that only others fetch from.
        transaction.ring(Signal::Work);
    }
    Ok(())
}

/// Where a ready message stands: ordered as they are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: i64,
    id: i64,
    queue: usize,
}

fn best(transaction: &Transaction<'_>, queues: &[QueueName], credit: usize) -> rusqlite::Result<Vec<Place>> {
    let mut places = Vec::new();
    // Answered from the index alone.
    let mut ready = transaction.statement(
        "SELECT rank, id FROM messages INDEXED BY messages_ready
         WHERE queue = ?1 AND state = 0 ORDER BY rank, id LIMIT ?2",
    )?;
    let most = i64::try_from(credit).unwrap_or(i64::MAX);
    for (queue, name) in queues.iter().enumerate() {
        if is_paused(transaction, name)? {
            continue;
        }
        let rows = ready.query_map(params![name.as_str(), most], |row| {
            Ok(Place { rank: row.get(0)?, id: row.get(1)?, queue })
        })?;
        for place in rows {
            places.push(place?);
        }
    }
    if queues.len() > 1 {
        places.sort_unstable();
        places.dedup_by_key(|place| place.id);
        places.truncate(credit);
    }
    Ok(places)
}

/// Claims messages of `queues` whose time has not come, at most `credit`, soonest first; each with that time.
pub(super) fn early(
    transaction: &mut Transaction<'_>,
    queues: &[QueueName],
    credit: usize,
    lease: Duration,
    owner: &str,
) -> rusqlite::Result<Vec<(i64, Claimed)>> {
    let until = clock::machine().saturating_add(clock::micros(lease));
    let most = i64::try_from(credit).unwrap_or(i64::MAX);
    let mut found = Vec::new();
    for queue in queues {
        if is_paused(transaction, queue)? {
            continue;
        }
        let mut delayed = transaction.statement(
            "SELECT due, id FROM messages WHERE state = 1 AND queue = ?1 AND due > ?2 ORDER BY due, id LIMIT ?3",
        )?;
        let rows = delayed.query_map(params![queue.as_str(), clock::wall(), most], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
        found.extend(rows.map(|row| row.map(|(due, id)| (due, id, queue))).collect::<Result<Vec<_>, _>>()?);
    }
    found.sort_unstable_by_key(|(due, id, _)| (*due, *id));
    found.truncate(credit);
    let mut claimed = Vec::with_capacity(found.len());
    for (due, id, queue) in found {
        claimed.extend(claim(transaction, id, queue, until, owner)?.map(|message| (due, message)));
    }
    Ok(claimed)
}

fn is_paused(transaction: &Transaction<'_>, queue: &QueueName) -> rusqlite::Result<bool> {
    let mut paused = transaction.statement("SELECT paused FROM queues WHERE name = ?1")?;
    Ok(paused.query_row([queue.as_str()], |row| row.get(0)).optional()?.unwrap_or(false))
}

fn claim(
    transaction: &Transaction<'_>,
    id: i64,
    queue: &QueueName,
    until: i64,
    owner: &str,
) -> rusqlite::Result<Option<Claimed>> {
    let mut read = transaction.statement(
        "SELECT m.token, m.submitted, b.content_type, b.content_encoding, b.headers, b.body, m.rank
         FROM messages m JOIN bodies b ON b.id = m.id WHERE m.id = ?1",
    )?;
    let claimed = read.query_row([id], |row| {
        Ok(Claimed {
            key: ClaimKey { id, token: row.get::<_, i64>(0)? + 1 },
            queue: queue.clone(),
            rank: row.get(6)?,
            submitted: row.get(1)?,
            content_type: row.get(2)?,
            content_encoding: row.get(3)?,
            headers: headers(row.get(4)?)?,
            body: Bytes::copy_from_slice(row.get_ref(5)?.as_blob()?),
        })
    });
    let Some(claimed) = claimed.optional()? else {
        tracing::error!(message = id, "a message has lost its body and is dropped");
        remove(transaction, id)?;
        return Ok(None);
    };
    transaction
        .statement("UPDATE messages SET state = 2, due = ?2, token = ?3, owner = ?4 WHERE id = ?1")?
        .execute(params![id, until, claimed.key.token, owner])?;
    Ok(Some(claimed))
}

fn next_due(transaction: &Transaction<'_>) -> rusqlite::Result<Option<Duration>> {
    let mut delayed = transaction.statement("SELECT min(due) FROM messages WHERE state = 1")?;
    let delayed: Option<i64> = delayed.query_row([], |row| row.get(0))?;
    let mut leased = transaction.statement("SELECT min(due) FROM messages WHERE state = 2")?;
    let leased: Option<i64> = leased.query_row([], |row| row.get(0))?;
    let delayed = delayed.map(|due| clock::until(due, clock::wall()));
    let leased = leased.map(|due| clock::until(due, clock::machine()));
    Ok(delayed.into_iter().chain(leased).min())
}

/// Prolongs a claim, also one that lapsed while nobody took the message. Says whether it still stood.
pub(super) fn extend(transaction: &Transaction<'_>, key: ClaimKey, by: Duration) -> rusqlite::Result<bool> {
    let until = clock::machine().saturating_add(clock::micros(by));
    let mut extend =
        transaction.statement("UPDATE messages SET state = 2, due = ?3 WHERE id = ?1 AND token = ?2")?;
    Ok(extend.execute([key.id, key.token, until])? > 0)
}

/// Ends a claim.
pub(super) fn settle(
    transaction: &mut Transaction<'_>,
    key: ClaimKey,
    settlement: &Settlement,
) -> rusqlite::Result<Settled> {
    let stood = match settlement {
        Settlement::Ack => acknowledge(transaction, key)?,
        Settlement::Retry { after } | Settlement::Release { after } => give_back(transaction, key, *after)?,
        Settlement::DeadLetter { reason } => park(transaction, key, reason)?,
    };
    Ok(if stood { Settled::Settled } else { Settled::Lost })
}

fn acknowledge(transaction: &Transaction<'_>, key: ClaimKey) -> rusqlite::Result<bool> {
    let mut remove = transaction.statement("DELETE FROM messages WHERE id = ?1 AND token = ?2")?;
    let stood = remove.execute([key.id, key.token])? > 0;
    if stood {
        transaction.statement("DELETE FROM bodies WHERE id = ?1")?.execute([key.id])?;
    }
    Ok(stood)
}

fn give_back(transaction: &mut Transaction<'_>, key: ClaimKey, after: Duration) -> rusqlite::Result<bool> {
    // By the wall's clock, so that a delay outlives a reboot.
    let due = (!after.is_zero()).then(|| clock::wall().saturating_add(clock::micros(after)));
    let stood = transaction
        .statement(
            "UPDATE messages SET state = ?3, due = ?4, token = token + 1, owner = NULL WHERE id = ?1 AND token = ?2",
        )?
        .execute(params![key.id, key.token, i64::from(due.is_some()), due])?
        > 0;
    if stood {
        transaction.ring(Signal::Work);
    }
    Ok(stood)
}

fn park(transaction: &Transaction<'_>, key: ClaimKey, reason: &str) -> rusqlite::Result<bool> {
    let mut park = transaction.statement(
        "INSERT INTO dead (task, queue, reason, parked, content_type, content_encoding, headers, body)
         SELECT m.task, m.queue, ?3, ?4, b.content_type, b.content_encoding, b.headers, b.body
         FROM messages m JOIN bodies b ON b.id = m.id WHERE m.id = ?1 AND m.token = ?2",
    )?;
    let stood = park.execute(params![key.id, key.token, reason, clock::wall()])? > 0;
    if stood {
        remove(transaction, key.id)?;
    }
    Ok(stood)
}

fn remove(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    transaction.statement("DELETE FROM messages WHERE id = ?1")?.execute([id])?;
    transaction.statement("DELETE FROM bodies WHERE id = ?1")?.execute([id])?;
    Ok(())
}
