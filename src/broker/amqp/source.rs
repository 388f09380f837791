//! Taking work: consumers with the prefetch of the credit that was asked for, closed when nobody fetches.
//!
//! # Decisions
//! RabbitMQ ignores a later prefetch for a consumer that stands. So consumers are made anew when more is asked for than
//! they may bring, or when messages left for custody and they would bring more than there is room for; and they are
//! closed, and what they brought is given back, soon after the last fetch: nothing waits here that others could run.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, message::Delivery as Wired};
use tokio::sync::{Mutex, Notify};

use super::delayed::quorum;
use super::held::Claim;
use super::link::{Declaration, close};
use super::wire::{DUE, Original, short};
use super::{Client, QueueType, lock};
use crate::broker::message::Lease;
use crate::broker::{BrokerError, Chosen, Delivery, Intake as Flow, MessageId, Source};
use crate::cancel::CancelScope;
use crate::task::QueueName;
use crate::task::jsonpickle::KeyOrder;

/// Fetches for one client.
pub(super) struct Fetcher {
    client: Arc<Client>,
    /// What is fetched from.
    queues: std::sync::Mutex<Vec<QueueName>>,
    intake: Mutex<Intake>,
    /// Counts fetches: whether one came since.
    fetches: AtomicU64,
    idle: Arc<Notify>,
}

/// The consumers as they stand, and what they brought beyond the credit.
#[derive(Default)]
struct Intake {
    channel: Option<Channel>,
    consumers: Vec<Consuming>,
    arrivals: SelectAll<Arrivals>,
    buffer: Vec<Arrived>,
    prefetch: usize,
    /// The queues that were paused when these consumers were made.
    paused: u64,
}

struct Consuming {
    tag: ShortString,
    outstanding: Arc<AtomicUsize>,
}

struct Arrived {
    queue: QueueName,
    wired: Wired,
    outstanding: Arc<AtomicUsize>,
}

type Arrivals = Pin<Box<dyn Stream<Item = Result<Arrived, lapin::Error>> + Send>>;

/// How long consumers stand after a fetch before what they brought is given back.
const STANDS: Duration = Duration::from_millis(250);
/// How long settlements may take to make room at the server before consumers are made anew.
const GRACE: Duration = Duration::from_millis(50);

impl Fetcher {
    /// A fetcher, and the watcher that closes its consumers when they are idle.
    pub(super) fn start(client: &Arc<Client>) -> Arc<Self> {
        let fetcher = Arc::new(Self {
            client: client.clone(),
            queues: std::sync::Mutex::new(client.options.queues.clone()),
            intake: Mutex::default(),
            fetches: AtomicU64::new(0),
            idle: Arc::default(),
        });
        tokio::spawn(close_idle(Arc::downgrade(&fetcher)));
        fetcher
    }

    async fn wait_for_work(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        let mut intake = self.intake.lock().await;
        self.client.listen().await?;
        let mut paused = self.client.listener.paused();
        while !stop.is_canceled() {
            let now_paused = self.client.listener.pauses();
            if intake.is_broken() || intake.paused != now_paused || intake.prefetch < credit {
                self.renew(&mut intake, credit).await?;
            }
            intake.gather();
            let found = self.take(&mut intake, credit).await;
            if !found.is_empty() {
                return Ok(found);
            }
            let full = intake.is_full();
            let handed_off = self.client.holds.handed_off.notified();
            tokio::select! {
                _ = stop.canceled() => {}
                arrived = intake.arrivals.next(), if !intake.arrivals.is_empty() => match arrived {
                    Some(Ok(arrived)) => intake.buffer.push(arrived),
                    Some(Err(error)) => {
                        intake.drop_all();
                        return Err(self.client.link.refusal("hand out work", &error));
                    }
                    // Every consumer ended: the queue was deleted, or the connection broke.
                    None => intake.drop_all(),
                },
                _ = paused.changed() => {}
                () = handed_off => self.renew(&mut intake, credit).await?,
                () = tokio::time::sleep(GRACE), if full => {
                    if intake.is_full() {
                        self.renew(&mut intake, credit).await?;
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    /// Closes what stands and opens consumers for `credit` messages each. Afterwards everything that was ready is here.
    async fn renew(&self, intake: &mut Intake, credit: usize) -> Result<(), BrokerError> {
        let link = &self.client.link;
        self.close_consumers(intake).await;
        intake.paused = self.client.listener.pauses();
        let channel = match intake.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => link.channel().await?,
        };
        intake.prefetch = credit;
        let most = u16::try_from(credit).unwrap_or(u16::MAX);
        link.within("hand out work", channel.basic_qos(most, BasicQosOptions::default())).await?;
        let open = |queue: &QueueName| !self.client.listener.is_paused(queue);
        let queues: Vec<QueueName> = lock(&self.queues).iter().filter(|queue| open(queue)).cloned().collect();
        for queue in &queues {
            self.client.declare_work_queue(queue).await?;
            let consuming = channel.basic_consume(
                short(queue.as_str()),
                ShortString::default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consumer = match link.within("hand out work", consuming).await {
                Ok(consumer) => consumer,
                Err(error) => {
                    // It may have been deleted since it was declared: looked at again next time.
                    lock(&self.client.declared).remove(queue);
                    intake.drop_all();
                    return Err(error);
                }
            };
            let outstanding = Arc::new(AtomicUsize::new(0));
            intake.consumers.push(Consuming { tag: consumer.tag(), outstanding: outstanding.clone() });
            let queue = queue.clone();
            intake.arrivals.push(Box::pin(consumer.map(move |wired| {
                outstanding.fetch_add(1, Ordering::Relaxed);
                wired.map(|wired| Arrived { queue: queue.clone(), wired, outstanding: outstanding.clone() })
            })));
        }
        // Its answer comes behind every delivery that was sent before: the best of what is there is known then.
        for queue in &queues {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let asked = channel.queue_declare(short(queue.as_str()), options, FieldTable::default());
            link.within("hand out work", asked).await?;
        }
        intake.channel = Some(channel);
        Ok(())
    }

    /// The best of what arrived, at most `credit`, under leases.
    async fn take(&self, intake: &mut Intake, credit: usize) -> Vec<Delivery> {
        let priority = |arrived: &Arrived| arrived.wired.properties.priority().unwrap_or(0);
        // Stable: the oldest of a priority stays first.
        intake.buffer.sort_by_key(|arrived| std::cmp::Reverse(priority(arrived)));
        let Some(channel) = intake.channel.clone() else { return Vec::new() };
        let mut taken = Vec::new();
        let mut rest = Vec::new();
        for arrived in intake.buffer.drain(..) {
            if taken.len() == credit {
                rest.push(arrived);
                continue;
            }
            let original = Original {
                properties: arrived.wired.properties.clone(),
                body: arrived.wired.data.clone().into(),
            };
            match original.number(DUE).and_then(|due| Timestamp::from_millisecond(due).ok()) {
                Some(due) if due > Timestamp::now() => {
                    self.delay_again(&channel, arrived, original, due).await;
                }
                _ => taken.push(self.delivery(&channel, arrived, original).await),
            }
        }
        intake.buffer = rest;
        taken
    }

    /// Its time has not come: it goes through the next, shorter delay.
    async fn delay_again(&self, channel: &Channel, arrived: Arrived, original: Original, due: Timestamp) {
        let copy = if original.was_handed() {
            original.same(&original.identity(), Vec::new())
        } else {
            original.copy(Vec::new())
        };
        let tag = arrived.wired.delivery_tag;
        let moved = match self.client.send_at(&arrived.queue, due, &copy).await {
            Ok(()) => channel.basic_ack(tag, BasicAckOptions::default()).await,
            Err(error) => {
                tracing::warn!(queue = %arrived.queue, %error, "a delayed message is looked at again");
                channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await
            }
        };
        arrived.outstanding.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = moved {
            tracing::debug!(%error, "a delayed message comes again");
        }
    }

    async fn delivery(&self, channel: &Channel, arrived: Arrived, original: Original) -> Delivery {
        let identity = original.identity();
        // Two messages of one name at a time are not one that came again.
        let mut message = identity.clone();
        let mut number = 1;
        while self.client.holds.holds(&message).await {
            number += 1;
            message = format!("{identity}#{number}");
        }
        let redelivered = arrived.wired.redelivered || original.was_handed();
        let properties = original.answer();
        let headers = original.headers();
        let submitted = original.submitted();
        let content_type = original.properties.content_type().as_ref().map(ToString::to_string);
        let content_encoding = original.properties.content_encoding().as_ref().map(ToString::to_string);
        let body = original.body.clone();
        let at = (channel.clone(), arrived.wired.delivery_tag, arrived.outstanding);
        let what = (arrived.queue.clone(), original, message.clone());
        let (held, until) = self.client.holds.begin(&self.client, what, at);
        let claim = || Box::new(Claim { client: self.client.clone(), held: held.clone() });
        let lease = Lease { until, duration: self.client.options.lease, extender: claim(), settler: claim() };
        Delivery {
            message: MessageId(message),
            queue: arrived.queue,
            body,
            content_type,
            content_encoding,
            headers,
            header_order: KeyOrder::Lost,
            properties,
            // Celery's and ours count differently: the body's reader knows which it is.
            priority: None,
            submitted,
            redelivered,
            lease,
        }
    }

    /// Ends the consumers. What they brought and nobody took stays in the buffer.
    async fn close_consumers(&self, intake: &mut Intake) {
        if let Some(channel) = intake.channel.as_ref().filter(|channel| channel.status().connected()) {
            for consuming in std::mem::take(&mut intake.consumers) {
                let ended = channel.basic_cancel(consuming.tag, BasicCancelOptions::default());
                if let Err(error) = self.client.link.within("end a consumer", ended).await {
                    tracing::debug!(%error, "a consumer had ended");
                }
            }
            intake.gather();
        } else {
            intake.buffer.clear();
        }
        intake.consumers.clear();
        intake.arrivals = SelectAll::new();
        intake.prefetch = 0;
    }

    /// Ends the consumers and gives back what nobody took.
    async fn rest(&self, intake: &mut Intake) {
        self.close_consumers(intake).await;
        let Some(channel) = intake.channel.clone() else { return };
        for arrived in intake.buffer.drain(..).rev() {
            let back = BasicNackOptions { requeue: true, multiple: false };
            // On a channel that broke the server has them back already.
            let _ = channel.basic_nack(arrived.wired.delivery_tag, back).await;
        }
    }
}

/// Closes the consumers soon after the last fetch. Keeps the fetcher alive only while it does.
async fn close_idle(fetcher: Weak<Fetcher>) {
    let Some(idle) = fetcher.upgrade().map(|alive| alive.idle.clone()) else { return };
    loop {
        tokio::select! {
            () = idle.notified() => {}
            // Looks whether the fetcher lives.
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        loop {
            let Some(before) = fetcher.upgrade().map(|alive| alive.fetches.load(Ordering::Acquire)) else {
                return;
            };
            tokio::time::sleep(STANDS).await;
            let Some(alive) = fetcher.upgrade() else { return };
            if before != alive.fetches.load(Ordering::Acquire) {
                continue;
            }
            // An odd number: a fetch waits, and what comes is for it.
            if before % 2 == 0 {
                let mut intake = alive.intake.lock().await;
                if before == alive.fetches.load(Ordering::Acquire) {
                    alive.rest(&mut intake).await;
                }
            }
            break;
        }
    }
}

impl Intake {
    fn is_broken(&self) -> bool {
        self.channel.as_ref().is_none_or(|channel| !channel.status().connected())
    }

    /// Whether a queue may bring no more, because what it brought is still held.
    fn is_full(&self) -> bool {
        self.consumers.iter().any(|one| one.outstanding.load(Ordering::Relaxed) >= self.prefetch)
    }

    /// Moves what arrived into the buffer, without waiting.
    fn gather(&mut self) {
        while let Some(Some(Ok(arrived))) = self.arrivals.next().now_or_never() {
            self.buffer.push(arrived);
        }
    }

    /// Everything is void: the channel broke.
    fn drop_all(&mut self) {
        self.channel = None;
        self.consumers.clear();
        self.arrivals = SelectAll::new();
        self.buffer.clear();
        self.prefetch = 0;
    }
}

#[async_trait]
impl Source for Fetcher {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.client.options.queues.is_empty() && lock(&self.queues).is_empty() {
            return Err(BrokerError::Refused {
                broker: self.client.name.clone(),
                action: "hand out work",
                reason: "it was opened without queues; name at least one".to_owned(),
            });
        }
        if stop.is_canceled() || credit == 0 {
            return Ok(Vec::new());
        }
        self.fetches.fetch_add(1, Ordering::AcqRel);
        let fetched = self.wait_for_work(credit, stop).await;
        self.fetches.fetch_add(1, Ordering::AcqRel);
        self.idle.notify_one();
        fetched
    }

    fn lease(&self) -> Duration {
        self.client.options.lease
    }

    fn queues(&self) -> Option<Vec<QueueName>> {
        Some(lock(&self.queues).clone())
    }

    async fn choose(&self, queue: &QueueName, flow: Flow) -> Result<Chosen, BrokerError> {
        if flow == Flow::Open {
            self.client.declare_work_queue(queue).await?;
        }
        {
            let mut queues = lock(&self.queues);
            match (flow, queues.contains(queue)) {
                (Flow::Open, false) => queues.push(queue.clone()),
                (Flow::Paused, true) => queues.retain(|known| known != queue),
                (Flow::Open, true) | (Flow::Paused, false) => return Ok(Chosen::Already),
            }
        }
        self.client.listener.stir();
        Ok(Chosen::Changed)
    }
}

impl Client {
    /// Makes sure that a work queue is there: as it is when somebody made it, else as Celery makes it.
    pub(super) async fn declare_work_queue(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.know(queue);
        if lock(&self.declared).contains(queue) {
            return Ok(());
        }
        let found = self.link.ready(queue.as_str()).await?;
        let kind = match (found, self.address.queue_type) {
            (Some(_), _) => self.kind_of(queue).await?,
            (None, kind) => {
                self.make_work_queue(queue, kind).await?;
                kind
            }
        };
        self.delay_natively(queue, kind).await?;
        lock(&self.declared).insert(queue.clone());
        Ok(())
    }
}

impl Client {
    async fn make_work_queue(&self, queue: &QueueName, kind: QueueType) -> Result<(), BrokerError> {
        let arguments = match kind {
            QueueType::Quorum => quorum(),
            QueueType::Classic => self
                .address
                .max_priority
                .map(|most| ("x-max-priority", lapin::types::AMQPValue::LongInt(i32::from(most))))
                .into_iter()
                .collect(),
        };
        self.link.declare(&Declaration { name: queue.to_string(), arguments }).await
    }
}

/// Closes the channel of a fetcher that is gone, so that what it held goes back at once.
impl Drop for Fetcher {
    fn drop(&mut self) {
        if let Some(channel) = self.intake.get_mut().channel.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(close(channel));
        }
    }
}
