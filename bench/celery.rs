//! How many Celery tasks that do nothing pass the whole road in a second on RabbitMQ, with their results on `rpc://`; and
//! what a broadcast of remote control costs that is for somebody else.
//!
//! The limit is a bare drain with the same client: consume, answer with a confirmation, acknowledge many at a time. It
//! keeps no record and tells nobody.

use std::time::{Duration, Instant};

use figment::value::Value;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use longshore::lifecycle::LifePhase;
use longshore::worker::Worker;
use serde_json::json;

use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};
use crate::support::rig::{self, Drained};
use crate::support::{Outcome, process};

/// Tasks of one round.
const USUAL: usize = 6_000;
const PAYLOAD: usize = 1_024;
const LANES: usize = 64;
/// What the bare drain holds at a time, as many as the worker.
const PREFETCH: u16 = 128;
/// Broadcasts of one round, and how many come in a second: as from a hundred tasks of Python workers.
const BROADCASTS: usize = 5_000;
const RATE: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin(
        "celery",
        "Celery tasks with 1 KB through RabbitMQ, results on rpc:// (tasks/s; processor time: less is better)",
    );
    let Ok(node) = peer.node() else { return Ok(answer.end()) };
    let [mut rates, mut costs, mut limit, mut python, mut heard, mut quiet] = [const { Vec::new() }; 6];
    for round in 0..rounds {
        {
            let _awake = node.wake();
            let server = Server::open(node.address()).await?;
            limit.push(server.bare(&format!("bare{round}")).await?);
            let drained = server.ours(&format!("ships{round}")).await?;
            rates.push(per_second(drained.took));
            costs.push(micros_each(drained.processors, USUAL));
            let (loud, still) = broadcasts(peer, node.address()).await?;
            heard.push(loud);
            quiet.push(still);
        }
        python.extend(peer.answered_noops(USUAL).await?);
    }
    let row = Row::new(format!("lanes {LANES}, {USUAL} queued"), Figure::of(&rates));
    answer.add(row.limit(Figure::of(&limit)).python(Figure::if_any(&python)).at_least_of_python(2.0));
    answer.add(Row::new("processor \u{b5}s per task", Figure::of(&costs)));
    let row = Row::new(format!("processor \u{b5}s per broadcast of {RATE} in a second"), Figure::of(&heard));
    answer.add(row.below(100.0));
    answer.add(Row::new(
        "processor \u{b5}s of an idle worker in as long a time, shared out",
        Figure::of(&quiet),
    ));
    Ok(answer.end())
}

/// The server as producers and callers use it.
struct Server {
    address: String,
    _connection: Connection,
    channel: Channel,
}

impl Server {
    async fn open(address: &str) -> Outcome<Self> {
        // An empty virtual host at the end is the default one.
        let address = address.trim_end_matches('/').to_owned();
        let connection =
            Connection::connect(&format!("{address}/%2f"), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { address, _connection: connection, channel })
    }

    /// Queues pings that ask for their results in a queue of their own; its name.
    async fn fill(&self, queue: &str) -> Outcome<String> {
        let replies = format!("{queue}.replies");
        for name in [queue, &replies] {
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            self.channel.queue_declare(name.into(), options, FieldTable::default()).await?;
        }
        let body = json!([["x".repeat(PAYLOAD)], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
        let body = body.to_string();
        let mut confirmations = Vec::with_capacity(USUAL);
        for _ in 0..USUAL {
            let id = uuid::Uuid::now_v7().to_string();
            let mut headers = FieldTable::default();
            for (name, value) in [("lang", "py"), ("task", "longshore.ping"), ("id", &id), ("root_id", &id)] {
                headers.insert(name.into(), AMQPValue::LongString(value.into()));
            }
            headers.insert("retries".into(), AMQPValue::LongInt(0));
            let properties = BasicProperties::default()
                .with_content_type("application/json".into())
                .with_content_encoding("utf-8".into())
                .with_delivery_mode(2)
                .with_priority(0)
                .with_correlation_id(id.as_str().into())
                .with_reply_to(replies.as_str().into())
                .with_headers(headers);
            let options = BasicPublishOptions::default();
            confirmations.push(
                self.channel
                    .basic_publish("".into(), queue.into(), options, body.as_bytes(), properties)
                    .await?,
            );
        }
        for confirmation in confirmations {
            confirmation.await?;
        }
        Ok(replies)
    }

    async fn count(&self, queue: &str) -> Outcome<usize> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        Ok(usize::try_from(found.message_count())?)
    }

    async fn forget(&self, queues: [&str; 2]) -> Outcome<()> {
        for queue in queues {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    /// A worker's drain, from the moment in which it is let go until every result is there and everything is settled.
    async fn ours(&self, queue: &str) -> Outcome<Drained> {
        let replies = self.fill(queue).await?;
        let folder = rig::folder()?;
        let address = format!("{}//", self.address);
        let more = [
            ("brokers", Value::from(vec![address.as_str()])),
            ("worker.queues", Value::from(vec![queue])),
            ("celery.result_backend", Value::from("rpc://")),
        ];
        let settings = rig::settings_with(folder.path(), LANES, &more)?;
        let before = process::processor_time()?;
        let begin = Instant::now();
        let worker = Worker::start(&settings).await?;
        while self.count(&replies).await? < USUAL || !worker.ledger.is_empty() {
            if begin.elapsed() > PATIENCE {
                return Err("the queue is not drained within two minutes".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        let took = begin.elapsed();
        let processors = process::processor_time()?.saturating_sub(before);
        worker.lifecycle.advance(LifePhase::Draining);
        worker.ended().await;
        self.forget([queue, &replies]).await?;
        Ok(Drained { took, processors })
    }

    /// Tasks per second of a client that does nothing but take, answer and acknowledge.
    async fn bare(&self, queue: &str) -> Outcome<f64> {
        let replies = self.fill(queue).await?;
        self.channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let begin = Instant::now();
        let tag = "bare".into();
        let mut consumer = self
            .channel
            .basic_consume(queue.into(), tag, BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        let answer = json!({"status": "SUCCESS", "result": null}).to_string();
        let mut open = Vec::new();
        for n in 1..=USUAL {
            let task = consumer.next().await.ok_or("the consumer ended")??;
            let sent = self.channel.basic_publish(
                "".into(),
                replies.as_str().into(),
                BasicPublishOptions::default(),
                answer.as_bytes(),
                BasicProperties::default().with_delivery_mode(1),
            );
            open.push(sent.await?);
            if n % usize::from(PREFETCH / 2) == 0 || n == USUAL {
                for confirmation in open.drain(..) {
                    confirmation.await?;
                }
                task.acker.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
        let took = begin.elapsed();
        self.channel.basic_cancel("bare".into(), lapin::options::BasicCancelOptions::default()).await?;
        self.forget([queue, &replies]).await?;
        Ok(per_second(took))
    }
}

/// Microseconds of a worker for each broadcast that it hears, and for as long a time without any.
async fn broadcasts(peer: &Peer, address: &str) -> Outcome<(f64, f64)> {
    let folder = rig::folder()?;
    let settings = rig::settings_with(folder.path(), 1, &[("brokers", Value::from(vec![address]))])?;
    let worker = Worker::start(&settings).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (begin, before) = (Instant::now(), process::processor_time()?);
    peer.broadcast(BROADCASTS, RATE).await?;
    let (took, heard) = (begin.elapsed(), process::processor_time()?.saturating_sub(before));
    let before = process::processor_time()?;
    tokio::time::sleep(took).await;
    let quiet = process::processor_time()?.saturating_sub(before);
    worker.lifecycle.advance(LifePhase::Draining);
    worker.ended().await;
    Ok((micros_each(heard.saturating_sub(quiet), BROADCASTS), micros_each(quiet, BROADCASTS)))
}

#[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
fn per_second(took: Duration) -> f64 {
    USUAL as f64 / took.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
fn micros_each(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}
