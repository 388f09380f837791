//! How many tasks that do nothing pass the whole road in a second: queue, record, events, outbox and settlement in SQLite
//! with a sync for every commit; and whether a long queue makes each of them dearer.
//!
//! The limit is a bare queue in SQLite: claim 64, delete 64, each with a sync. It keeps no record and tells nobody.

use std::path::Path;
use std::time::{Duration, Instant};

use longshore::ping::Ping;
use longshore::task::{Arg, ArgMap, Task};
use rusqlite::{Connection, params};

use crate::support::Outcome;
use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};
use crate::support::rig::{self, Rig};

/// Tasks of one round, and of a queue of usual length.
const USUAL: usize = 10_000;
/// A short queue, drained so often in a round.
const SHORT: usize = 100;
const SHORT_DRAINS: usize = 30;
/// A long one, of which a round takes [`USUAL`].
const LONG: usize = 1_000_000;
/// What the Python worker gets in a round.
const PYTHON: usize = 6_000;
const PAYLOAD: usize = 1_024;
/// The lanes that the bar is for.
const LANES: usize = 64;
/// Claimed and deleted at a time by the bare queue.
const BARE_BATCH: i64 = 64;

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32, large: bool) -> Outcome<Answer> {
    let mut answer =
        Answer::begin("dispatch", "longshore.ping with 1 KB through SQLite, synchronous FULL (tasks/s)");
    let (mut limit, mut python) = (Vec::new(), Vec::new());
    let (mut by_lanes, mut short) = ([const { Vec::new() }; 3], Vec::new());
    let lanes = [1, 8, LANES];
    for _ in 0..rounds {
        let folder = rig::folder()?;
        limit.push(bare_drain(folder.path())?);
        for (lanes, rates) in lanes.into_iter().zip(&mut by_lanes) {
            rates.push(usual(lanes).await?);
        }
        short.push(short_queue().await?);
        python.extend(peer.noops(PYTHON).await?);
    }
    let (limit, python) = (Figure::of(&limit), Figure::if_any(&python));
    let [one, eight, many] = by_lanes.map(|rates| Figure::of(&rates));
    for (lanes, figure) in [(1, one), (8, eight)] {
        let case = format!("lanes {lanes}, {USUAL} queued");
        answer.add(Row::new(case, figure).limit(limit).python(python));
    }
    let row = Row::new(format!("lanes {LANES}, {USUAL} queued"), many).limit(limit).python(python);
    answer.add(row.at_least_of_python(5.0));
    let row = Row::new(format!("lanes {LANES}, {SHORT} queued; limit: {USUAL} queued"), Figure::of(&short));
    answer.add(row.limit(many).python(python));
    if large {
        let long = Figure::of(&long_queue(rounds).await?);
        let row = Row::new(format!("lanes {LANES}, {LONG} queued; limit: {USUAL} queued"), long);
        answer.add(row.limit(many).python(python).at_least_of_limit(0.9));
    }
    Ok(answer.end())
}

async fn usual(lanes: usize) -> Outcome<f64> {
    let rig = Rig::start(lanes).await?;
    rig.queue(pings(USUAL)).await?;
    let took = rig.drain(USUAL, Duration::from_millis(2)).await?;
    rig.end().await?;
    Ok(rate(USUAL, took))
}

async fn short_queue() -> Outcome<f64> {
    let rig = Rig::start(LANES).await?;
    let mut took = Duration::ZERO;
    for _ in 0..SHORT_DRAINS {
        rig.queue(pings(SHORT)).await?;
        took += rig.drain(SHORT, Duration::from_micros(200)).await?;
    }
    rig.end().await?;
    Ok(rate(SHORT * SHORT_DRAINS, took))
}

/// One queue for all rounds: it stays long, and making it is what takes time.
async fn long_queue(rounds: u32) -> Outcome<Vec<f64>> {
    let rig = Rig::start(LANES).await?;
    rig.queue(pings(LONG)).await?;
    let mut rates = Vec::new();
    for _ in 0..rounds {
        rates.push(rate(USUAL, rig.drain(USUAL, Duration::from_millis(2)).await?));
    }
    rig.end().await?;
    Ok(rates)
}

fn pings(count: usize) -> impl Iterator<Item = Task> {
    let payload = Arg::Text("x".repeat(PAYLOAD));
    (0..count).map(move |_| {
        let mut args = ArgMap::new();
        args.insert("payload".to_owned(), payload.clone());
        Task::new(Ping::KIND, args)
    })
}

/// Tasks per second of a queue that is nothing but a table.
fn bare_drain(folder: &Path) -> Outcome<f64> {
    let mut connection = Connection::open(folder.join("bare.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "CREATE TABLE jobs (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, until INTEGER, body BLOB NOT NULL);
         CREATE INDEX ready ON jobs (id) WHERE state = 0;",
    )?;
    let body = vec![b'x'; PAYLOAD];
    let filling = connection.transaction()?;
    for _ in 0..USUAL {
        filling.prepare_cached("INSERT INTO jobs (state, body) VALUES (0, ?1)")?.execute([&body])?;
    }
    filling.commit()?;
    let begin = Instant::now();
    loop {
        let claiming = connection.transaction()?;
        let claimed: Vec<i64> = claiming
            .prepare_cached(
                "UPDATE jobs SET state = 1, until = 60 WHERE id IN
                   (SELECT id FROM jobs WHERE state = 0 ORDER BY id LIMIT ?1) RETURNING id, body",
            )?
            .query_map([BARE_BATCH], |row| {
                row.get_ref(1)?.as_blob()?;
                row.get(0)
            })?
            .collect::<Result<_, _>>()?;
        claiming.commit()?;
        if claimed.is_empty() {
            return Ok(rate(USUAL, begin.elapsed()));
        }
        let deleting = connection.transaction()?;
        for id in claimed {
            deleting.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute(params![id])?;
        }
        deleting.commit()?;
    }
}

#[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
