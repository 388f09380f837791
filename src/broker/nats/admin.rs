//! Counting and steering queues.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::Client;
use super::attend::paused_queues;
use super::names::{Names, Wait, key_subject};
use crate::broker::{Admin, BrokerError, Intake, QueueInfo, Waiting, WaitingQuery};
use crate::nats::stream::{self, purge};
use crate::nats::{AckInfo, LinkError};
use crate::task::{PriorityClass, QueueName};

/// Messages that one step of a purge removes.
const PURGE_STEP: u64 = 500;
/// How long the server may take for the next message of a purge.
const PURGE_WAIT: Duration = Duration::from_secs(5);

/// How far the consumer of a queue and class has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// The last message that it handed over for the first time.
    pub(super) delivered: u64,
    /// Handed over and not settled.
    pub(super) leased: u64,
    /// Not handed over yet.
    pub(super) pending: u64,
    /// How long the server waits for a sign of life.
    pub(super) ack_wait: Duration,
}

/// How far all consumers have come.
pub(super) type Consumers = BTreeMap<(QueueName, PriorityClass), Reached>;

#[async_trait]
impl Admin for Client {
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        self.infos().await.map_err(self.cannot("list its queues"))
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        let subject = key_subject(&self.names.control_bucket(), &Names::pause_key(queue));
        let (mut headers, mut body) = (HeaderMap::new(), Bytes::from_static(b"paused"));
        if intake == Intake::Open {
            // As all NATS clients remove a key: whoever listens hears it.
            headers.insert("KV-Operation", "DEL");
            body = Bytes::new();
        }
        let set = self.link.publish(subject, headers, body).await;
        set.map_err(self.cannot("pause or resume a queue"))?;
        self.paused.set(queue, intake);
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        self.purge_queue(queue).await.map_err(self.cannot("purge a queue"))
    }

    async fn waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError> {
        self.listing(query).await.map_err(self.cannot("list what waits"))
    }
}

impl Client {
    async fn infos(&self) -> Result<Vec<QueueInfo>, LinkError> {
        let names = &self.names;
        let mut infos: BTreeMap<QueueName, QueueInfo> = BTreeMap::new();
        let work = stream::state(&self.link, &names.work_stream(), Some(">")).await?;
        for (subject, count) in work.subjects {
            let Some((wait, queue, _)) = names.read_place(&subject) else { continue };
            let info = of(&mut infos, queue);
            match wait {
                Wait::Turn => info.ready += count,
                Wait::Time => info.delayed += count,
            }
        }
        let consumers = self.consumers().await?;
        for ((queue, _), reached) in &consumers {
            let info = of(&mut infos, queue.clone());
            info.leased += reached.leased;
            info.ready = info.ready.saturating_sub(reached.leased);
        }
        let dead = stream::state(&self.link, &names.dead_stream(), Some(">")).await?;
        for (subject, count) in dead.subjects {
            if let Some(queue) = names.read_dead(&subject) {
                of(&mut infos, queue).dead += count;
            }
        }
        for queue in paused_queues(&self.link, &names.control_bucket()).await? {
            of(&mut infos, queue).intake = Intake::Paused;
        }
        let mut listed: Vec<QueueInfo> = infos.into_values().collect();
        for info in listed.iter_mut().filter(|info| info.ready > 0) {
            for class in PriorityClass::ALL {
                let place = names.place(Wait::Turn, &info.name, class);
                let reached = consumers.get(&(info.name.clone(), class)).copied().unwrap_or_default();
                let next = self.link.next_of(&names.work_stream(), &place, reached.delivered + 1).await?;
                let time = next.map(|stored| stored.time);
                info.oldest = [info.oldest, time].into_iter().flatten().min();
            }
        }
        Ok(listed)
    }

    /// Every consumer of work.
    pub(super) async fn consumers(&self) -> Result<Consumers, LinkError> {
        let mut consumers = Consumers::new();
        let mut offset = 0;
        loop {
            let request = format!("CONSUMER.LIST.{}", self.names.work_stream());
            let page = self.link.ask(&request, &json!({ "offset": offset })).await?;
            let list = page.get("consumers").and_then(Value::as_array).cloned().unwrap_or_default();
            offset += list.len();
            for info in &list {
                let text = info.pointer("/config/filter_subject").and_then(Value::as_str).unwrap_or_default();
                let Some((Wait::Turn, queue, class)) = self.names.read_place(text) else { continue };
                let number = |path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or_default();
                let reached = Reached {
                    delivered: number("/delivered/stream_seq"),
                    leased: number("/num_ack_pending"),
                    pending: number("/num_pending"),
                    ack_wait: Duration::from_nanos(number("/config/ack_wait")),
                };
                consumers.insert((queue, class), reached);
            }
            let total = page.get("total").and_then(Value::as_u64).unwrap_or_default();
            if list.is_empty() || offset as u64 >= total {
                return Ok(consumers);
            }
        }
    }

    /// What is leased is not handed out, so what the consumers hand out is what may go.
    async fn purge_queue(&self, queue: &QueueName) -> Result<u64, LinkError> {
        let (link, names) = (&self.link, &self.names);
        let consumers = self.consumers().await?;
        let mut purged = 0;
        for class in PriorityClass::ALL {
            let stream = names.work_stream();
            purged += purge(link, &stream, &names.place(Wait::Time, queue, class)).await?;
            if consumers.contains_key(&(queue.clone(), class)) {
                purged += self.purge_class(queue, class).await?;
            } else {
                purged += purge(link, &stream, &names.place(Wait::Turn, queue, class)).await?;
            }
        }
        Ok(purged)
    }

    async fn purge_class(&self, queue: &QueueName, class: PriorityClass) -> Result<u64, LinkError> {
        let (link, names) = (&self.link, &self.names);
        let inbox = link.inbox();
        let mut heard = link.subscribe(inbox.clone()).await?;
        let consumer = Names::consumer(queue, class);
        let next = link.api_subject(&format!("CONSUMER.MSG.NEXT.{}.{consumer}", names.work_stream()));
        let request = json!({ "batch": PURGE_STEP, "no_wait": true }).to_string();
        let mut purged = 0;
        loop {
            link.send_asking(next.clone(), inbox.clone(), request.clone().into()).await?;
            let mut last = None;
            for _ in 0..PURGE_STEP {
                let message = tokio::time::timeout(PURGE_WAIT, heard.next()).await;
                let message = message.ok().flatten().filter(|message| message.status.is_none());
                let Some(message) = message else { break };
                let info = AckInfo::of(&message)?;
                if let Some(before) = last.replace(info.reply) {
                    link.send(before, Bytes::from_static(b"+ACK")).await?;
                }
                purged += 1;
            }
            // One connection is heard in order: when the last is acknowledged, all are.
            let Some(last) = last else { return Ok(purged) };
            link.confirm(&last, b"+ACK").await?;
        }
    }
}

fn of(infos: &mut BTreeMap<QueueName, QueueInfo>, queue: QueueName) -> &mut QueueInfo {
    infos.entry(queue.clone()).or_insert_with(|| QueueInfo {
        name: queue,
        ready: 0,
        leased: 0,
        delayed: 0,
        dead: 0,
        intake: Intake::Open,
        oldest: None,
    })
}
