//! Publishing and following events, and commands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use rusqlite::{Connection, OptionalExtension, params};

use super::events::{self, Written};
use super::{Client, refusal, unreadable};
use crate::broker::{BrokerError, Command, Ending, Place, Topic};
use crate::events::{Event, EventFilter, EventStart};
use crate::sqlite::{Database, DatabaseError, Signal, Transaction, Waiter, Work, clock};
use crate::task::TaskId;

/// How long a command can be heard by one who was slow; a cancel is kept apart and for longer.
const COMMAND_AGE: Duration = Duration::from_secs(3_600);
/// How long a cancel is remembered of a task that no queue holds.
const CANCEL_AGE: Duration = Duration::from_secs(90 * 86_400);

#[async_trait]
impl Topic for Client {
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError> {
        self.end(events, Vec::new()).await.map(drop)
    }

    fn place(&self) -> Option<Place> {
        Some(Place::new(self.database.path().to_string_lossy()))
    }

    async fn end(&self, events: &[Event], endings: Vec<(usize, Ending)>) -> Result<Vec<usize>, BrokerError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let mut written: Vec<Publishing> = events.iter().map(Publishing::of).collect();
        for (at, ending) in endings {
            written[at].end_with(ending);
        }
        let prune = self.is_time_to_prune(events.len() as u64).then(|| self.options.clone());
        let written = self.database.write(move |transaction| {
            let mut refused = Vec::new();
            for (at, publishing) in written.iter_mut().enumerate() {
                if !publishing.publish(transaction)? {
                    refused.push(at);
                }
            }
            if let Some(options) = &prune {
                events::prune(transaction, options)?;
            }
            transaction.ring(Signal::Event);
            Ok(refused)
        });
        written.await.map_err(self.cannot("publish events"))
    }

    async fn replay(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let ends = self.database.read_long(move |connection| {
            Ok((events::cursor(connection, start)?, events::newest(connection)?))
        });
        let (cursor, newest) = ends.await.map_err(self.cannot("replay events"))?;
        Ok(Replay::new(self, filter, cursor, newest).stream())
    }

    async fn follow(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let follower = Follower::new(self, Signal::Event, "replay events", move |connection, cursor| {
            events::after(connection, &filter, cursor)
        });
        let cursor = self.database.read_long(move |connection| events::cursor(connection, start)).await;
        Ok(follower.stream(cursor.map_err(self.cannot("replay events"))?))
    }

    async fn command(&self, command: Command) -> Result<(), BrokerError> {
        let text = serde_json::to_string(&command).expect("invariant: a command has text keys");
        let written = self.database.write(move |transaction| {
            let now = clock::wall();
            if let Command::Cancel { task, reason } = &command {
                transaction
                    .statement("INSERT OR REPLACE INTO cancels (task, reason, at) VALUES (?1, ?2, ?3)")?
                    .execute(params![task.as_str(), reason, now])?;
            }
            transaction
                .statement("INSERT INTO commands (at, command) VALUES (?1, ?2)")?
                .execute(params![now, text])?;
            transaction
                .statement("DELETE FROM commands WHERE at < ?1")?
                .execute([now.saturating_sub(clock::micros(COMMAND_AGE))])?;
            transaction
                .statement(
                    "DELETE FROM cancels WHERE at < ?1
                     AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.task = cancels.task)",
                )?
                .execute([now.saturating_sub(clock::micros(CANCEL_AGE))])?;
            transaction.ring(Signal::Command);
            Ok(())
        });
        written.await.map_err(self.cannot("send a command"))
    }

    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError> {
        let follower = Follower::new(self, Signal::Command, "hear commands", commands_after);
        let cursor = self.database.read_long(|connection| {
            // Of the sequence, not of the rows: they may all have been removed for their age.
            let mut last =
                connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'commands'")?;
            Ok(last.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
        });
        Ok(follower.stream(cursor.await.map_err(self.cannot("hear commands"))?))
    }

    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError> {
        let read = self.database.read(|connection| {
            let mut reason = connection.prepare_cached("SELECT reason FROM cancels WHERE task = ?1")?;
            reason.query_row([task.as_str()], |row| row.get(0)).optional()
        });
        read.map_err(self.cannot("look for a cancel request"))
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        // Most tasks were never canceled: a look is cheaper than a commit.
        if self.cancel_requested(task).await?.is_none() {
            return Ok(());
        }
        let task = task.as_str().to_owned();
        let written = self.database.write(move |transaction| {
            transaction.statement("DELETE FROM cancels WHERE task = ?1")?.execute([&task])
        });
        written.await.map(drop).map_err(self.cannot("forget a cancel request"))
    }
}

/// An event and what happens with it.
struct Publishing {
    event: Written,
    rest: Rest,
}

enum Rest {
    Nothing,
    End {
        record: Work,
        settlement: Work,
    },
    /// Of another place: not to be had here.
    Foreign,
}

impl Publishing {
    fn of(event: &Event) -> Self {
        Self { event: Written::of(event), rest: Rest::Nothing }
    }

    fn end_with(&mut self, Ending { record, settlement }: Ending) {
        self.rest = match (record.into_work(), settlement.into_work()) {
            (Some(record), Some(settlement)) => Rest::End { record, settlement },
            (_, None) | (None, _) => Rest::Foreign,
        };
    }

    /// Whether it was published.
    fn publish(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<bool> {
        match &mut self.rest {
            Rest::Nothing => events::insert(transaction, &self.event)?,
            Rest::Foreign => return Ok(false),
            Rest::End { record, settlement } => {
                if !record.run(transaction)? {
                    return Ok(false);
                }
                events::insert(transaction, &self.event)?;
                // A message that is another's by now comes again and finds its task finished.
                settlement.run(transaction)?;
            }
        }
        Ok(true)
    }
}

impl Client {
    /// Whether, with `more` events, so many were published that the shelves may hold an eighth too much.
    fn is_time_to_prune(&self, more: u64) -> bool {
        let every = (events::shelf_size(&self.options) / 8).max(64);
        let before = self.published.fetch_add(more, Ordering::Relaxed);
        before / every != before.wrapping_add(more) / every
    }
}

fn commands_after(connection: &Connection, cursor: i64) -> rusqlite::Result<(Vec<Command>, i64)> {
    let mut statement = connection
        .prepare_cached("SELECT seq, command FROM commands WHERE seq > ?1 ORDER BY seq LIMIT 512")?;
    let mut rows = statement.query([cursor])?;
    let (mut found, mut last) = (Vec::new(), cursor);
    while let Some(row) = rows.next()? {
        last = row.get(0)?;
        found.push(serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(unreadable)?);
    }
    Ok((found, last))
}

/// A reader of the events after its cursor, up to one that was the newest when it began.
struct Replay {
    database: Arc<Database>,
    name: String,
    filter: EventFilter,
    cursor: i64,
    newest: i64,
}

impl Replay {
    fn new(client: &Client, filter: EventFilter, cursor: i64, newest: i64) -> Self {
        Self { database: Arc::clone(&client.database), name: client.name.clone(), filter, cursor, newest }
    }

    /// Ends after the first error.
    fn stream(self) -> BoxStream<'static, Result<Event, BrokerError>> {
        stream::unfold(Some(self), |replay| async {
            let mut replay = replay?;
            match replay.next().await {
                Ok(Some(found)) => {
                    Some((stream::iter(found.into_iter().map(Ok).collect::<Vec<_>>()), Some(replay)))
                }
                Ok(None) => None,
                Err(error) => {
                    Some((stream::iter(vec![Err(refusal(&replay.name, "replay events", error))]), None))
                }
            }
        })
        .flatten()
        .boxed()
    }

    /// The next events, perhaps none of interest; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Event>>, DatabaseError> {
        if self.cursor >= self.newest {
            return Ok(None);
        }
        let (filter, cursor, newest) = (self.filter.clone(), self.cursor, self.newest);
        let read =
            self.database.read_long(move |connection| events::between(connection, &filter, (cursor, newest)));
        let (found, last) = read.await?;
        let came_further = last > self.cursor;
        self.cursor = last;
        Ok(came_further.then_some(found))
    }
}

/// A reader of rows after its cursor: reads what is there, then what each ring announces.
struct Follower<T, F> {
    database: Arc<Database>,
    name: String,
    action: &'static str,
    waiter: Waiter,
    cursor: i64,
    read: VecDeque<T>,
    after: Arc<F>,
}

impl<T, F> Follower<T, F>
where
    T: Send + 'static,
    F: Fn(&Connection, i64) -> rusqlite::Result<(Vec<T>, i64)> + Send + Sync + 'static,
{
    fn new(client: &Client, signal: Signal, action: &'static str, after: F) -> Self {
        Self {
            database: Arc::clone(&client.database),
            name: client.name.clone(),
            action,
            waiter: client.database.waiter(signal),
            cursor: 0,
            read: VecDeque::new(),
            after: Arc::new(after),
        }
    }

    /// Ends after the first error.
    fn stream(mut self, cursor: i64) -> BoxStream<'static, Result<T, BrokerError>> {
        self.cursor = cursor;
        stream::unfold(Some(self), |follower| async {
            let mut follower = follower?;
            match follower.next().await {
                Ok(next) => Some((Ok(next), Some(follower))),
                Err(error) => Some((Err(refusal(&follower.name, follower.action, error)), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<T, DatabaseError> {
        loop {
            if let Some(thing) = self.read.pop_front() {
                return Ok(thing);
            }
            self.waiter.arm();
            let (after, cursor) = (Arc::clone(&self.after), self.cursor);
            let (found, last) = self.database.read_long(move |connection| after(connection, cursor)).await?;
            let came_further = last > self.cursor;
            self.cursor = last;
            self.read = found.into();
            // What was read may have been all of no interest, with more behind it.
            if !came_further {
                self.waiter.rung().await;
            }
        }
    }
}
