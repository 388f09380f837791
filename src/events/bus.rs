//! Carries events from attempts to every sink, each at its own pace.
//!
//! Each sink has a queue and one member of the crew that empties it in batches, so a slow or absent sink slows nobody:
//! beyond its bound, chatter (progress and log lines) is dropped for that sink alone, status events are not. Terminal
//! events travel through the same queue, behind all earlier ones of their task, and their delivery is awaited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Book, Event, EventData, EventSink, Notice, SinkError};
use crate::broker::{Ending, Place};
use crate::crew::Crew;
use crate::task::{Secret, Task};

/// Carries events to sinks. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    feeds: Vec<Feed>,
    chatter_per_second: f64,
    crew: Crew,
}

struct Feed {
    name: &'static str,
    sink: Arc<dyn EventSink>,
    sender: mpsc::UnboundedSender<Item>,
    queued: Arc<AtomicUsize>,
    dropped: AtomicU64,
}

struct Item {
    notice: Notice,
    /// Hears whether it was told, or that its ending was refused.
    delivered: Option<oneshot::Sender<Result<bool, SinkError>>>,
    receipt: Option<Arc<Receipt>>,
    /// What happens in one step with its being told.
    ending: Option<Ending>,
}

/// Tells an attempt's book when every sink has taken an event.
struct Receipt {
    book: Arc<dyn Book>,
    number: u64,
    open: AtomicUsize,
}

impl Receipt {
    fn done(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.book.taken(self.number);
        }
    }
}

/// Bytes of chatter that may wait for one sink.
const CHATTER_BOUND: usize = 8 << 20;
/// Events in one delivery.
const BATCH: usize = 256;
/// Between two tries of a sink that failed.
const RETRY: Duration = Duration::from_millis(500);

impl Bus {
    /// A bus to `sinks`. Each task's chatter is coalesced beyond `chatter_per_second` events.
    pub fn new(sinks: Vec<Arc<dyn EventSink>>, chatter_per_second: f64, crew: Crew) -> Self {
        let feeds = sinks
            .into_iter()
            .map(|sink| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let queued = Arc::new(AtomicUsize::new(0));
                let name = sink.name();
                crew.spawn("event sink", pump(sink.clone(), receiver, queued.clone()));
                Feed { name, sink, sender, queued, dropped: AtomicU64::new(0) }
            })
            .collect();
        Self { inner: Arc::new(Inner { feeds, chatter_per_second, crew }) }
    }

    /// A bus without sinks.
    pub fn silent() -> Self {
        Self { inner: Arc::new(Inner { feeds: Vec::new(), chatter_per_second: 1_000.0, crew: Crew::new() }) }
    }

    /// The sinks that must hear of the end of `task`; all of them where the task is not known.
    pub fn owed(&self, task: Option<&Task>) -> impl Iterator<Item = &'static str> {
        self.inner.feeds.iter().filter(move |feed| feed.wants(task)).map(|feed| feed.name)
    }

    /// Whether the end of `task` can be told later only by somebody who still knows the task.
    pub fn needs_task(&self, task: &Task) -> bool {
        self.inner.feeds.iter().any(|feed| feed.wants(Some(task)) && !feed.sink.knows_by_event())
    }

    /// How many chatter events each sink missed so far.
    pub fn dropped(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.inner.feeds.iter().map(|feed| (feed.name, feed.dropped.load(Ordering::Relaxed)))
    }

    pub(super) fn chatter_per_second(&self) -> f64 {
        self.inner.chatter_per_second
    }
    pub(super) fn crew(&self) -> &Crew {
        &self.inner.crew
    }

    /// Hands `event` to the queue of every sink that wants to hear of `task`; never waits.
    pub fn send(&self, event: Event, task: Option<&Arc<Task>>) {
        self.hand_out(event, task, None);
    }

    /// The same; `book` is told when all of them have taken it.
    pub fn send_booked(&self, event: Event, task: &Arc<Task>, book: &Arc<dyn Book>) {
        // One more than the sinks, so that none of them completes it before all have it.
        let receipt = Receipt { book: book.clone(), number: event.number, open: AtomicUsize::new(1) };
        let receipt = Arc::new(receipt);
        self.hand_out(event, Some(task), Some(&receipt));
        receipt.done();
    }

    fn hand_out(&self, event: Event, task: Option<&Arc<Task>>, receipt: Option<&Arc<Receipt>>) {
        let chatter = event.kind().is_chatter();
        let notice = Notice { event: Arc::new(event), task: task.cloned() };
        for feed in &self.inner.feeds {
            if !feed.wants(notice.task.as_deref()) {
                continue;
            }
            if chatter && feed.queued.load(Ordering::Relaxed) > CHATTER_BOUND {
                feed.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if let Some(receipt) = receipt {
                receipt.open.fetch_add(1, Ordering::Relaxed);
            }
            let receipt = receipt.cloned();
            feed.push(Item { notice: notice.clone(), delivered: None, receipt, ending: None });
        }
    }

    /// Delivers `notice` to the sink called `name`, behind what is queued for it. Returns when it is there.
    pub async fn deliver(&self, name: &str, notice: Notice) -> Result<(), SinkError> {
        let Some(feed) = self.inner.feeds.iter().find(|feed| feed.name == name) else {
            return Ok(());
        };
        feed.told(notice.clone(), None).await?;
        feed.sink.told(&notice).await
    }

    /// Hands a new token for the Girder at `api_url` to every sink that tells of `task`.
    pub fn renew(&self, task: &Task, api_url: &str, token: &Secret) {
        for feed in self.inner.feeds.iter().filter(|feed| feed.wants(Some(task))) {
            feed.sink.renew(&task.id, api_url, token);
        }
    }

    /// The sink at `place`: it takes the rest of a task's end into the step in which it is told of it.
    pub fn sink_at(&self, place: &Place) -> Option<&'static str> {
        let mut feeds = self.inner.feeds.iter();
        feeds.find(|feed| feed.sink.place().as_ref() == Some(place)).map(|feed| feed.name)
    }

    /// Delivers `notice` as [`Bus::deliver`] does, in one step with `ending`. `false`: that was refused, nothing happened.
    pub async fn end(&self, name: &str, notice: Notice, ending: Ending) -> Result<bool, SinkError> {
        match self.inner.feeds.iter().find(|feed| feed.name == name) {
            Some(feed) => feed.told(notice, Some(ending)).await,
            None => Ok(false),
        }
    }
}

impl Feed {
    fn wants(&self, task: Option<&Task>) -> bool {
        task.is_none_or(|task| self.sink.wants(task))
    }
    async fn told(&self, notice: Notice, ending: Option<Ending>) -> Result<bool, SinkError> {
        let (delivered, answer) = oneshot::channel();
        self.push(Item { notice, delivered: Some(delivered), receipt: None, ending });
        answer.await.unwrap_or(Err(SinkError { sink: self.name, reason: "it was closed".to_owned() }))
    }
    fn push(&self, item: Item) {
        self.queued.fetch_add(weight(&item.notice.event), Ordering::Relaxed);
        // The receiver lives as long as the crew; after the end of the worker nobody listens.
        let _ = self.sender.send(item);
    }
}

/// Roughly what an event takes in memory.
fn weight(event: &Event) -> usize {
    let text = match &event.data {
        EventData::Log { text, .. } => text.len(),
        EventData::Progress(progress) => progress.message.as_ref().map_or(0, String::len),
        EventData::Queued
        | EventData::Staging { .. }
        | EventData::Running { .. }
        | EventData::Succeeded { .. }
        | EventData::Failed { .. }
        | EventData::Canceled { .. }
        | EventData::Retrying { .. }
        | EventData::Dead { .. } => 0,
    };
    text + size_of::<Event>()
}

/// Empties one sink's queue in batches, in order. What was not taken is tried again, and goes before what comes after it;
/// whoever waits for a delivery hears of the failure at once, and sends it again if it still matters.
async fn pump(
    sink: Arc<dyn EventSink>,
    mut receiver: mpsc::UnboundedReceiver<Item>,
    queued: Arc<AtomicUsize>,
) {
    let mut items: Vec<Item> = Vec::with_capacity(BATCH);
    loop {
        if items.is_empty() && receiver.recv_many(&mut items, BATCH).await == 0 {
            return;
        }
        let notices: Vec<Notice> = items.iter().map(|item| item.notice.clone()).collect();
        let endings: Vec<(usize, Ending)> = items
            .iter_mut()
            .enumerate()
            .filter_map(|(at, item)| item.ending.take().map(|ending| (at, ending)))
            .collect();
        let result = if endings.is_empty() {
            sink.deliver(&notices).await.map(|()| Vec::new())
        } else {
            sink.end(&notices, endings).await
        };
        let taken = result.is_ok();
        let mut at = 0;
        items.retain_mut(|item| {
            let answer = result.clone().map(|refused| !refused.contains(&at));
            at += 1;
            let kept = !taken && item.delivered.is_none();
            if !kept {
                queued.fetch_sub(weight(&item.notice.event), Ordering::Relaxed);
            }
            if taken && let Some(receipt) = &item.receipt {
                receipt.done();
            }
            if let Some(delivered) = item.delivered.take() {
                // Whoever waited may be gone: the outbox still knows what is owed.
                let _ = delivered.send(answer);
            }
            kept
        });
        if let Err(error) = result {
            tracing::warn!(%error, "events wait for their sink");
            if receiver.is_closed() && receiver.is_empty() {
                return;
            }
            tokio::time::sleep(RETRY).await;
            while items.len() < BATCH
                && let Ok(item) = receiver.try_recv()
            {
                items.push(item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::super::{LogStream, Progress};
    use super::*;
    use crate::task::{Fence, QueueName, TaskId};

    struct Slow {
        gate: tokio::sync::Semaphore,
        seen: Mutex<Vec<Event>>,
    }
    #[async_trait]
    impl EventSink for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }
        async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
            self.gate.acquire().await.expect("invariant: never closed").forget();
            self.gate.add_permits(1);
            self.seen.lock().unwrap().extend(notices.iter().map(|notice| (*notice.event).clone()));
            Ok(())
        }
    }

    fn event(number: u64, data: EventData) -> Event {
        Event {
            task: TaskId::new("t").unwrap(),
            queue: QueueName::default(),
            fence: Fence(1),
            number,
            time: jiff::Timestamp::UNIX_EPOCH,
            data,
        }
    }

    #[tokio::test]
    async fn a_sink_that_stands_still_loses_chatter_only_and_keeps_the_order() {
        let sink = Arc::new(Slow { gate: tokio::sync::Semaphore::new(0), seen: Mutex::default() });
        let bus = Bus::new(vec![sink.clone()], 10.0, Crew::new());
        for number in 0..400 {
            bus.send(
                event(number, EventData::Log { stream: LogStream::Stdout, text: "x".repeat(64 << 10) }),
                None,
            );
        }
        bus.send(event(400, EventData::Queued), None);
        bus.send(event(401, EventData::Progress(Progress::default())), None);
        let (_, dropped) = bus.dropped().next().unwrap();
        assert!((200..=280).contains(&dropped), "{dropped}");
        sink.gate.add_permits(1);
        bus.deliver(
            "slow",
            Notice { event: Arc::new(event(402, EventData::Succeeded { exit_code: None })), task: None },
        )
        .await
        .unwrap();
        let seen = sink.seen.lock().unwrap();
        assert!(seen.is_sorted_by_key(|event| event.number));
        assert_eq!(
            seen[seen.len() - 2].number,
            400,
            "the status event is there, the chatter behind it is not"
        );
        assert_eq!(seen.last().unwrap().number, 402);
    }
}
