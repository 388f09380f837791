//! Queues, events and commands in Redis Streams, for workers on many hosts (`redis://`, `rediss://`, `redis+unix://`).
//!
//! Each file holds what one trait needs; `lua/` holds what the server must do in one step, and `lua/common.lua` says which
//! keys there are. `redis/` owns connections and scripts. `docs/protocol.md` tells producers what they may rely on.
//!
//! # Decisions
//! - A lease is a score in a sorted set beside the stream, not the entry's idle time: idle time cannot say that one lease
//!   lasts longer than another, nor when the next one ends. The entry's consumer says whose it is, and every script asks for
//!   it first. A consumer is a worker's incarnation, so that its own lapsed lease is bound again rather than lost.
//! - What is given back stays where it is, in the name of the consumer `nobody` and with a time: nothing is copied, and the
//!   message keeps its id. Only what was submitted for later waits outside of the stream and is moved there in its time.
//! - The keys of a queue share a hash tag. A fetch from several queues is one script over several tags, which a cluster
//!   would refuse: there it must be one call per queue.
//! - No `MAXLEN` on work: it would remove what is waiting or held.

mod admin;
mod dead;
mod ears;
mod events;
mod fleet;
mod keys;
mod lease;
mod message;
mod source;
mod submit;
mod topic;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::ears::Ears;
use self::keys::Keys;
use super::{Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions};
use crate::redis::{Health, Link, LinkError, Place, Wants};
use crate::task::QueueName;

/// How this adapter is found.
pub const ADAPTER: Adapter = Adapter {
    schemes: &["redis", "rediss", "redis+unix"],
    summary: "redis://[user:password@]host[:6379][/db]  Redis 7 or Valkey; rediss:// for TLS, redis+unix:///path for a socket",
    open,
};

/// How long a dedup id is remembered unless the address says otherwise.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 3600);

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(async move {
        let name = url.to_string();
        let client = Client::open(url, options).await;
        let client = client.map_err(|error| refusal(&name, "open it", error))?;
        Ok(broker(Arc::new(client)))
    })
}

fn broker(client: Arc<Client>) -> Broker {
    Broker {
        name: client.place.name.clone(),
        capabilities: Capabilities {
            replay: true,
            dedup_window: Some(client.dedup_window()),
            extend: true,
            remote: true,
            list: true,
        },
        source: Arc::new(source::Fetcher::new(Arc::clone(&client))),
        submit: client.clone(),
        topic: client.clone(),
        admin: client.clone(),
        dead: client.clone(),
        fleet: client,
    }
}

/// One who opened a server.
pub(super) struct Client {
    pub(super) place: Place,
    pub(super) keys: Keys,
    pub(super) link: Link,
    pub(super) ears: Ears,
    pub(super) options: OpenOptions,
    /// Queues that are known to be listed.
    listed: Mutex<HashSet<QueueName>>,
}

impl Client {
    async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Self, LinkError> {
        Self::at(Place::parse(&url.expose(), &url.to_string())?, options).await
    }

    /// Opens the server at `place`.
    pub(super) async fn at(place: Place, options: &OpenOptions) -> Result<Self, LinkError> {
        let keys = Keys::new(&place.prefix);
        let ears = Ears::default();
        let heard = ears.clone();
        let (bell, commands) = (keys.bell(), keys.commands());
        let link =
            Link::open(&place, options.connect_timeout, move |push| heard.hear(push, &bell, &commands))
                .await?;
        let health = Health::of(&link).await?;
        health.check()?;
        let client = Self { place, keys, link, ears, options: options.clone(), listed: Mutex::default() };
        if !client.options.queues.is_empty() {
            for warning in health.warnings(Wants::Tasks) {
                tracing::warn!(broker = client.place.name, "{warning}");
            }
            client.link.subscribe(&client.keys.bell()).await?;
            client.list_queues(client.options.queues.iter()).await?;
        }
        Ok(client)
    }

    pub(super) fn dedup_window(&self) -> Duration {
        self.place.dedup.unwrap_or(DEDUP_WINDOW)
    }

    pub(super) fn cannot(&self, action: &'static str) -> impl Fn(LinkError) -> BrokerError + '_ {
        move |error| refusal(&self.place.name, action, error)
    }

    /// Makes `queues` known to whoever lists them.
    pub(super) async fn list_queues(
        &self,
        queues: impl Iterator<Item = &QueueName>,
    ) -> Result<(), LinkError> {
        let new: HashSet<QueueName> = {
            let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            queues.filter(|queue| !listed.contains(*queue)).cloned().collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = new.iter().map(QueueName::as_str).collect();
        self.link.send(redis::cmd("SADD").arg(self.keys.queues()).arg(names)).await?;
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
        Ok(())
    }
}

pub(super) fn refusal(name: &str, action: &'static str, error: LinkError) -> BrokerError {
    let broker = name.to_owned();
    match error {
        LinkError::Address(reason) => BrokerError::Url(reason),
        LinkError::Unavailable(reason) => BrokerError::Unavailable { broker, reason },
        LinkError::Refused(reason) => BrokerError::Refused { broker, action, reason },
        LinkError::Unreadable(reason) => BrokerError::Corrupt { broker, reason },
    }
}

/// Milliseconds, as scripts want them.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}
