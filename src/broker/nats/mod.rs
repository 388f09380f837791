//! Queues, events and commands in NATS JetStream, for workers on many hosts (`nats://`, `tls://`).
//!
//! Each file holds what one trait needs; `topology` says which streams and consumers there are, `names` what they are
//! called, and `docs/protocol.md` tells producers what they may rely on. `nats/` owns the connection.
//!
//! # Decisions
//! See `topology` (streams), `arrivals` (requests that wait), `lease` (no fences here), `early`, `cancels`, `events` (two streams, live
//! by core subjects) and `later` (what waits for its time).

mod admin;
mod arrivals;
mod attend;
mod cancels;
mod dead;
mod early;
mod events;
mod fleet;
mod later;
mod lease;
mod listing;
mod message;
mod names;
pub mod permissions;
mod source;
mod stranded;
mod submit;
mod topic;
mod topology;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::cancels::Cancels;
use self::lease::Held;
use self::names::Names;
use super::{Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions};
use crate::nats::stream::Ensured;
use crate::nats::{Link, LinkError, Place};
use crate::task::QueueName;

/// How this adapter is found.
pub const ADAPTER: Adapter = Adapter {
    schemes: &["nats", "tls"],
    summary: "nats://[user:password@]host[:4222][,host…]  NATS JetStream 2.9 or later; tls:// for TLS, ?creds=FILE, ?context=NAME and others as the README says",
    open,
};

/// How long a dedup id is remembered unless the address says otherwise. The server keeps the ids in memory.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(300);

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(async move {
        let name = url.to_string();
        let client = Client::open(url, options).await;
        let client = client.map_err(|error| refusal(&name, "open it", error))?;
        Ok(broker(client))
    })
}

/// Makes and repairs all that a namespace needs: its streams, and the consumers of the queues of `options`. What was done.
pub(super) async fn initialize(url: &BrokerUrl, options: &OpenOptions) -> Result<Vec<String>, BrokerError> {
    let name = url.to_string();
    let done = async {
        let mut place = Place::parse(&url.expose(), &name)?;
        place.manage = true;
        let names = Names::new(&place.prefix);
        let link = Link::open(&place, &who(options), options.connect_timeout).await?;
        let mut wanted = topology::streams(&names, &place, options);
        wanted.push(topology::records(&place.prefix));
        let done = topology::ensure(&link, &place, &wanted).await?;
        let mut lines: Vec<String> = done.into_iter().map(|(name, done)| said(&name, done)).collect();
        topology::ensure_later(&link, &place, &names).await?;
        for queue in &options.queues {
            for class in crate::task::PriorityClass::ALL {
                let which = (queue, class);
                topology::ensure_consumer(&link, &place, &names, which, options.lease).await?;
            }
            lines.push(format!("queue {queue}  has its consumers"));
        }
        Ok(lines)
    };
    done.await.map_err(|error| refusal(&name, "make its streams", error))
}

fn said(stream: &str, done: Ensured) -> String {
    let what = match done {
        Ensured::Found => "was there and keeps enough",
        Ensured::Made => "was made",
        Ensured::Raised => "keeps more than before",
    };
    format!("stream {stream}  {what}")
}

fn broker(client: Arc<Client>) -> Broker {
    Broker {
        name: client.place.name.clone(),
        capabilities: Capabilities {
            replay: true,
            dedup_window: Some(client.place.dedup.unwrap_or(DEDUP_WINDOW)),
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
struct Client {
    place: Place,
    names: Names,
    link: Link,
    options: OpenOptions,
    paused: Arc<Paused>,
    cancels: Arc<Cancels>,
    held: Holding,
    _background: DropGuard,
}

/// What a client holds, by its place in the stream.
type Holding = Arc<Mutex<HashMap<u64, Weak<Held>>>>;

/// The queues that hand nothing out, as far as is known.
#[derive(Default)]
struct Paused {
    queues: Mutex<HashSet<QueueName>>,
    changed: Notify,
}

impl Paused {
    fn now(&self) -> HashSet<QueueName> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, queues: HashSet<QueueName>) {
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = queues;
        self.changed.notify_one();
    }

    fn set(&self, queue: &QueueName, paused: super::Intake) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        match paused {
            super::Intake::Paused => queues.insert(queue.clone()),
            super::Intake::Open => queues.remove(queue),
        };
        drop(queues);
        self.changed.notify_one();
    }
}

impl Client {
    async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Arc<Self>, LinkError> {
        let place = Place::parse(&url.expose(), &url.to_string())?;
        let names = Names::new(&place.prefix);
        let link = Link::open(&place, &who(options), options.connect_timeout).await?;
        let stop = CancellationToken::new();
        let client = Arc::new(Self {
            place,
            names,
            cancels: Arc::new(Cancels::new(link.breaks())),
            link,
            options: options.clone(),
            paused: Arc::default(),
            held: Holding::default(),
            _background: stop.clone().drop_guard(),
        });
        client.ensure_streams().await?;
        if !client.options.queues.is_empty() {
            topology::ensure_later(&client.link, &client.place, &client.names).await?;
            attend::begin(&client, stop.clone()).await?;
            later::begin(&client, stop.clone()).await?;
            stranded::begin(&client, stop);
        }
        Ok(client)
    }

    async fn ensure_streams(&self) -> Result<(), LinkError> {
        let wanted = topology::streams(&self.names, &self.place, &self.options);
        topology::ensure(&self.link, &self.place, &wanted).await.map(drop)
    }

    fn cannot(&self, action: &'static str) -> impl Fn(LinkError) -> BrokerError + '_ {
        move |error| refusal(&self.place.name, action, error)
    }

    fn remember(&self, held: &Arc<Held>) {
        let mut holding = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        holding.insert(held.info.sequence, Arc::downgrade(held));
    }

    fn forget(&self, sequence: u64) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&sequence);
    }
}

fn who(options: &OpenOptions) -> String {
    format!("longshore {}", options.worker)
}

fn refusal(name: &str, action: &'static str, error: LinkError) -> BrokerError {
    let broker = name.to_owned();
    match error {
        LinkError::Address(reason) => BrokerError::Url(reason),
        LinkError::Unavailable(reason) => BrokerError::Unavailable { broker, reason },
        LinkError::Refused(reason) | LinkError::Missing(reason) => {
            BrokerError::Refused { broker, action, reason }
        }
        error @ LinkError::Overtaken => BrokerError::Refused { broker, action, reason: error.to_string() },
        LinkError::Unreadable(reason) => BrokerError::Corrupt { broker, reason },
    }
}
