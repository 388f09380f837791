//! Events and commands of a hub: two bounded shelves of events, one row of commands, and the cancels.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Client, Hub, lock};
use crate::broker::{BrokerError, Command, OpenOptions, Topic};
use crate::events::{Event, EventFilter, EventStart};
use crate::task::TaskId;

const COMMANDS_KEPT: usize = 1_000;

/// What was said, in order.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Progress and log lines apart from the rest, so that a flood of them evicts nothing else.
    chatter: Shelf<Event>,
    status: Shelf<Event>,
    commands: Shelf<Command>,
    cancels: HashMap<TaskId, String>,
    last: u64,
}

#[derive(Debug)]
struct Shelf<T> {
    said: VecDeque<(u64, Instant, T)>,
    most: usize,
    age: Duration,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { said: VecDeque::new(), most: COMMANDS_KEPT, age: Duration::MAX }
    }
}

impl<T: Clone> Shelf<T> {
    fn push(&mut self, number: u64, thing: T) {
        let now = Instant::now();
        self.said.push_back((number, now, thing));
        let too_old = |at: &Instant| now.duration_since(*at) > self.age;
        while self.said.len() > self.most || self.said.front().is_some_and(|(_, at, _)| too_old(at)) {
            self.said.pop_front();
        }
    }

    fn after(&self, cursor: u64) -> impl Iterator<Item = &(u64, Instant, T)> {
        let start = self.said.partition_point(|(number, ..)| *number <= cursor);
        self.said.range(start..)
    }
}

impl Told {
    /// Takes over how much is kept.
    pub(super) fn keep(&mut self, options: &OpenOptions) {
        let most = usize::try_from(options.event_count / 2).unwrap_or(usize::MAX).max(1);
        for shelf in [&mut self.chatter, &mut self.status] {
            shelf.most = most;
            shelf.age = options.event_age;
        }
    }

    fn publish(&mut self, events: &[Event]) {
        for event in events {
            self.last += 1;
            let told = if event.kind().is_chatter() { &mut self.chatter } else { &mut self.status };
            told.push(self.last, event.clone());
        }
    }

    /// The number before the first event that a reader wants.
    fn cursor(&self, start: EventStart) -> u64 {
        let first = |wanted: &dyn Fn(&Event) -> bool| {
            let firsts = [&self.chatter, &self.status];
            firsts.iter().filter_map(|s| s.said.iter().find(|(_, _, e)| wanted(e)).map(|(n, ..)| n - 1)).min()
        };
        match start {
            EventStart::Oldest => 0,
            EventStart::Since(time) => first(&|event| event.time >= time).unwrap_or(self.last),
            EventStart::Now => self.last,
        }
    }

    fn events_after(&self, cursor: u64, filter: &EventFilter) -> Vec<Event> {
        let mut found: Vec<&(u64, Instant, Event)> = self
            .chatter
            .after(cursor)
            .chain(self.status.after(cursor))
            .filter(|(_, _, event)| filter.matches(event))
            .collect();
        found.sort_by_key(|(number, ..)| *number);
        found.into_iter().map(|(_, _, event)| event.clone()).collect()
    }
}

#[async_trait]
impl Topic for Client {
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError> {
        lock(&self.hub.told).publish(events);
        self.hub.ring_news();
        Ok(())
    }

    async fn replay(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let told = lock(&self.hub.told);
        let found = told.events_after(told.cursor(start), &filter);
        Ok(stream::iter(found.into_iter().map(Ok)).boxed())
    }

    async fn follow(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let cursor = lock(&self.hub.told).cursor(start);
        Ok(Follower::stream(&self.hub, cursor, move |told, cursor| told.events_after(cursor, &filter)))
    }

    async fn command(&self, command: Command) -> Result<(), BrokerError> {
        {
            let mut told = lock(&self.hub.told);
            if let Command::Cancel { task, reason } = &command {
                told.cancels.insert(task.clone(), reason.clone());
            }
            told.last += 1;
            let number = told.last;
            told.commands.push(number, command);
        }
        self.hub.ring_news();
        Ok(())
    }

    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError> {
        let cursor = lock(&self.hub.told).last;
        Ok(Follower::stream(&self.hub, cursor, |told, cursor| {
            told.commands.after(cursor).map(|(_, _, command)| command.clone()).collect()
        }))
    }

    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError> {
        Ok(lock(&self.hub.told).cancels.get(task).cloned())
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        lock(&self.hub.told).cancels.remove(task);
        Ok(())
    }
}

/// A reader of what was said after its cursor.
struct Follower<T, F> {
    hub: Arc<Hub>,
    news: watch::Receiver<u64>,
    cursor: u64,
    read: VecDeque<T>,
    after: F,
}

impl<T, F> Follower<T, F>
where
    T: Send + 'static,
    F: Fn(&Told, u64) -> Vec<T> + Send + 'static,
{
    fn stream(hub: &Arc<Hub>, cursor: u64, after: F) -> BoxStream<'static, Result<T, BrokerError>> {
        let news = hub.news.subscribe();
        let follower = Self { hub: Arc::clone(hub), news, cursor, read: VecDeque::new(), after };
        stream::unfold(follower, |mut follower| async {
            let next = follower.next().await;
            Some((Ok(next), follower))
        })
        .boxed()
    }

    async fn next(&mut self) -> T {
        loop {
            if let Some(thing) = self.read.pop_front() {
                return thing;
            }
            self.news.mark_unchanged();
            self.look();
            if self.read.is_empty() {
                // Never an error: the hub that we hold owns the sender.
                let _ = self.news.changed().await;
            }
        }
    }

    fn look(&mut self) {
        let told = lock(&self.hub.told);
        self.read = (self.after)(&told, self.cursor).into();
        self.cursor = told.last;
    }
}
