//! Taking work: looks by one script over all queues, then waits for a list, the bell, the next due time, or the stop.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use redis::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Client;
use super::envelope::Envelope;
use super::lease::Claim;
use super::peek::{Gong, Peek};
use crate::broker::message::Lease;
use crate::broker::redis::millis;
use crate::broker::{BrokerError, Chosen, Delivery, Intake, MessageId, Source};
use crate::cancel::CancelScope;
use crate::redis::{LinkError, script, value};
use crate::task::QueueName;

script!(CLAIM, "lua/common.lua", "lua/claim.lua");
script!(EARLY, "lua/common.lua", "lua/early.lua");

/// How long a fetch waits before it looks by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Fetches for one client.
pub(super) struct Fetcher {
    client: Arc<Client>,
    consumer: Arc<str>,
    /// What is fetched from.
    queues: std::sync::Mutex<Vec<Arc<Queue>>>,
    gong: Gong,
    state: Mutex<State>,
}

/// A queue that is fetched from.
struct Queue {
    name: QueueName,
    stem: String,
    lists: [String; 4],
    peek: Peek,
}

#[derive(Default)]
struct State {
    /// Which queue is first in the next look.
    turn: usize,
    /// When it was last looked for what others left behind.
    swept: Option<Instant>,
}

/// A message in our name.
struct Taken {
    queue: Arc<Queue>,
    tag: String,
    envelope: Bytes,
}

/// What a look found.
struct Look {
    /// Until something is due by itself.
    next_due: Option<Duration>,
    /// Queues that hand out.
    open: Vec<Arc<Queue>>,
    /// Leases that lapsed: queue, tag, message.
    lapsed: Vec<(Arc<Queue>, String, Bytes)>,
    taken: Vec<Taken>,
}

impl Queue {
    fn new(client: &Client, name: &QueueName, gong: &Gong) -> Arc<Self> {
        let lists = client.kombu.lists(name.as_str());
        let peek = Peek::start(&client.common.place, client.common.options.connect_timeout, &lists, gong);
        Arc::new(Self { name: name.clone(), stem: client.stem(name), lists, peek })
    }
}

impl Taken {
    fn read(queues: &[Arc<Queue>], message: Value) -> Result<Self, LinkError> {
        let [number, tag, envelope] = value::row(message)?;
        Ok(Self {
            queue: queue_at(queues, &number)?,
            tag: value::text(tag)?,
            envelope: value::bytes(envelope)?.into(),
        })
    }
}

/// Of a number as scripts count, from 1.
fn queue_at(queues: &[Arc<Queue>], number: &Value) -> Result<Arc<Queue>, LinkError> {
    let index = usize::try_from(value::int(number)?).ok().and_then(|number| number.checked_sub(1));
    index
        .and_then(|index| queues.get(index))
        .cloned()
        .ok_or_else(|| LinkError::Unreadable("a script named no queue of ours".to_owned()))
}

impl Fetcher {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let options = &client.common.options;
        let consumer = format!("{}/{}", options.worker, options.incarnation).replace('\n', " ").into();
        let gong = Gong::default();
        let queues = options.queues.iter().map(|name| Queue::new(&client, name, &gong)).collect();
        Self { queues: std::sync::Mutex::new(queues), client, consumer, gong, state: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for_work(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, LinkError> {
        let mut state = self.state.lock().await;
        let (mut bell, mut gong) = (self.client.common.ears.bell(), self.gong.heard());
        while !stop.is_canceled() {
            bell.mark_unchanged();
            gong.mark_unchanged();
            self.sweep(&mut state).await?;
            let (look, until) = self.look(&mut state, credit).await?;
            let is_lapsed = !look.lapsed.is_empty();
            self.put_back(look.lapsed).await?;
            let deliveries = self.deliveries(look.taken, until).await?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            if is_lapsed {
                continue;
            }
            look.open.iter().for_each(|queue| queue.peek.arm());
            tokio::select! {
                _ = stop.canceled() => {}
                () = tokio::time::sleep(look.next_due.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)) => {}
                _ = bell.changed() => {}
                _ = gong.changed() => {}
            }
        }
        Ok(Vec::new())
    }

    async fn look(&self, state: &mut State, credit: usize) -> Result<(Look, Instant), LinkError> {
        let options = &self.client.common.options;
        let (lease, counter) = (options.lease, self.client.counter());
        state.turn = state.turn.wrapping_add(1);
        // Before the server reckons: the lease must not seem to last longer than it does.
        let until = Instant::now() + lease;
        let queues = self.all().clone();
        let stems = queues.iter().map(|queue| queue.stem.clone());
        let keys: Vec<String> = std::iter::once(counter).chain(stems).collect();
        let mut call = self.client.call(&CLAIM, &keys).arg(&*self.consumer).arg(credit).arg(millis(lease));
        call.push(state.turn % queues.len().max(1));
        for queue in &queues {
            call.push(queue.name.as_str());
            queue.lists.iter().for_each(|list| call.push(list));
        }
        let [next_due, open, lapsed, found] = value::row(self.client.common.link.call(&call).await?)?;
        let open =
            value::list(open)?.iter().map(|number| queue_at(&queues, number)).collect::<Result<_, _>>()?;
        let lapsed = value::list(lapsed)?.into_iter().map(|one| {
            let [number, tag, envelope] = value::row(one)?;
            Ok((queue_at(&queues, &number)?, value::text(tag)?, value::bytes(envelope)?.into()))
        });
        let taken = value::list(found)?.into_iter().map(|one| Taken::read(&queues, one));
        let look = Look {
            next_due: u64::try_from(value::int(&next_due)?).ok().map(Duration::from_millis),
            open,
            lapsed: lapsed.collect::<Result<_, LinkError>>()?,
            taken: taken.collect::<Result<_, _>>()?,
        };
        Ok((look, until))
    }

    /// What waits for its time, under leases, for whoever moves it to another broker.
    async fn take_early(&self, credit: usize) -> Result<Vec<(Timestamp, Delivery)>, LinkError> {
        let (lease, counter) = (self.client.common.options.lease, self.client.counter());
        let queues = self.all().clone();
        let stems = queues.iter().map(|queue| queue.stem.clone());
        let keys: Vec<String> = std::iter::once(counter).chain(stems).collect();
        let mut call = self.client.call(&EARLY, &keys).arg(&*self.consumer).arg(credit).arg(millis(lease));
        for queue in &queues {
            call.push(queue.name.as_str());
        }
        let until = Instant::now() + lease;
        let mut early = Vec::new();
        for one in value::list(self.client.common.link.call(&call).await?)? {
            let [due, message] = value::row(one)?;
            let due = Timestamp::from_millisecond(value::int(&due)?).unwrap_or_default();
            let taken = Taken::read(&queues, message)?;
            early.extend(self.deliveries(vec![taken], until).await?.pop().map(|delivery| (due, delivery)));
        }
        early.sort_by_key(|(due, _)| *due);
        Ok(early)
    }

    /// Leases that lapsed: each goes back to its list with kombu's flags.
    async fn put_back(&self, lapsed: Vec<(Arc<Queue>, String, Bytes)>) -> Result<(), LinkError> {
        for of_queue in lapsed.chunk_by(|one, other| Arc::ptr_eq(&one.0, &other.0)) {
            let stem = std::slice::from_ref(&of_queue[0].0.stem);
            self.client
                .put_back(stem, of_queue.iter().map(|(_, tag, envelope)| (tag.as_str(), envelope)))
                .await?;
        }
        Ok(())
    }

    /// Once in a while: restores what kombu channels left behind.
    async fn sweep(&self, state: &mut State) -> Result<(), LinkError> {
        let pause =
            (self.client.visibility_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        if state.swept.is_some_and(|at| at.elapsed() < pause) {
            return Ok(());
        }
        state.swept = Some(Instant::now());
        self.client.restore_stale().await
    }

    /// What can be read, under leases. What is no message is parked at once.
    async fn deliveries(&self, taken: Vec<Taken>, until: Instant) -> Result<Vec<Delivery>, LinkError> {
        let mut deliveries = Vec::with_capacity(taken.len());
        for one in taken {
            match Envelope::read(&one.envelope) {
                Ok(envelope) => deliveries.push(self.delivery(&one, envelope, until)),
                Err(reason) => {
                    let claim = self.claim(&one);
                    tracing::warn!(queue = %claim.queue, reason, "parked: it is no message of Celery");
                    claim.park_unread(&reason).await?;
                }
            }
        }
        Ok(deliveries)
    }

    fn claim(&self, taken: &Taken) -> Claim {
        Claim {
            client: self.client.clone(),
            consumer: self.consumer.clone(),
            queue: taken.queue.name.clone(),
            stem: taken.queue.stem.clone(),
            tag: taken.tag.clone(),
            envelope: taken.envelope.clone(),
        }
    }

    fn delivery(&self, taken: &Taken, envelope: Envelope, until: Instant) -> Delivery {
        let claim = || Box::new(self.claim(taken));
        let duration = self.client.common.options.lease;
        let lease = Lease { until, duration, extender: claim(), settler: claim() };
        Delivery {
            message: MessageId(envelope.identity()),
            queue: taken.queue.name.clone(),
            headers: envelope.headers(),
            submitted: envelope.submitted,
            redelivered: envelope.redelivered,
            body: envelope.raw.body,
            content_type: envelope.raw.content_type,
            content_encoding: envelope.raw.content_encoding,
            header_order: envelope.raw.header_order,
            properties: envelope.raw.properties,
            // Celery's and ours count differently: the body's reader knows which it is.
            priority: None,
            lease,
        }
    }
}

#[async_trait]
impl Source for Fetcher {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.client.common.options.queues.is_empty() && self.all().is_empty() {
            return Err(BrokerError::Refused {
                broker: self.client.common.place.name.clone(),
                action: "hand out work",
                reason: "it was opened without queues; name at least one".to_owned(),
            });
        }
        self.wait_for_work(credit, stop).await.map_err(self.client.cannot("hand out work"))
    }

    fn lease(&self) -> Duration {
        self.client.common.options.lease
    }

    async fn fetch_delayed(&self, credit: usize) -> Result<Option<Vec<(Timestamp, Delivery)>>, BrokerError> {
        self.take_early(credit).await.map(Some).map_err(self.client.cannot("hand out what is delayed"))
    }

    fn queues(&self) -> Option<Vec<QueueName>> {
        Some(self.all().iter().map(|queue| queue.name.clone()).collect())
    }

    async fn choose(&self, queue: &QueueName, intake: Intake) -> Result<Chosen, BrokerError> {
        if intake == Intake::Open {
            let known = async {
                self.client.bind(queue).await?;
                self.client.common.list_queues(std::iter::once(queue)).await
            };
            known.await.map_err(self.client.cannot("take a queue"))?;
        }
        {
            let mut queues = self.all();
            match (intake, queues.iter().position(|known| known.name == *queue)) {
                (Intake::Open, None) => queues.push(Queue::new(&self.client, queue, &self.gong)),
                (Intake::Paused, Some(place)) => drop(queues.remove(place)),
                (Intake::Open, Some(_)) | (Intake::Paused, None) => return Ok(Chosen::Already),
            }
        }
        // Whoever waits looks again, at what is to be fetched from now.
        self.gong.strike();
        Ok(Chosen::Changed)
    }
}
