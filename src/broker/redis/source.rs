//! Taking work: looks once, then blocks at the server until a message, the bell, the next due time, or the stop.
//!
//! # Decisions
//! - A look is one script over all queues, so that the credit is exact and the best class of all queues comes first. The
//!   blocking read hands each new message to one waiting worker only; it notes no lease, so a second step does. Who dies
//!   between the two leaves an entry without a lease, which `sweep` finds by its idle time.
//! - A blocked read is ended by `CLIENT UNBLOCK` and then awaited, never dropped: it may have got something meanwhile.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redis::Value;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::keys::{class_named, usual_priority};
use super::lease::{Claim, EarlyClaim};
use super::message::{Entry, of_millis};
use super::{Client, millis};
use crate::broker::message::Lease;
use crate::broker::{BrokerError, Delivery, Source};
use crate::cancel::CancelScope;
use crate::redis::{Blocking, LinkError, script, value};
use crate::task::PriorityClass as Class;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::Properties;

script!(CLAIM, "lua/common.lua", "lua/claim.lua");
script!(REGISTER, "lua/common.lua", "lua/register.lua");
script!(EARLY, "lua/common.lua", "lua/early.lua");
script!(SWEEP, "lua/common.lua", "lua/sweep.lua");

/// The group that all workers read in.
const GROUP: &str = "longshore";
/// How long one blocking read may last; after it every fetcher looks by itself.
pub(in crate::broker) const LONGEST_BLOCK: Duration = Duration::from_secs(10);
/// Beyond the end of a blocking read before its connection counts as broken.
const SLACK: Duration = Duration::from_secs(5);
/// Between two tries to end a blocking read: the first may have come before the read itself.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(20);
/// A consumer that held nothing for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3_600);

/// Fetches for one client.
pub(super) struct Fetcher {
    client: Arc<Client>,
    consumer: Arc<str>,
    stems: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blocking: Option<Blocking>,
    swept: Option<Instant>,
}

/// A message in our name.
struct Taken {
    queue: usize,
    class: Class,
    id: String,
    again: bool,
    entry: Entry,
}

/// What a look found.
struct Look {
    /// Until something is due by itself.
    next_due: Option<Duration>,
    /// Queues that hand out.
    open: Vec<usize>,
    taken: Vec<Taken>,
}

impl Fetcher {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let consumer = format!("{}/{}", client.options.worker, client.options.incarnation).into();
        let stems = client.options.queues.iter().map(|queue| client.keys.stem(queue)).collect();
        Self { client, consumer, stems, state: Mutex::default() }
    }

    async fn wait_for_work(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, LinkError> {
        let mut state = self.state.lock().await;
        let mut bell = self.client.ears.bell();
        while !stop.is_canceled() {
            bell.mark_unchanged();
            self.sweep(&mut state).await?;
            let (look, until) = self.look(credit).await?;
            if !look.taken.is_empty() {
                return Ok(self.deliveries(look.taken, until));
            }
            let wait = look.next_due.unwrap_or(LONGEST_BLOCK).min(LONGEST_BLOCK);
            if look.open.is_empty() {
                tokio::select! {
                    _ = stop.canceled() => {}
                    () = tokio::time::sleep(wait) => {}
                    _ = bell.changed() => {}
                }
                continue;
            }
            let read = self.block(&mut state, &look.open, (credit, wait), (stop, &mut bell)).await;
            if read.is_err() {
                state.blocking = None;
            }
            let read = read?;
            if !read.is_empty() {
                let (taken, until) = self.register(read, credit).await?;
                if !taken.is_empty() {
                    return Ok(self.deliveries(taken, until));
                }
            }
        }
        Ok(Vec::new())
    }

    async fn look(&self, credit: usize) -> Result<(Look, Instant), LinkError> {
        let lease = self.client.options.lease;
        // Before the server reckons: the lease must not seem to last longer than it does.
        let until = Instant::now() + lease;
        let call = CLAIM.on(&self.stems).arg(&*self.consumer).arg(credit).arg(millis(lease));
        let [next_due, open, found] = value::row(self.client.link.call(&call).await?)?;
        let open = value::list(open)?.iter().map(|number| self.queue_at(number)).collect::<Result<_, _>>()?;
        let taken = value::list(found)?.into_iter().map(|message| self.taken(message));
        let next_due = u64::try_from(value::int(&next_due)?).ok().map(Duration::from_millis);
        Ok((Look { next_due, open, taken: taken.collect::<Result<_, _>>()? }, until))
    }

    /// Of a number as scripts count, from 1.
    fn queue_at(&self, number: &Value) -> Result<usize, LinkError> {
        let index = usize::try_from(value::int(number)?).ok().and_then(|number| number.checked_sub(1));
        index
            .filter(|index| *index < self.stems.len())
            .ok_or_else(|| LinkError::Unreadable("a script named no queue of ours".to_owned()))
    }

    fn taken(&self, message: Value) -> Result<Taken, LinkError> {
        let [number, class, id, again, fields] = value::row(message)?;
        Ok(Taken {
            queue: self.queue_at(&number)?,
            class: class_of(class)?,
            id: value::text(id)?,
            again: value::int(&again)? == 1,
            entry: Entry::read(fields)?,
        })
    }

    /// Waits at the server for new messages of the queues `open`, at most `wait`.
    async fn block(
        &self,
        state: &mut State,
        open: &[usize],
        (credit, wait): (usize, Duration),
        (stop, bell): (&CancelScope, &mut watch::Receiver<u64>),
    ) -> Result<Vec<Taken>, LinkError> {
        let blocking = match &mut state.blocking {
            Some(blocking) => blocking,
            none => {
                let patience = self.client.options.connect_timeout;
                let opened = Blocking::open(&self.client.place, patience, LONGEST_BLOCK + SLACK).await?;
                none.insert(opened)
            }
        };
        let streams: Vec<(usize, Class)> =
            Class::ALL.iter().flat_map(|class| open.iter().map(|queue| (*queue, *class))).collect();
        // COUNT is per stream.
        let count = (credit / streams.len()).max(1);
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&*self.consumer).arg("COUNT").arg(count);
        // 0 would be for ever.
        command.arg("BLOCK").arg(millis(wait).max(1)).arg("STREAMS");
        for (queue, class) in &streams {
            command.arg(format!("{}:{}", self.stems[*queue], class.as_str()));
        }
        for _ in &streams {
            command.arg(">");
        }
        let id = blocking.id;
        let mut reading = std::pin::pin!(blocking.connection.send_packed_command(&command));
        let answer = tokio::select! {
            answer = &mut reading => answer,
            _ = stop.canceled() => self.unblock(id, reading).await?,
            _ = bell.changed() => self.unblock(id, reading).await?,
        };
        match answer.and_then(Value::extract_error) {
            Ok(answer) => self.read(answer),
            // Somebody emptied the server: the next look makes the groups again.
            Err(error) if error.code() == Some("NOGROUP") => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a blocked read and takes what it has got.
    async fn unblock(
        &self,
        id: i64,
        mut reading: std::pin::Pin<&mut impl Future<Output = redis::RedisResult<Value>>>,
    ) -> Result<redis::RedisResult<Value>, LinkError> {
        loop {
            self.client.link.send(redis::cmd("CLIENT").arg("UNBLOCK").arg(id)).await?;
            if let Ok(answer) = tokio::time::timeout(UNBLOCK_AGAIN, &mut reading).await {
                return Ok(answer);
            }
        }
    }

    /// Reads what XREADGROUP answered: a map or a list of streams with their entries.
    fn read(&self, answer: Value) -> Result<Vec<Taken>, LinkError> {
        let streams = match answer {
            Value::Map(streams) => streams,
            other => {
                let pairs = value::list(other)?.into_iter().map(|pair| value::row(pair).map(|[k, v]| (k, v)));
                pairs.collect::<Result<_, _>>()?
            }
        };
        let mut taken = Vec::new();
        for (stream, entries) in streams {
            let stream = value::text(stream)?;
            let (queue, class) = self.stream_named(&stream)?;
            for entry in value::list(entries)? {
                let [id, fields] = value::row(entry)?;
                let (id, entry) = (value::text(id)?, Entry::read(fields)?);
                taken.push(Taken { queue, class, id, again: false, entry });
            }
        }
        Ok(taken)
    }

    fn stream_named(&self, stream: &str) -> Result<(usize, Class), LinkError> {
        let found = stream.rsplit_once(':').and_then(|(stem, class)| {
            Some((self.stems.iter().position(|ours| ours == stem)?, class_named(class)?))
        });
        found.ok_or_else(|| LinkError::Unreadable("it read a stream that was not asked for".to_owned()))
    }

    /// Notes the leases of what a blocking read brought; what is beyond `credit` goes back.
    async fn register(&self, read: Vec<Taken>, credit: usize) -> Result<(Vec<Taken>, Instant), LinkError> {
        let lease = self.client.options.lease;
        let until = Instant::now() + lease;
        let mut call = REGISTER.on(&self.stems).arg(&*self.consumer).arg(credit).arg(millis(lease));
        call.push(self.client.keys.bell());
        for taken in &read {
            call.push(taken.queue + 1);
            call.push(taken.class.as_str());
            call.push(&taken.id);
        }
        let kept = value::list(self.client.link.call(&call).await?)?;
        let kept = kept.iter().map(value::int).collect::<Result<Vec<i64>, _>>()?;
        let taken = read.into_iter().zip(kept).filter(|(_, kept)| *kept == 1).map(|(taken, _)| taken);
        Ok((taken.collect(), until))
    }

    /// Once a lease: lets what was read and never noted lapse.
    async fn sweep(&self, state: &mut State) -> Result<(), LinkError> {
        let lease = self.client.options.lease;
        if state.swept.is_some_and(|at| at.elapsed() < lease) {
            return Ok(());
        }
        let call =
            SWEEP.on(&self.stems).arg(millis(lease)).arg(millis(FORGOTTEN)).arg(self.client.keys.bell());
        let found = value::int(&self.client.link.call(&call).await?)?;
        if found > 0 {
            tracing::info!(
                found,
                "messages were read by workers that died at once; they are handed over again"
            );
        }
        state.swept = Some(Instant::now());
        Ok(())
    }

    fn deliveries(&self, taken: Vec<Taken>, until: Instant) -> Vec<Delivery> {
        taken.into_iter().map(|taken| self.delivery(taken, until)).collect()
    }

    fn delivery(&self, taken: Taken, until: Instant) -> Delivery {
        let claim = || {
            Box::new(Claim {
                client: Arc::clone(&self.client),
                consumer: Arc::clone(&self.consumer),
                stem: self.stems[taken.queue].clone(),
                class: taken.class,
                id: taken.id.clone(),
            })
        };
        let lease = Lease { until, duration: self.client.options.lease, extender: claim(), settler: claim() };
        self.under(lease, taken)
    }

    fn under(&self, lease: Lease, taken: Taken) -> Delivery {
        let Taken { queue, class, id, again, entry } = taken;
        let queue = self.client.options.queues[queue].clone();
        Delivery {
            message: entry.message(&queue, class, &id),
            submitted: entry.submitted(&id),
            lease,
            queue,
            body: entry.body,
            content_type: entry.content_type,
            content_encoding: entry.encoding,
            headers: entry.headers,
            header_order: KeyOrder::Kept,
            properties: Properties::default(),
            priority: Some(entry.priority.unwrap_or_else(|| usual_priority(class))),
            redelivered: again,
        }
    }
}

impl Fetcher {
    /// What waits for its time: given back with a delay, which is claimed as ever, or submitted for later, which stays
    /// outside of the stream.
    async fn take_early(&self, credit: usize) -> Result<Vec<(Timestamp, Delivery)>, LinkError> {
        let lease = self.client.options.lease;
        let until = Instant::now() + lease;
        let call = EARLY.on(&self.stems).arg(&*self.consumer).arg(credit).arg(millis(lease));
        let mut early = Vec::new();
        for found in value::list(self.client.link.call(&call).await?)? {
            let [due, held, message] = value::row(found)?;
            let due = u64::try_from(value::int(&due)?).ok().and_then(of_millis).unwrap_or_default();
            let taken = self.taken(message)?;
            let delivery = if value::int(&held)? == 1 {
                let claim = || {
                    let stem = self.stems[taken.queue].clone();
                    Box::new(EarlyClaim { client: Arc::clone(&self.client), stem, number: taken.id.clone() })
                };
                let lease = Lease { until, duration: lease, extender: claim(), settler: claim() };
                self.under(lease, taken)
            } else {
                self.delivery(taken, until)
            };
            early.push((due, delivery));
        }
        early.sort_by_key(|(due, _)| *due);
        Ok(early)
    }
}

fn class_of(value: Value) -> Result<Class, LinkError> {
    let text = value::text(value)?;
    class_named(&text).ok_or_else(|| LinkError::Unreadable("a script named no class of ours".to_owned()))
}

#[async_trait]
impl Source for Fetcher {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        if self.stems.is_empty() {
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
        self.take_early(credit).await.map(Some).map_err(self.client.cannot("hand out what is delayed"))
    }
}
