//! Following events: what is kept is read from both streams in one order, then live ones come as they are published.
//!
//! # Decisions
//! - Live events are heard on the subjects themselves, not through a consumer of each stream: one connection hands them on
//!   in the order in which a worker published them, sooner, and costs the server no consumer per reader.
//! - The subjects are heard before the streams are read; what was read already is told apart by its id. After a broken
//!   connection, or when a slow reader's subscription overflowed, the streams fill the gap in the same way.
//! - Both streams are merged by the times that the server gave.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::time::Instant;

use super::names::Names;
use super::{Client, refusal};
use crate::broker::BrokerError;
use crate::events::{Event, EventFilter, EventStart, cloudevent};
use crate::nats::{Breaks, From, Link, LinkError, Scan, Stored};

/// Ids that are remembered to tell live events from replayed ones.
const REMEMBERED: usize = 65_536;
/// Clocks may differ by so much: events are looked for from so long before the wanted time.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// How long a server may be away before a follower gives up.
const AWAY: Duration = Duration::from_secs(60);
/// Between two tries to read again.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// What makes an event the same one when it is told again.
pub(super) fn message_id(event: &Event) -> String {
    let (sequence, kind) = (cloudevent::sequence(event.fence, event.number), event.kind().as_str());
    // Queued events of several lives of a task differ by their time only.
    format!("{}/{sequence}/{kind}/{}", event.task, event.time.as_microsecond())
}

/// A reader of events.
pub(super) struct Follower {
    link: Link,
    name: String,
    names: Names,
    streams: [String; 2],
    subject: String,
    filter: EventFilter,
    /// Replayed events before it are none of the answer.
    since: Option<Timestamp>,
    /// Where the reading began, and the time of the newest event that was met.
    from: From,
    reached: Option<Timestamp>,
    past: Option<Past>,
    live: Option<(Subscriber, Breaks)>,
    seen: Seen,
    /// Since when the server is away.
    failing: Option<Instant>,
}

/// What is read from the streams.
struct Past {
    scans: Vec<Scan>,
    heads: Vec<Option<Stored>>,
}

impl Follower {
    /// A reader that goes on with live events.
    pub(super) async fn start(
        client: &Client,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<Self, LinkError> {
        let mut follower = Self::new(client, filter, start);
        let breaks = client.link.breaks();
        let live = client.link.subscribe(follower.subject.clone()).await?;
        client.link.settled().await?;
        follower.live = Some((live, breaks));
        if start != EventStart::Now {
            follower.past = Some(follower.open_past().await?);
        }
        Ok(follower)
    }

    /// A reader that ends with the newest event that is there now.
    pub(super) async fn replay(
        client: &Client,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<Self, LinkError> {
        let mut follower = Self::new(client, filter, start);
        if start != EventStart::Now {
            follower.past = Some(follower.open_past().await?);
        }
        Ok(follower)
    }

    fn new(client: &Client, filter: EventFilter, start: EventStart) -> Self {
        Self {
            link: client.link.clone(),
            name: client.place.name.clone(),
            names: client.names.clone(),
            streams: client.names.event_streams(),
            subject: client.names.event_filter(&filter),
            filter,
            since: match start {
                EventStart::Since(time) => Some(time),
                EventStart::Oldest | EventStart::Now => None,
            },
            from: match start {
                EventStart::Oldest => From::Oldest,
                EventStart::Since(time) => From::Time(before(time)),
                EventStart::Now => From::Time(before(Timestamp::now())),
            },
            reached: None,
            past: None,
            live: None,
            seen: Seen::default(),
            failing: None,
        }
    }

    async fn open_past(&self) -> Result<Past, LinkError> {
        let from = self.reached.map_or(self.from, |time| From::Time(before(time)));
        let mut scans = Vec::new();
        for (stream, chatter) in self.streams.iter().zip([false, true]) {
            // Server 2.9 takes one filter per consumer, and only one within the stream's subjects.
            for filter in self.names.event_filters(&self.filter, chatter) {
                scans.push(Scan::whole(&self.link, stream, &filter, from).await?);
            }
        }
        let heads = scans.iter().map(|_| None).collect();
        Ok(Past { scans, heads })
    }

    /// Ends after the first error.
    pub(super) fn stream(self) -> BoxStream<'static, Result<Event, BrokerError>> {
        stream::unfold(Some(self), |follower| async {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(follower))),
                Ok(None) => None,
                Err(error) => Some((Err(refusal(&follower.name, "replay events", error)), None)),
            }
        })
        .boxed()
    }

    /// `None` behind the end of a replay.
    async fn next(&mut self) -> Result<Option<Event>, LinkError> {
        loop {
            if let Some(past) = &mut self.past {
                match past.next().await {
                    Ok(Some(stored)) => {
                        self.reached = Some(stored.time);
                        if let Some(event) = self.wanted(&stored.body, self.since) {
                            return Ok(Some(event));
                        }
                    }
                    Ok(None) => self.past = None,
                    Err(error) => self.read_again(error).await?,
                }
                continue;
            }
            let Some((live, breaks)) = &mut self.live else { return Ok(None) };
            let message = tokio::select! {
                biased;
                _ = breaks.changed() => {
                    self.read_again(LinkError::Unavailable("the connection broke".to_owned())).await?;
                    continue;
                }
                message = live.next() => message,
            };
            let Some(message) = message else { return Ok(None) };
            if let Some(event) = self.wanted(&message.payload, None) {
                self.reached = Some(self.reached.map_or(event.time, |reached| reached.max(event.time)));
                return Ok(Some(event));
            }
        }
    }

    /// Opens the streams anew from where something may have been missed.
    async fn read_again(&mut self, error: LinkError) -> Result<(), LinkError> {
        if self.live.is_none() || !matches!(error, LinkError::Unavailable(_)) {
            return Err(error);
        }
        self.past = None;
        loop {
            match self.open_past().await {
                Ok(past) => {
                    self.failing = None;
                    self.past = Some(past);
                    return Ok(());
                }
                Err(error @ LinkError::Unavailable(_)) => {
                    if self.failing.get_or_insert_with(Instant::now).elapsed() > AWAY {
                        return Err(error);
                    }
                    tokio::time::sleep(READ_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The event, if it is wanted and new.
    fn wanted(&mut self, document: &[u8], since: Option<Timestamp>) -> Option<Event> {
        match cloudevent::decode(document) {
            Ok(event) => {
                let wanted = self.filter.matches(&event) && since.is_none_or(|since| event.time >= since);
                // A reader that ends meets nothing twice.
                if wanted && (self.live.is_none() || self.seen.is_new(&event)) { Some(event) } else { None }
            }
            // One bad document must not hide all that follows it.
            Err(error) => {
                tracing::error!(%error, "an event is unreadable and left out");
                None
            }
        }
    }
}

fn before(time: Timestamp) -> Timestamp {
    time.checked_sub(CLOCKS_APART).unwrap_or(Timestamp::MIN)
}

impl Past {
    /// The oldest of what is left in both.
    async fn next(&mut self) -> Result<Option<Stored>, LinkError> {
        for (scan, head) in self.scans.iter_mut().zip(&mut self.heads) {
            if head.is_none() {
                *head = scan.next().await?;
            }
        }
        let heads = self.heads.iter_mut().filter(|head| head.is_some());
        let oldest = heads.min_by_key(|head| head.as_ref().map(|stored| stored.time));
        let oldest = oldest.and_then(Option::take);
        if oldest.is_none() {
            for scan in self.scans.drain(..) {
                scan.end().await;
            }
            self.heads.clear();
        }
        Ok(oldest)
    }
}

/// The ids of the events that came last.
#[derive(Default)]
struct Seen {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    fn is_new(&mut self, event: &Event) -> bool {
        let mut hasher = DefaultHasher::new();
        message_id(event).hash(&mut hasher);
        let id = hasher.finish();
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}
