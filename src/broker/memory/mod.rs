//! The broker without a file: for tests, and for one process that needs no durability (`memory:`).
//!
//! Keeps the same rules as the durable adapters, in mutexed maps. `memory:` is a broker of its own with each opening;
//! `memory:NAME` is shared by all who open that name in this process, as long as one of them lives.
//!
//! # Decisions
//! Time is tokio's, so that leases and delays follow paused clocks; wall-clock times are turned into it on arrival.

mod admin;
mod fleet;
mod shelves;
mod source;
mod topic;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use self::shelves::Shelves;
use self::topic::Told;
use super::{
    Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions, Presence, Submission, Submit,
    Submitted,
};

/// How this adapter is found.
pub const ADAPTER: Adapter =
    Adapter { schemes: &["memory"], summary: "memory:  in this process only, forgotten when it ends", open };

/// How long a dedup id is remembered.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// Everything that one `memory:` broker holds.
#[derive(Debug)]
pub struct Hub {
    name: String,
    shelves: Mutex<Shelves>,
    told: Mutex<Told>,
    fleet: Mutex<HashMap<String, (Presence, Instant)>>,
    work: watch::Sender<u64>,
    news: watch::Sender<u64>,
    looks: AtomicU64,
}

impl Hub {
    /// The broker of that name, made when nobody in this process holds it; a new one when the name is empty.
    pub fn named(name: &str) -> Arc<Self> {
        static HUBS: LazyLock<Mutex<HashMap<String, Weak<Hub>>>> = LazyLock::new(Mutex::default);
        if name.is_empty() {
            return Arc::new(Self::new(name));
        }
        let mut hubs = lock(&HUBS);
        hubs.retain(|_, hub| hub.strong_count() > 0);
        hubs.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let hub = Arc::new(Self::new(name));
            hubs.insert(name.to_owned(), Arc::downgrade(&hub));
            hub
        })
    }

    fn new(name: &str) -> Self {
        Self {
            name: format!("memory:{name}"),
            shelves: Mutex::default(),
            told: Mutex::default(),
            fleet: Mutex::default(),
            work: watch::Sender::new(0),
            news: watch::Sender::new(0),
            looks: AtomicU64::new(0),
        }
    }

    /// How often fetchers looked for work: what a test needs to see that idling polls nothing.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        lock(&self.shelves)
    }

    fn ring_work(&self) {
        self.work.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn ring_news(&self) {
        self.news.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// A poisoned lock is taken all the same: every change is complete before anything in it can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When `time` will be, on tokio's clock; past times are now.
fn instant_of(time: Timestamp) -> Instant {
    let ahead = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(ahead).unwrap_or(now)
}

/// The wall-clock time of `instant`; times long past are now.
fn timestamp_of(instant: Instant) -> Timestamp {
    let ahead = instant.saturating_duration_since(Instant::now());
    Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
}

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(std::future::ready(Ok(broker(&Hub::named(url.rest()), options))))
}

/// The traits over `hub` for one client.
pub fn broker(hub: &Arc<Hub>, options: &OpenOptions) -> Broker {
    lock(&hub.told).keep(options);
    let client = Arc::new(Client { hub: Arc::clone(hub), options: options.clone() });
    Broker {
        name: hub.name.clone(),
        capabilities: Capabilities {
            replay: true,
            dedup_window: Some(DEDUP_WINDOW),
            extend: true,
            remote: false,
            list: true,
        },
        source: client.clone(),
        submit: client.clone(),
        topic: client.clone(),
        admin: client.clone(),
        dead: client.clone(),
        fleet: client,
    }
}

/// One who opened a hub.
struct Client {
    hub: Arc<Hub>,
    options: OpenOptions,
}

#[async_trait]
impl Submit for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        let now = Instant::now();
        let results: Vec<Submitted> = {
            let mut shelves = self.hub.shelves();
            submissions.into_iter().map(|submission| shelves.submit(submission, now)).collect()
        };
        if results.contains(&Submitted::Queued) {
            self.hub.ring_work();
        }
        Ok(results)
    }
}
