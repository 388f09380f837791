//! The AMQP 0-9-1 bridge: queues as Celery declares them, shared with Celery's producers and workers.
//!
//! [`link`] keeps the connection, [`source`] consumes, [`held`] keeps leases and [`custody`] their copies, [`shelf`] holds
//! what must be readable later: dead letters, cancel requests, paused queues, presences.
//!
//! # Decisions
//! - A delivery stays unacknowledged at first: if we die, the server hands it over again at once. Before the server's
//!   consumer timeout can close the channel, its copy moves to a custody queue of its own, whose TTL is the lease and
//!   which dead-letters back to the work queue; so RabbitMQ itself keeps the lease, however long the task runs.
//! - What Celery's producers send for later comes through their own exchanges where a work queue is a quorum queue ([`delayed`]).
//! - Delays are queues, too, one for each rounded TTL: a message goes through a few of them until its time has come.
//! - AMQP cannot list queues or look into one without taking messages: what waits cannot be listed, and events are not
//!   replayed. Duplicates are told by the record alone.

mod admin;
mod answers;
mod celeryev;
mod custody;
mod dead;
mod delayed;
mod fleet;
mod held;
mod link;
mod pidbox;
mod shelf;
mod source;
mod submit;
mod topic;
mod wire;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

pub use answers::Answers;
pub use celeryev::Celeryev;
pub use pidbox::Pidbox;

use super::{Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions};
use crate::task::QueueName;
use crate::units::Span;
use held::Holds;
use link::Link;
use topic::Listener;

/// How this adapter is found.
pub const ADAPTER: Adapter = Adapter {
    schemes: &["amqp", "amqps"],
    summary: "amqp://user:password@host:5672/vhost  RabbitMQ, with the queues of Celery's producers",
    open,
};

/// How long a delivery stays unacknowledged before its copy goes into custody.
pub const HANDOFF_AFTER: Duration = Duration::from_secs(30);

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(async move {
        let address = Address::read(url)?;
        let name = url.to_string();
        let client = format!("longshore {}", options.worker);
        let link = Link::new(address.uri.clone(), name.clone(), client, options.connect_timeout);
        drop(link.channel().await?);
        let client = Arc::new_cyclic(|itself| Client {
            itself: itself.clone(),
            events_made: OnceCell::new(),
            signals_made: OnceCell::new(),
            ladder_made: OnceCell::new(),
            holds: Holds::default(),
            said: fleet::Said::default(),
            link,
            listener: Listener::default(),
            address,
            name,
            options: options.clone(),
            known: Mutex::default(),
            declared: Mutex::default(),
            delays: Mutex::default(),
        });
        held::watch(&client);
        Ok(broker(client))
    })
}

fn broker(client: Arc<Client>) -> Broker {
    Broker {
        name: client.name.clone(),
        capabilities: Capabilities {
            replay: false,
            dedup_window: Some(Duration::ZERO),
            extend: true,
            remote: true,
            list: false,
        },
        source: source::Fetcher::start(&client),
        submit: client.clone(),
        topic: client.clone(),
        admin: client.clone(),
        dead: client.clone(),
        fleet: client,
    }
}

/// One who opened a virtual host.
struct Client {
    itself: Weak<Client>,
    /// Whether the exchange of events is surely there.
    events_made: OnceCell<()>,
    /// Whether the exchange of signals is surely there.
    signals_made: OnceCell<()>,
    /// Whether Celery's ladder of delays is surely there.
    ladder_made: OnceCell<()>,
    link: Link,
    holds: Holds,
    said: fleet::Said,
    listener: Listener,
    address: Address,
    name: String,
    options: OpenOptions,
    /// Queues that were named here, for lists.
    known: Mutex<BTreeSet<QueueName>>,
    /// Work queues that are surely there.
    declared: Mutex<BTreeSet<QueueName>>,
    /// Delay queues that were used here, and the work queue that each leads to.
    delays: Mutex<BTreeSet<(QueueName, String)>>,
}

/// The parts of an address that are not for the server.
struct Address {
    uri: String,
    handoff_after: Duration,
    max_priority: Option<u8>,
    queue_type: QueueType,
    delayed_delivery: DelayedDelivery,
}

/// What kind of queue is made where none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueType {
    Classic,
    Quorum,
}

/// Whether Celery's producers send what has a time through exchanges that wait, as they do where they use quorum queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DelayedDelivery {
    /// Where a work queue is a quorum queue.
    AsQueues,
    On,
    Off,
}

impl Address {
    /// Reads `handoff_after`, `max_priority`, `queue_type` and `delayed_delivery` from the address; the rest of its query is for
    /// the server.
    fn read(url: &BrokerUrl) -> Result<Self, BrokerError> {
        let whole = url.expose();
        let (base, query) = whole.split_once('?').unwrap_or((&whole, ""));
        let mut address = Self {
            uri: String::new(),
            handoff_after: HANDOFF_AFTER,
            max_priority: None,
            queue_type: QueueType::Classic,
            delayed_delivery: DelayedDelivery::AsQueues,
        };
        let mut rest = vec!["heartbeat=30".to_owned()];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |reason: String| BrokerError::Url(format!("{name}={value} in {url}: {reason}"));
            match name {
                "handoff_after" => {
                    address.handoff_after =
                        value.parse::<Span>().map_err(|error| wrong(error.to_string()))?.get();
                }
                "max_priority" => {
                    let most = value.parse::<u8>().ok().filter(|most| (1..=255).contains(most));
                    address.max_priority =
                        Some(most.ok_or_else(|| wrong("must be from 1 to 255".to_owned()))?);
                }
                "queue_type" => {
                    address.queue_type = match value {
                        "classic" => QueueType::Classic,
                        "quorum" => QueueType::Quorum,
                        _ => return Err(wrong("must be classic or quorum".to_owned())),
                    };
                }
                "delayed_delivery" => {
                    address.delayed_delivery = match value {
                        "auto" => DelayedDelivery::AsQueues,
                        "on" => DelayedDelivery::On,
                        "off" => DelayedDelivery::Off,
                        _ => return Err(wrong("must be auto, on or off".to_owned())),
                    };
                }
                "heartbeat" => pair.clone_into(&mut rest[0]),
                _ => rest.push(pair.to_owned()),
            }
        }
        // Celery writes the default virtual host as `//`, or leaves it out: an empty name is none.
        let base = match base.splitn(4, '/').collect::<Vec<_>>().as_slice() {
            [scheme, "", authority] | [scheme, "", authority, "" | "/"] => {
                format!("{scheme}//{authority}/%2f")
            }
            _ => base.to_owned(),
        };
        address.uri = format!("{base}?{}", rest.join("&"));
        Ok(address)
    }
}

impl Client {
    fn unsupported(&self, action: &'static str) -> BrokerError {
        BrokerError::Unsupported { broker: self.name.clone(), action }
    }

    /// Notes that `queue` was named.
    fn know(&self, queue: &QueueName) {
        lock(&self.known).insert(queue.clone());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Address {
        Address::read(&BrokerUrl::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn celerys_ways_of_naming_the_default_host_are_read_alike() {
        for text in ["amqp://u:p@h:5672", "amqp://u:p@h:5672/", "amqp://u:p@h:5672//"] {
            assert_eq!(read(text).uri, "amqp://u:p@h:5672/%2f?heartbeat=30");
        }
        assert_eq!(read("amqp://h/v?heartbeat=5").uri, "amqp://h/v?heartbeat=5");
    }

    #[test]
    fn what_is_ours_in_an_address_is_not_for_the_server() {
        let address = read("amqp://h/v?handoff_after=2s&max_priority=9&channel_max=10");
        assert_eq!(address.uri, "amqp://h/v?heartbeat=30&channel_max=10");
        assert_eq!((address.handoff_after, address.max_priority), (Duration::from_secs(2), Some(9)));
        let quorum = read("amqp://h/v?queue_type=quorum&delayed_delivery=off");
        assert_eq!((quorum.queue_type, quorum.delayed_delivery), (QueueType::Quorum, DelayedDelivery::Off));
        for wrong in ["max_priority=x", "queue_type=stream", "delayed_delivery=maybe"] {
            assert!(Address::read(&BrokerUrl::parse(&format!("amqp://h/v?{wrong}")).unwrap()).is_err());
        }
    }
}
