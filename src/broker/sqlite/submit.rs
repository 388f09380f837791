//! Giving work: one dedup row, one message row and one body row per submission.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::params;

use super::{Client, DEDUP_WINDOW, headers_text, rank};
use crate::broker::{BrokerError, Submission, Submit, Submitted};
use crate::sqlite::{Signal, Transaction, clock};
use crate::task::QueueName;

/// One in so many submissions sweeps the dedup ids.
const SWEEP_EVERY: i64 = 1_024;
/// How many dedup ids one sweep removes: more than come in between.
const SWEPT_AT_ONCE: i64 = 8 * SWEEP_EVERY;

#[async_trait]
impl Submit for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        if submissions.is_empty() {
            return Ok(Vec::new());
        }
        let written = self.database.write(move |transaction| {
            let mut queue: Option<&QueueName> = None;
            let mut results = Vec::with_capacity(submissions.len());
            for submission in &submissions {
                if queue != Some(&submission.queue) {
                    make_queue(transaction, &submission.queue)?;
                    queue = Some(&submission.queue);
                }
                results.push(insert(transaction, submission)?);
            }
            if results.contains(&Submitted::Queued) {
                transaction.ring(Signal::Work);
            }
            Ok(results)
        });
        written.await.map_err(self.cannot("take the submission"))
    }
}

pub(super) fn make_queue(transaction: &Transaction<'_>, queue: &QueueName) -> rusqlite::Result<()> {
    let mut insert = transaction.statement("INSERT OR IGNORE INTO queues (name) VALUES (?1)")?;
    insert.execute([queue.as_str()]).map(drop)
}

fn insert(transaction: &Transaction<'_>, submission: &Submission) -> rusqlite::Result<Submitted> {
    let now = clock::wall();
    let mut remember = transaction.statement("INSERT OR IGNORE INTO dedup (dedup_id, at) VALUES (?1, ?2)")?;
    if remember.execute(params![submission.dedup_id, now])? == 0 {
        return Ok(Submitted::Duplicate);
    }
    let id = transaction.last_id();
    let due = submission.not_before.map(Timestamp::as_microsecond).filter(|due| *due > now);
    transaction
        .statement(
            "INSERT INTO messages (id, queue, rank, state, due, token, submitted, task)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7)",
        )?
        .execute(params![
            id,
            submission.queue.as_str(),
            rank(submission.priority),
            i64::from(due.is_some()),
            due,
            now,
            submission.task.as_str(),
        ])?;
    transaction
        .statement(
            "INSERT INTO bodies (id, content_type, content_encoding, headers, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            id,
            submission.content_type,
            submission.content_encoding,
            headers_text(&submission.headers),
            &submission.body[..],
        ])?;
    if id % SWEEP_EVERY == 0 {
        sweep(transaction, now)?;
    }
    Ok(Submitted::Queued)
}

/// Forgets the oldest dedup ids once their window has passed; never the newest, whose number must not come back.
fn sweep(transaction: &Transaction<'_>, now: i64) -> rusqlite::Result<()> {
    let horizon = now.saturating_sub(clock::micros(DEDUP_WINDOW));
    transaction
        .statement(
            "DELETE FROM dedup WHERE id < (SELECT max(id) FROM dedup) AND id IN
               (SELECT id FROM (SELECT id, at FROM dedup ORDER BY id LIMIT ?1) WHERE at < ?2)",
        )?
        .execute([SWEPT_AT_ONCE, horizon])
        .map(drop)
}
