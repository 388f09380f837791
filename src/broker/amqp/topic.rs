//! Events on a topic exchange, and signals on a fanout exchange: commands, cancel requests, paused queues.
//!
//! What must outlast its sender also stands on a shelf; every listener reads the shelves when it begins, and again after
//! its connection broke.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{BoxStream, unfold};
use futures_util::{StreamExt, stream};
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer, ExchangeKind};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, broadcast, watch};

use super::shelf::{Look, Shelf};
use super::wire::{Original, short};
use super::{Client, lock};
use crate::broker::{BrokerError, Command, Intake, Topic};
use crate::events::{Event, EventFilter, EventStart, cloudevent};
use crate::task::{QueueName, TaskId};

const EVENTS: &str = "longshore.events";
/// The routing key of a message that tells of several events.
const MANY: &str = "many";
/// Most bytes of events in one message.
const TOGETHER: usize = 64 << 10;
const SIGNALS: &str = "longshore.signals";
/// How long a cancel request stands for a task that is never met.
const CANCELS_STAND: Duration = Duration::from_secs(7 * 86_400);
/// Before a listener whose connection broke begins again.
const AGAIN: Duration = Duration::from_secs(1);

/// What listeners tell each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case")]
enum Signal {
    Command { command: Command },
    Forget { task: TaskId },
    Intake { queue: QueueName, intake: Intake },
}

/// What this client heard.
pub(super) struct Listener {
    started: OnceCell<()>,
    cancels: Mutex<HashMap<TaskId, String>>,
    stopped: Mutex<BTreeSet<QueueName>>,
    pauses: AtomicU64,
    paused: watch::Sender<u64>,
    commands: broadcast::Sender<Command>,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            started: OnceCell::new(),
            cancels: Mutex::default(),
            stopped: Mutex::default(),
            pauses: AtomicU64::new(0),
            paused: watch::Sender::new(0),
            commands: broadcast::Sender::new(1_024),
        }
    }
}

impl Listener {
    /// Counts the changes of paused queues.
    pub(super) fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Acquire)
    }
    /// Hears of each such change.
    pub(super) fn paused(&self) -> watch::Receiver<u64> {
        self.paused.subscribe()
    }
    /// Whether `queue` hands nothing out.
    pub(super) fn is_paused(&self, queue: &QueueName) -> bool {
        lock(&self.stopped).contains(queue)
    }

    fn set_paused(&self, stopped: BTreeSet<QueueName>) {
        let mut ours = lock(&self.stopped);
        if *ours != stopped {
            *ours = stopped;
            self.stir();
        }
    }

    /// Lets whoever fetches look again at what is to be fetched from.
    pub(super) fn stir(&self) {
        let now = self.pauses.fetch_add(1, Ordering::AcqRel) + 1;
        self.paused.send_replace(now);
    }

    fn hear(&self, signal: Signal) {
        match signal {
            Signal::Command { command } => {
                if let Command::Cancel { task, reason } = &command {
                    lock(&self.cancels).insert(task.clone(), reason.clone());
                }
                // Nobody may be listening here.
                let _ = self.commands.send(command);
            }
            Signal::Forget { task } => {
                lock(&self.cancels).remove(&task);
            }
            Signal::Intake { queue, intake } => {
                let mut stopped = lock(&self.stopped).clone();
                match intake {
                    Intake::Open => stopped.remove(&queue),
                    Intake::Paused => stopped.insert(queue),
                };
                self.set_paused(stopped);
            }
        }
    }
}

fn plain(body: Vec<u8>) -> Original {
    let properties = BasicProperties::default().with_content_type("application/json".into());
    Original { properties, body: body.into() }
}

/// The messages that tell `events`: one alone by its kind and queue, and many in one message, since whoever follows takes
/// all, and a busy worker would pay for each.
fn together(events: &[Event]) -> Vec<(String, Original)> {
    let mut messages = Vec::new();
    let mut waiting: Vec<(&Event, Vec<u8>)> = Vec::new();
    let mut flush = |waiting: &mut Vec<(&Event, Vec<u8>)>| match waiting.as_slice() {
        [] => {}
        [(event, _)] => {
            let key = format!("{}.{}", event.kind().as_str(), event.queue);
            messages.extend(waiting.drain(..).map(|(_, document)| (key.clone(), plain(document))));
        }
        _ => {
            let documents: Vec<Vec<u8>> = waiting.drain(..).map(|(_, document)| document).collect();
            messages.push((
                MANY.to_owned(),
                plain([b"[".as_slice(), documents.join(&b',').as_slice(), b"]"].concat()),
            ));
        }
    };
    let mut bytes = 0;
    for event in events {
        let document = cloudevent::encode(event);
        bytes += document.len();
        if bytes > TOGETHER && !waiting.is_empty() {
            flush(&mut waiting);
            bytes = document.len();
        }
        waiting.push((event, document));
    }
    flush(&mut waiting);
    messages
}

fn written(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: a signal is plain data")
}

impl Client {
    /// Begins to hear signals, once; what stands on the shelves is known when this returns.
    pub(super) async fn listen(self: &Client) -> Result<(), BrokerError> {
        self.listener.started.get_or_try_init(|| async { self.start_listening().await }).await?;
        Ok(())
    }

    async fn start_listening(&self) -> Result<(), BrokerError> {
        let (channel, consumer) = self.subscribe(SIGNALS, ExchangeKind::Fanout, "").await?;
        self.read_shelves().await?;
        let itself = self.itself.upgrade().ok_or_else(|| self.link.unavailable("it is closed".to_owned()))?;
        let weak = Arc::downgrade(&itself);
        tokio::spawn(async move {
            let mut hearing = Some((channel, consumer));
            while let Some(client) = weak.upgrade() {
                let Some((_, consumer)) = hearing.as_mut() else {
                    hearing = client.listen_again().await;
                    continue;
                };
                // Not kept alive by its own listener.
                drop(client);
                let next = consumer.next().await;
                let Some(client) = weak.upgrade() else { return };
                match next {
                    Some(Ok(wired)) => {
                        if let Ok(signal) = serde_json::from_slice(&wired.data) {
                            client.listener.hear(signal);
                        }
                    }
                    Some(Err(_)) | None => hearing = None,
                }
            }
        });
        Ok(())
    }

    async fn listen_again(&self) -> Option<(Channel, Consumer)> {
        tokio::time::sleep(AGAIN).await;
        let again = self.subscribe(SIGNALS, ExchangeKind::Fanout, "").await.ok()?;
        self.read_shelves().await.ok()?;
        Some(again)
    }

    async fn read_shelves(&self) -> Result<(), BrokerError> {
        let mut cancels = HashMap::new();
        self.browse(Shelf::Cancels, |original| {
            if let Ok(Command::Cancel { task, reason }) = serde_json::from_slice(&original.body) {
                cancels.insert(task, reason);
            }
            Look::Keep
        })
        .await?;
        let before = std::mem::replace(&mut *lock(&self.listener.cancels), cancels.clone());
        // Asked for while nobody listened here.
        for (task, reason) in cancels.into_iter().filter(|(task, _)| !before.contains_key(task)) {
            let _ = self.listener.commands.send(Command::Cancel { task, reason });
        }
        let mut stopped = BTreeSet::new();
        self.browse(Shelf::Paused, |original| {
            stopped
                .extend(std::str::from_utf8(&original.body).ok().and_then(|name| QueueName::new(name).ok()));
            Look::Keep
        })
        .await?;
        self.listener.set_paused(stopped);
        Ok(())
    }

    /// Pauses or opens a queue, for all listeners.
    pub(super) async fn steer(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        self.know(queue);
        self.browse(Shelf::Paused, |original| {
            if original.body == queue.as_str().as_bytes() { Look::Remove } else { Look::Keep }
        })
        .await?;
        if intake == Intake::Paused {
            let mut entry = plain(queue.as_str().as_bytes().to_vec());
            entry.properties = entry.properties.with_delivery_mode(2);
            self.shelve(Shelf::Paused, &entry).await?;
        }
        let signal = Signal::Intake { queue: queue.clone(), intake };
        self.listener.hear(signal.clone());
        self.signal(&signal).await
    }

    async fn signal(&self, signal: &Signal) -> Result<(), BrokerError> {
        self.signals_made.get_or_try_init(|| self.link.exchange(SIGNALS, ExchangeKind::Fanout)).await?;
        self.link.announce(SIGNALS, "", &plain(written(signal))).await
    }

    /// A queue of one's own at an exchange, and its consumer.
    async fn subscribe(
        &self,
        exchange: &str,
        kind: ExchangeKind,
        key: &str,
    ) -> Result<(Channel, Consumer), BrokerError> {
        self.link.exchange(exchange, kind).await?;
        let channel = self.link.channel().await?;
        let link = &self.link;
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(ShortString::default(), own, FieldTable::default());
        let queue = link.within("declare a queue", declared).await?;
        let bound = channel.queue_bind(
            queue.name().clone(),
            short(exchange),
            short(key),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        link.within("bind a queue", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(
            queue.name().clone(),
            ShortString::default(),
            options,
            FieldTable::default(),
        );
        let consumer = link.within("subscribe", consuming).await?;
        Ok((channel, consumer))
    }

    async fn cancels_on_shelf(&self, task: &TaskId, look: Look) -> Result<Option<String>, BrokerError> {
        let mut found = None;
        self.browse(Shelf::Cancels, |original| match serde_json::from_slice(&original.body) {
            Ok(Command::Cancel { task: canceled, reason }) if canceled == *task => {
                found = Some(reason);
                look
            }
            _ => Look::Keep,
        })
        .await?;
        Ok(found)
    }
}

#[async_trait]
impl Topic for Client {
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError> {
        let messages = together(events);
        self.events_made.get_or_try_init(|| self.link.exchange(EVENTS, ExchangeKind::Topic)).await?;
        self.link.announce_all(EVENTS, messages).await
    }

    async fn replay(
        &self,
        _: EventFilter,
        _: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        Err(self.unsupported("replay events"))
    }

    async fn follow(
        &self,
        filter: EventFilter,
        _: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let hearing = self.subscribe(EVENTS, ExchangeKind::Topic, "#").await?;
        let name = self.name.clone();
        let told = unfold(Some(hearing), move |hearing| {
            let name = name.clone();
            async move {
                let (channel, mut consumer) = hearing?;
                let Some(Ok(wired)) = consumer.next().await else {
                    let reason = "the connection broke".to_owned();
                    return Some((vec![Err(BrokerError::Unavailable { broker: name, reason })], None));
                };
                let events = match cloudevent::decode_all(&wired.data) {
                    Ok(events) => events.into_iter().map(Ok).collect(),
                    Err(error) => {
                        vec![Err(BrokerError::Corrupt { broker: name, reason: error.to_string() })]
                    }
                };
                Some((events, Some((channel, consumer))))
            }
        });
        Ok(told
            .flat_map(stream::iter)
            .filter(move |event| {
                let wanted = event.as_ref().map_or(true, |event| filter.matches(event));
                async move { wanted }
            })
            .boxed())
    }

    async fn command(&self, command: Command) -> Result<(), BrokerError> {
        if let Command::Cancel { .. } = &command {
            let mut entry = plain(written(&command));
            let stands = short(&CANCELS_STAND.as_millis().to_string());
            entry.properties = entry.properties.with_delivery_mode(2).with_expiration(stands);
            self.shelve(Shelf::Cancels, &entry).await?;
        }
        self.signal(&Signal::Command { command }).await
    }

    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError> {
        self.listen().await?;
        let heard = self.listener.commands.subscribe();
        let itself = self.itself.upgrade();
        Ok(stream::unfold((heard, itself), |(mut heard, itself)| async move {
            loop {
                match heard.recv().await {
                    Ok(command) => return Some((Ok(command), (heard, itself))),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "commands came faster than they were heard");
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed())
    }

    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError> {
        self.listen().await?;
        if !lock(&self.listener.cancels).contains_key(task) {
            return Ok(None);
        }
        // It may have been forgotten a moment ago: the shelf knows.
        self.cancels_on_shelf(task, Look::Keep).await
    }

    async fn cancels(&self) -> Result<Vec<TaskId>, BrokerError> {
        self.listen().await?;
        Ok(lock(&self.listener.cancels).keys().cloned().collect())
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        let listens = self.listener.started.initialized();
        if listens && !lock(&self.listener.cancels).contains_key(task) {
            return Ok(());
        }
        if self.cancels_on_shelf(task, Look::Remove).await?.is_some() {
            self.signal(&Signal::Forget { task: task.clone() }).await?;
        }
        lock(&self.listener.cancels).remove(task);
        Ok(())
    }
}
