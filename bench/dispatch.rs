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
use crate::support::rig::{self, Drained, Rig};

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

/// What some drains of one kind gave, round by round.
struct Rounds {
    /// Tasks per second.
    rates: Vec<f64>,
    /// Microseconds of processor time per task: what a task costs also while the machine does other things.
    costs: Vec<f64>,
}

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32, large: bool) -> Outcome<Answer> {
    let mut answer = Answer::begin(
        "dispatch",
        "longshore.ping with 1 KB through SQLite, synchronous FULL (tasks/s; processor time: less is better)",
    );
    let (mut limit, mut python) = (Vec::new(), Vec::new());
    let [mut one, mut eight, mut many, mut short] = [const { Rounds::EMPTY }; 4];
    for _ in 0..rounds {
        let folder = rig::folder()?;
        limit.push(bare_drain(folder.path())?);
        for (lanes, rounds) in [(1, &mut one), (8, &mut eight), (LANES, &mut many)] {
            rounds.add(USUAL, usual(lanes).await?);
        }
        short.add(SHORT * SHORT_DRAINS, short_queue().await?);
        python.extend(peer.noops(PYTHON).await?);
    }
    let (limit, python) = (Figure::of(&limit), Figure::if_any(&python));
    for (lanes, rounds) in [(1, one), (8, eight)] {
        let case = format!("lanes {lanes}, {USUAL} queued");
        answer.add(Row::new(case, Figure::of(&rounds.rates)).limit(limit).python(python));
    }
    let rate = Figure::of(&many.rates);
    let row = Row::new(format!("lanes {LANES}, {USUAL} queued"), rate).limit(limit).python(python);
    answer.add(row.at_least_of_python(5.0));
    let row = Row::new(format!("lanes {LANES}, {SHORT} queued; limit: {USUAL}"), Figure::of(&short.rates));
    answer.add(row.limit(rate).python(python));
    let cost = Figure::of(&many.costs);
    answer.add(Row::new(format!("lanes {LANES}, {USUAL} queued: processor \u{b5}s per task"), cost));
    let case = format!("lanes {LANES}, {SHORT} queued: processor \u{b5}s per task; limit: {USUAL}");
    answer.add(Row::new(case, Figure::of(&short.costs)).limit(cost));
    if large {
        let long = long_queue(rounds).await?;
        let row = Row::new(format!("lanes {LANES}, {LONG} queued; limit: {USUAL}"), Figure::of(&long.rates));
        answer.add(row.limit(rate).python(python).at_least_of_limit(0.9));
        let case = format!("lanes {LANES}, {LONG} queued: processor \u{b5}s per task; limit: {USUAL}");
        answer.add(Row::new(case, Figure::of(&long.costs)).limit(cost).at_most_of_limit(1.1));
    }
    Ok(answer.end())
}

impl Rounds {
    const EMPTY: Self = Self { rates: Vec::new(), costs: Vec::new() };

    #[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
    fn add(&mut self, count: usize, drained: Drained) {
        self.rates.push(count as f64 / drained.took.as_secs_f64());
        self.costs.push(drained.processors.as_secs_f64() * 1e6 / count as f64);
    }
}

async fn usual(lanes: usize) -> Outcome<Drained> {
    let rig = Rig::start(lanes).await?;
    rig.queue(pings(USUAL)).await?;
    let drained = rig.drain(USUAL, Duration::from_millis(2)).await?;
    rig.end().await?;
    Ok(drained)
}

async fn short_queue() -> Outcome<Drained> {
    let rig = Rig::start(LANES).await?;
    let mut all = Drained::default();
    for _ in 0..SHORT_DRAINS {
        rig.queue(pings(SHORT)).await?;
        let drained = rig.drain(SHORT, Duration::from_micros(200)).await?;
        all.took += drained.took;
        all.processors += drained.processors;
    }
    rig.end().await?;
    Ok(all)
}

/// One queue for all rounds: it stays long, and making it is what takes time.
async fn long_queue(rounds: u32) -> Outcome<Rounds> {
    let rig = Rig::start(LANES).await?;
    rig.queue(pings(LONG)).await?;
    let mut all = Rounds::EMPTY;
    for _ in 0..rounds {
        all.add(USUAL, rig.drain(USUAL, Duration::from_millis(2)).await?);
    }
    rig.end().await?;
    Ok(all)
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
            #[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
            return Ok(USUAL as f64 / begin.elapsed().as_secs_f64());
        }
        let deleting = connection.transaction()?;
        for id in claimed {
            deleting.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute(params![id])?;
        }
        deleting.commit()?;
    }
}
