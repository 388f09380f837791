//! How many tasks that do nothing pass the whole road in a second over NATS and over Redis, each with its records in the same
//! server; and whether a long queue makes each of them dearer.
//!
//! The limit is a bare drain of the same server: batches of 256 fetched, each message acknowledged with many in flight.
//! Celery beside it works on the same kind of Redis. No server syncs per message here, as their limits do not.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use longshore::broker::{Broker, Submission};
use longshore::config::Address;
use longshore::lifecycle::LifePhase;
use longshore::ping::Ping;
use longshore::task::{Arg, ArgMap, ContentType, Task};
use longshore::worker::Worker;
use tempfile::TempDir;

use crate::support::peer::Peer;
use crate::support::process::Leashed;
use crate::support::report::{Answer, Figure, Row};
use crate::support::{Outcome, rig};

/// Tasks of one round, and of a queue of usual length.
const USUAL: usize = 10_000;
/// A long queue, of which a round takes all.
const LONG: usize = 100_000;
/// A short one, drained so often in a round.
const SHORT: usize = 100;
const SHORT_DRAINS: usize = 20;
/// What the Python worker gets in a round.
const PYTHON: usize = 4_000;
const PAYLOAD: usize = 1_024;
/// Fetched at a time by the bare drain.
const BARE_BATCH: usize = 256;
/// Tasks in one submission.
const BATCH: usize = 1_000;
/// No drain takes longer.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(2);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nats,
    Redis,
}

/// A server with storage of its own.
pub(crate) struct Server {
    kind: Kind,
    port: u16,
    _process: Leashed,
    _folder: TempDir,
}

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin(
        "brokers",
        "longshore.ping with 1 KB over NATS and Redis, recorded and told there (tasks/s)",
    );
    let mut python = Vec::new();
    for _ in 0..rounds {
        let server = Server::start(Kind::Redis).await?;
        python.extend(peer.noops_on(&format!("{}/0", server.url()), PYTHON).await?);
    }
    let python = Figure::if_any(&python);
    for kind in [Kind::Nats, Kind::Redis] {
        let name = format!("{kind:?}").to_lowercase();
        let mut limit = Vec::new();
        for _ in 0..rounds {
            limit.push(Server::start(kind).await?.bare_drain().await?);
        }
        let limit = Figure::of(&limit);
        for lanes in [1, 8, 64] {
            let rates = taken(kind, rounds, (lanes, USUAL, 1)).await?;
            let row = Row::new(format!("{name}, lanes {lanes}, {USUAL} queued"), Figure::of(&rates));
            let row = row.limit(limit).python(python);
            answer.add(if lanes == 1 { row } else { row.at_least_of_python(5.0) });
        }
        let usual = Figure::of(&taken(kind, rounds, (64, USUAL, 1)).await?);
        for (count, times) in [(SHORT, SHORT_DRAINS), (LONG, 1)] {
            let rates = taken(kind, rounds, (64, count, times)).await?;
            let case = format!("{name}, lanes 64, {count} queued; limit: {USUAL}");
            answer.add(Row::new(case, Figure::of(&rates)).limit(usual).python(python));
        }
    }
    Ok(answer.end())
}

/// Tasks per second, round by round, of `count` tasks with `lanes`, drained `times` times.
async fn taken(kind: Kind, rounds: u32, (lanes, count, times): (usize, usize, usize)) -> Outcome<Vec<f64>> {
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let server = Server::start(kind).await?;
        let dock = Dock::start(&server, lanes).await?;
        let mut took = Duration::ZERO;
        for _ in 0..times {
            dock.queue(count).await?;
            took += dock.drain(&server).await?;
        }
        dock.end().await?;
        #[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
        rates.push((count * times) as f64 / took.as_secs_f64());
    }
    Ok(rates)
}

/// A paused worker at a server.
struct Dock {
    worker: Worker,
    broker: Broker,
    _folder: TempDir,
}

impl Dock {
    async fn start(server: &Server, lanes: usize) -> Outcome<Self> {
        let folder = rig::folder()?;
        let mut settings = rig::settings(folder.path(), lanes)?;
        settings.brokers = vec![Address::new(server.url())];
        settings.store = Address::new(server.url());
        let broker = rig::client(&settings).await?;
        let worker = Worker::start(&settings).await?;
        let dock = Self { worker, broker, _folder: folder };
        dock.pause().await;
        Ok(dock)
    }

    async fn queue(&self, count: usize) -> Outcome<()> {
        let payload = Arg::Text("x".repeat(PAYLOAD));
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            let pings = (0..batch).map(|_| {
                let mut args = ArgMap::new();
                args.insert("payload".to_owned(), payload.clone());
                Submission::of(&Task::new(Ping::KIND, args), ContentType::Json, 0)
            });
            self.broker.submit.submit(pings.collect()).await?;
            left -= batch;
        }
        Ok(())
    }

    /// Lets the worker go until nothing is queued and nothing held.
    async fn drain(&self, server: &Server) -> Outcome<Duration> {
        let watch = server.watch().await?;
        let begin = Instant::now();
        self.worker.lifecycle.resume();
        while watch.left().await? > 0 {
            if begin.elapsed() > PATIENCE {
                return Err("the queue is not drained within three minutes".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        let took = begin.elapsed();
        self.pause().await;
        Ok(took)
    }

    async fn pause(&self) {
        self.worker.lifecycle.advance(LifePhase::Paused);
        let mut quiet = 0;
        while quiet < 10 {
            quiet = if self.worker.ledger.is_empty() { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> Outcome<()> {
        self.worker.lifecycle.advance(LifePhase::Draining);
        if self.worker.ended().await { Ok(()) } else { Err("the worker left something unsettled".into()) }
    }
}

impl Server {
    pub(crate) async fn start(kind: Kind) -> Outcome<Self> {
        let folder = rig::folder()?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let command = kind.command(folder.path(), port);
        let mut process = Leashed::start(&command, &folder.path().join("server.log"))?;
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if process.has_ended()? || begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("{kind:?} does not start (scripts/test-servers installs it)").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { kind, port, _process: process, _folder: folder })
    }

    pub(crate) fn url(&self) -> String {
        match self.kind {
            Kind::Nats => format!("nats://127.0.0.1:{}", self.port),
            Kind::Redis => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    async fn watch(&self) -> Outcome<Watch> {
        Ok(match self.kind {
            Kind::Nats => Watch::Nats(async_nats::jetstream::new(async_nats::connect(self.url()).await?)),
            Kind::Redis => {
                Watch::Redis(redis::Client::open(self.url())?.get_multiplexed_async_connection().await?)
            }
        })
    }

    /// Messages per second of a drain that does nothing else.
    async fn bare_drain(&self) -> Outcome<f64> {
        let body = "x".repeat(PAYLOAD);
        let took = match self.kind {
            Kind::Nats => bare_nats(&self.url(), body).await?,
            Kind::Redis => bare_redis(&self.url(), &body).await?,
        };
        #[expect(clippy::cast_precision_loss, reason = "no bench has that many tasks")]
        Ok(USUAL as f64 / took.as_secs_f64())
    }
}

impl Kind {
    fn command(self, folder: &Path, port: u16) -> Command {
        let port = port.to_string();
        match self {
            Self::Nats => {
                let mut command = Command::new("nats-server");
                command
                    .args(["--addr", "127.0.0.1", "--jetstream", "--port", &port, "--store_dir"])
                    .arg(folder);
                command
            }
            Self::Redis => {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", "everysec", "--dir"]).arg(folder);
                command
            }
        }
    }
}

/// A look at what is queued and held.
enum Watch {
    Nats(async_nats::jetstream::Context),
    Redis(redis::aio::MultiplexedConnection),
}

impl Watch {
    async fn left(&self) -> Outcome<u64> {
        match self {
            Self::Nats(context) => {
                Ok(context.get_stream("longshore_work").await?.cached_info().state.messages)
            }
            Self::Redis(connection) => {
                let mut connection = connection.clone();
                Ok(redis::cmd("XLEN")
                    .arg("longshore:queue:{default}:normal")
                    .query_async(&mut connection)
                    .await?)
            }
        }
    }
}

async fn bare_nats(url: &str, body: String) -> Outcome<Duration> {
    use async_nats::jetstream::{self, consumer, stream};
    let context = jetstream::new(async_nats::connect(url).await?);
    let stream = context
        .create_stream(stream::Config {
            name: "bare".to_owned(),
            subjects: vec!["bare".to_owned()],
            retention: stream::RetentionPolicy::WorkQueue,
            ..stream::Config::default()
        })
        .await?;
    for _ in 0..USUAL / BATCH {
        let mut sent = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            sent.push(context.publish("bare", body.clone().into()).await?);
        }
        for stored in sent {
            stored.await?;
        }
    }
    let wanted = consumer::pull::Config {
        durable_name: Some("bare".to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        max_ack_pending: -1,
        ..consumer::pull::Config::default()
    };
    let consumer: consumer::PullConsumer = stream.create_consumer(wanted).await?;
    let begin = Instant::now();
    let mut done = 0;
    while done < USUAL {
        let mut batch = consumer.fetch().max_messages(BARE_BATCH).messages().await?;
        let mut acks = Vec::with_capacity(BARE_BATCH);
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| error.to_string())?;
            acks.push(async move { message.double_ack().await.map_err(|error| error.to_string()) });
        }
        done += acks.len();
        for acked in futures_util::future::join_all(acks).await {
            acked?;
        }
    }
    Ok(begin.elapsed())
}

async fn bare_redis(url: &str, body: &str) -> Outcome<Duration> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    for _ in 0..USUAL / BATCH {
        let mut adding = redis::pipe();
        for _ in 0..BATCH {
            adding.cmd("XADD").arg("bare").arg("*").arg("body").arg(body).ignore();
        }
        let () = adding.query_async(&mut connection).await?;
    }
    let () = redis::cmd("XGROUP").arg(&["CREATE", "bare", "all", "0"]).query_async(&mut connection).await?;
    let begin = Instant::now();
    let mut done = 0;
    while done < USUAL {
        let read: redis::streams::StreamReadReply = redis::cmd("XREADGROUP")
            .arg(&["GROUP", "all", "one", "COUNT"])
            .arg(BARE_BATCH)
            .arg(&["STREAMS", "bare", ">"])
            .query_async(&mut connection)
            .await?;
        let ids: Vec<String> = read.keys.into_iter().flat_map(|key| key.ids).map(|entry| entry.id).collect();
        done += ids.len();
        let mut removing = redis::pipe();
        removing
            .cmd("XACK")
            .arg("bare")
            .arg("all")
            .arg(&ids)
            .ignore()
            .cmd("XDEL")
            .arg("bare")
            .arg(&ids)
            .ignore();
        let () = removing.query_async(&mut connection).await?;
    }
    Ok(begin.elapsed())
}
