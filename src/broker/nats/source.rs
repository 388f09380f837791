//! Taking work: looks where no request waits, best class first, then leaves a request that waits with each consumer.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::arrivals::{Arrivals, Arrived, Counter, REQUEST_WAIT, Trouble};
use super::early::Early;
use super::lease::{Claim, Held, Received};
use super::message::Letter;
use super::names::{Names, Wait, usual_priority};
use super::{Client, topology};
use crate::broker::message::Lease;
use crate::broker::{BrokerError, Delivery, MessageId, Source};
use crate::cancel::CancelScope;
use crate::nats::{Breaks, Link, LinkError};
use crate::task::PriorityClass;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;

/// How often one fetch makes consumers that vanished.
const MAKE_AGAIN: u32 = 3;
/// How long the last requests of a fetcher that went are listened to.
const LINGER: Duration = Duration::from_millis(250);
/// How long a look may take.
const LOOK_WAIT: Duration = Duration::from_secs(5);

/// Fetches for one client.
pub(super) struct Fetcher {
    client: Arc<Client>,
    arrivals: Arc<Arrivals>,
    /// Held by the fetch that goes on.
    started: Mutex<Option<Started>>,
    early: Early,
}

/// What a first fetch begins.
struct Started {
    inbox: String,
    _reader: DropGuard,
}

impl Fetcher {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self {
            client,
            arrivals: Arc::new(Arrivals::new()),
            started: Mutex::new(None),
            early: Early::default(),
        }
    }

    async fn wait_for_work(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, LinkError> {
        let mut started = self.started.lock().await;
        if started.is_none() {
            *started = Some(self.start().await?);
        }
        let inbox = started.as_ref().map(|started| started.inbox.clone()).unwrap_or_default();
        let _fetching = self.arrivals.fetching();
        let mut gone = 0;
        while !stop.is_canceled() {
            let bell = self.arrivals.bell.notified();
            if self.arrivals.trouble() == Some(Trouble::Gone) {
                gone += 1;
                if gone > MAKE_AGAIN {
                    let vanish = "its consumers vanish as soon as they are made".to_owned();
                    return Err(LinkError::Unavailable(vanish));
                }
                self.set_counters().await?;
            }
            let taken = self.look(credit, &inbox).await?;
            if !taken.is_empty() {
                return Ok(self.deliveries(taken));
            }
            self.leave_requests(&inbox).await?;
            let lost = self.arrivals.forget_lost();
            tokio::select! {
                () = bell => {}
                _ = stop.canceled() => {}
                () = self.client.paused.changed.notified() => {}
                () = tokio::time::sleep_until(lost) => {}
            }
        }
        Ok(Vec::new())
    }

    async fn start(&self) -> Result<Started, LinkError> {
        let link = &self.client.link;
        self.set_counters().await?;
        let inbox = link.inbox();
        let heard = link.subscribe(format!("{inbox}.>")).await?;
        let stop = CancellationToken::new();
        let reader = Reader {
            arrivals: Arc::clone(&self.arrivals),
            link: link.clone(),
            inbox: inbox.clone(),
            stop: stop.clone(),
        };
        // Ends with the fetcher.
        tokio::spawn(reader.run(heard, link.breaks()));
        Ok(Started { inbox, _reader: stop.drop_guard() })
    }

    async fn set_counters(&self) -> Result<(), LinkError> {
        let Client { link, place, names, options, .. } = &*self.client;
        self.client.ensure_streams().await?;
        let mut counters = Vec::new();
        for class in PriorityClass::ALL {
            for queue in &options.queues {
                let which = (queue, class);
                let ack_wait = topology::ensure_consumer(link, place, names, which, options.lease).await?;
                if ack_wait > options.lease.saturating_mul(2) {
                    tracing::debug!(
                        %queue, ?ack_wait, "the consumer was made with a longer lease: tasks of workers that die come back later"
                    );
                }
                let subject = names.place(Wait::Turn, queue, class);
                counters.push((Counter::new(queue.clone(), class, ack_wait), subject));
            }
        }
        self.arrivals.set_counters(counters);
        Ok(())
    }

    /// Takes what came and what is there, at most `credit`.
    async fn look(&self, credit: usize, inbox: &str) -> Result<Vec<Arrived>, LinkError> {
        let paused = self.client.paused.now();
        give_back(&self.client.link, self.arrivals.take_paused(&paused)).await;
        let mut taken = Vec::new();
        for class in PriorityClass::ALL {
            // What came by a request that waited is best taken with its own class, but not before better ones were looked at.
            for index in self.arrivals.unwatched(class, &paused) {
                taken.extend(self.arrivals.take(credit - taken.len(), &paused));
                if taken.len() == credit {
                    return Ok(taken);
                }
                self.look_at(index, credit - taken.len(), inbox).await?;
            }
            taken.extend(self.arrivals.take(credit - taken.len(), &paused));
            if taken.len() == credit {
                break;
            }
        }
        Ok(taken)
    }

    async fn look_at(&self, index: usize, most: usize, inbox: &str) -> Result<(), LinkError> {
        let number = self.arrivals.begin_look(index, most);
        self.request(index, number, inbox, &json!({ "batch": most, "no_wait": true })).await?;
        let deadline = Instant::now() + LOOK_WAIT;
        loop {
            let bell = self.arrivals.bell.notified();
            if self.arrivals.looked(index) {
                return Ok(());
            }
            tokio::select! {
                () = bell => {}
                () = tokio::time::sleep_until(deadline) => {
                    self.arrivals.abandon_look(index);
                    return Err(LinkError::Unavailable(format!("no answer within {LOOK_WAIT:?}")));
                }
            }
        }
    }

    async fn leave_requests(&self, inbox: &str) -> Result<(), LinkError> {
        let paused = self.client.paused.now();
        let wait = u64::try_from(REQUEST_WAIT.as_nanos()).unwrap_or(u64::MAX);
        for class in PriorityClass::ALL {
            for index in self.arrivals.unwatched(class, &paused) {
                let number = self.arrivals.begin_standing(index);
                self.request(index, number, inbox, &json!({ "batch": 1, "expires": wait })).await?;
            }
        }
        Ok(())
    }

    async fn request(
        &self,
        index: usize,
        number: u64,
        inbox: &str,
        payload: &Value,
    ) -> Result<(), LinkError> {
        let (queue, class, _) = self.arrivals.counter(index);
        let (stream, consumer) = (self.client.names.work_stream(), Names::consumer(&queue, class));
        let subject = self.client.link.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"));
        let reply = format!("{inbox}.{index}.{number}");
        self.client.link.send_asking(subject, reply, Bytes::from(payload.to_string())).await
    }

    fn deliveries(&self, taken: Vec<Arrived>) -> Vec<Delivery> {
        taken.into_iter().map(|arrived| self.delivery(arrived)).collect()
    }

    fn delivery(&self, arrived: Arrived) -> Delivery {
        let Arrived { consumer, info, message, at } = arrived;
        let (queue, class, ack_wait) = self.arrivals.counter(consumer);
        let lease = self.client.options.lease;
        let headers = message.headers.unwrap_or_default();
        let letter = Letter::read(&headers);
        let id = letter.message.unwrap_or_else(|| format!("{queue}/{}", info.sequence));
        let submitted = letter.submitted.unwrap_or(info.time);
        let redelivered = info.delivered > 1 || letter.again;
        let body = message.payload;
        let received = Received {
            info,
            place: (queue.clone(), class),
            message: id.clone(),
            submitted,
            headers,
            body: body.clone(),
            ack_wait,
        };
        // From when it came: it may have waited here.
        let until = at + lease;
        let held = Held::new(&self.client, received, until);
        self.client.remember(&held);
        let claim = || Box::new(Claim(Arc::clone(&held)));
        Delivery {
            message: MessageId(id),
            queue,
            body,
            content_type: letter.content_type,
            content_encoding: letter.encoding,
            headers: letter.headers,
            header_order: KeyOrder::Kept,
            properties: Properties::default(),
            priority: Some(letter.priority.unwrap_or_else(|| usual_priority(class))),
            submitted: Some(submitted),
            redelivered,
            lease: Lease { until, duration: lease, extender: claim(), settler: claim() },
        }
    }
}

/// Reads what the server sends, also when nobody fetches.
struct Reader {
    arrivals: Arc<Arrivals>,
    link: Link,
    inbox: String,
    stop: CancellationToken,
}

impl Reader {
    async fn run(self, mut heard: Subscriber, mut breaks: Breaks) {
        loop {
            let give_back_at = self.arrivals.give_back_at();
            tokio::select! {
                message = heard.next() => match message {
                    Some(message) => self.arrivals.heard(message, &self.inbox),
                    None => break,
                },
                _ = breaks.changed() => self.arrivals.broken(),
                () = self.arrivals.pause.notified() => {}
                () = at(give_back_at) => give_back(&self.link, self.arrivals.give_back()).await,
                () = self.stop.cancelled() => break,
            }
        }
        // With the fetcher goes what it did not hand over, also what comes by its last requests.
        let going = async {
            loop {
                give_back(&self.link, self.arrivals.drain()).await;
                let Some(message) = heard.next().await else { return };
                self.arrivals.heard(message, &self.inbox);
            }
        };
        let _ = tokio::time::timeout(LINGER, going).await;
        // Whoever fetches after the connection's end learns it from the next request.
        self.arrivals.broken();
    }
}

/// Lets the server hand it to others at once.
async fn give_back(link: &Link, came: Vec<Arrived>) {
    for arrived in came {
        if let Err(error) = link.send(arrived.info.reply, Bytes::from_static(b"-NAK")).await {
            tracing::debug!(%error, "a message that nobody fetched comes again when its lease lapses");
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Source for Fetcher {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.client.options.queues.is_empty() {
            return Err(BrokerError::Refused {
                broker: self.client.place.name.clone(),
                action: "hand out work",
                reason: "it was opened without queues; name at least one".to_owned(),
            });
        }
        self.wait_for_work(credit, stop).await.map_err(self.client.cannot("hand out work"))
    }

    fn lease(&self) -> Duration {
        self.client.options.lease
    }

    async fn fetch_delayed(&self, credit: usize) -> Result<Option<Vec<(Timestamp, Delivery)>>, BrokerError> {
        let taken = self.early.take(&self.client, credit).await;
        taken.map(Some).map_err(self.client.cannot("hand out what is delayed"))
    }
}
