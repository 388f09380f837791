//! Following events: what is kept is read from both streams in one order, then live ones come from channels.
//!
//! # Decisions
//! The channels are subscribed to before the streams are read. Ids grow over both streams together and every live message
//! carries its own, so what was read already is told apart, and after a broken connection the streams fill the gap.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use redis::Value;
use redis::aio::PubSubStream;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Client, refusal};
use crate::broker::BrokerError;
use crate::events::{Event, EventFilter, EventStart, cloudevent};
use crate::redis::{Link, LinkError, Place, value};

/// Events of each stream in one read.
const READ_AT_ONCE: usize = 512;
/// Clocks may differ by so much: events are looked for from so long before the wanted time.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// How long a server may be away before a follower gives up.
const AWAY: Duration = Duration::from_secs(60);
/// Between two tries to listen again.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// The id of an event: milliseconds and number.
type Id = (u64, u64);

/// A reader of events.
pub(super) struct Follower {
    place: Place,
    link: Link,
    keys: [String; 3],
    pattern: String,
    filter: EventFilter,
    /// Replayed events before it are none of the answer.
    since: Option<Timestamp>,
    cursor: Id,
    /// The newest event that is wanted; `None`: live ones are, too.
    end: Option<Id>,
    read: VecDeque<Event>,
    live: Option<PubSubStream>,
    /// Whether the streams have been read to their end since the channels were subscribed to.
    caught_up: bool,
}

/// What a live message has beside the event.
#[derive(Deserialize)]
struct Numbered {
    streamid: String,
}

impl Follower {
    /// A reader that goes on with live events.
    pub(super) async fn start(
        client: &Client,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<Self, LinkError> {
        let mut follower = Self::at(client, filter, start).await?;
        follower.listen().await?;
        Ok(follower)
    }

    /// A reader that ends with the newest event that is there now.
    pub(super) async fn replay(
        client: &Client,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<Self, LinkError> {
        let mut follower = Self::at(client, filter, start).await?;
        follower.end = Some(follower.newest().await?);
        Ok(follower)
    }

    async fn at(client: &Client, filter: EventFilter, start: EventStart) -> Result<Self, LinkError> {
        let mut follower = Self {
            place: client.place.clone(),
            link: client.link.clone(),
            keys: client.keys.events(),
            pattern: client.keys.event_pattern(&filter),
            filter,
            since: None,
            cursor: (0, 0),
            end: None,
            read: VecDeque::new(),
            live: None,
            caught_up: false,
        };
        match start {
            EventStart::Oldest => {}
            EventStart::Since(time) => {
                let from =
                    time.as_millisecond() - i64::try_from(CLOCKS_APART.as_millis()).unwrap_or_default();
                follower.cursor = (u64::try_from(from).unwrap_or(0), 0);
                follower.since = Some(time);
            }
            EventStart::Now => follower.cursor = follower.newest().await?,
        }
        Ok(follower)
    }

    async fn newest(&self) -> Result<Id, LinkError> {
        let newest = self.link.send(redis::cmd("GET").arg(&self.keys[2])).await?;
        Ok(value::text_if_any(newest)?.and_then(|id| id_of(&id)).unwrap_or((0, 0)))
    }

    /// Ends after the first error.
    pub(super) fn stream(self) -> BoxStream<'static, Result<Event, BrokerError>> {
        stream::unfold(Some(self), |follower| async {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(follower))),
                Ok(None) => None,
                Err(error) => Some((Err(refusal(&follower.place.name, "replay events", error)), None)),
            }
        })
        .boxed()
    }

    /// `None` behind the end of a replay.
    async fn next(&mut self) -> Result<Option<Event>, LinkError> {
        let mut failing: Option<Instant> = None;
        loop {
            if let Some(event) = self.read.pop_front() {
                return Ok(Some(event));
            }
            if self.end.is_some_and(|end| self.caught_up || self.cursor >= end) {
                return Ok(None);
            }
            match self.step().await {
                Ok(()) => failing = None,
                Err(error) if matches!(error, LinkError::Unavailable(_)) => {
                    self.live = None;
                    if failing.get_or_insert_with(Instant::now).elapsed() > AWAY {
                        return Err(error);
                    }
                    tokio::time::sleep(LISTEN_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a page, or waits for a live message.
    async fn step(&mut self) -> Result<(), LinkError> {
        if self.end.is_some() {
            return self.read_page().await;
        }
        let Some(live) = &mut self.live else { return self.listen().await };
        if !self.caught_up {
            return self.read_page().await;
        }
        match live.next().await {
            Some(message) => {
                let payload = message.get_payload_bytes();
                let id = serde_json::from_slice(payload).ok().and_then(|n: Numbered| id_of(&n.streamid));
                if let Some(id) = id
                    && id > self.cursor
                {
                    self.cursor = id;
                    self.take(payload);
                }
            }
            None => self.live = None,
        }
        Ok(())
    }

    async fn listen(&mut self) -> Result<(), LinkError> {
        let mut listener = self.place.listener().await?;
        listener.psubscribe(&self.pattern).await?;
        self.live = Some(listener.into_on_message());
        self.caught_up = false;
        Ok(())
    }

    /// Reads the next page of both streams, as far as their order is known.
    async fn read_page(&mut self) -> Result<(), LinkError> {
        let from = format!("({}-{}", self.cursor.0, self.cursor.1);
        let mut both = redis::pipe();
        both.atomic();
        for stream in &self.keys[..2] {
            both.cmd("XRANGE").arg(stream).arg(&from).arg("+").arg("COUNT").arg(READ_AT_ONCE);
        }
        // Of a transaction: the answers to each command, then all results.
        let answers = self.link.send_all(&both, 4).await?.pop().unwrap_or(Value::Nil);
        let [status, chatter] = value::row(answers)?;
        let (status, chatter) = (entries(status)?, entries(chatter)?);
        // Behind the end of a full page there may be more that comes before the other one's rest.
        let ends = [&status, &chatter].into_iter().filter(|page| page.len() == READ_AT_ONCE);
        let end = ends.filter_map(|page| page.last().map(|(id, _)| *id)).min();
        self.caught_up = end.is_none();
        let mut page: Vec<(Id, Vec<u8>)> = status.into_iter().chain(chatter).collect();
        page.retain(|(id, _)| end.is_none_or(|end| *id <= end));
        page.sort_unstable_by_key(|(id, _)| *id);
        for (id, document) in page {
            self.cursor = id;
            if self.end.is_none_or(|end| id <= end) {
                self.take(&document);
            }
        }
        Ok(())
    }

    fn take(&mut self, document: &[u8]) {
        match cloudevent::decode(document) {
            Ok(event) => {
                if self.filter.matches(&event) && self.since.is_none_or(|since| event.time >= since) {
                    self.read.push_back(event);
                }
            }
            // One bad document must not hide all that follows it.
            Err(error) => tracing::error!(%error, "an event is unreadable and left out"),
        }
    }
}

fn entries(answer: Value) -> Result<Vec<(Id, Vec<u8>)>, LinkError> {
    let mut found = Vec::new();
    for entry in value::list(answer)? {
        let [id, fields] = value::row(entry)?;
        let id = value::text(id)?;
        let id = id_of(&id).ok_or_else(|| LinkError::Unreadable(format!("{id:?} is no id of a stream")))?;
        // The one field is `event`.
        if let Some(document) = value::list(fields)?.into_iter().nth(1) {
            found.push((id, value::bytes(document)?));
        }
    }
    Ok(found)
}

fn id_of(text: &str) -> Option<Id> {
    let (millis, number) = text.split_once('-')?;
    Some((millis.parse().ok()?, number.parse().ok()?))
}
