//! Where the rules are tried: a fresh broker of some adapter, and what tests of all of them need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use longshore::broker::memory::Hub;
use longshore::broker::{
    self, Broker, BrokerError, BrokerUrl, Delivery, OpenOptions, Settled, Settlement, Source, Submission,
    Submitted,
};
use longshore::cancel::{CancelReason, CancelScope};
use longshore::sqlite::Database;
use longshore::store::{self, ResultStore};
use longshore::task::message::Properties;
use longshore::task::{Priority, QueueName, TaskId};
use tempfile::TempDir;

use crate::support::rabbitmq::RabbitMq;

/// A lease that no test outlives.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// What should happen at once gets this long on a busy machine; far below the 5 s after which SQLite looks by itself.
pub(crate) const PROMPT: Duration = Duration::from_secs(3);

/// A fresh broker of one adapter.
pub(crate) trait Dock {
    /// Starts it.
    async fn start() -> Self;
    /// Its address.
    fn url(&self) -> BrokerUrl;
    /// A lease short enough to wait for its end.
    fn short_lease(&self) -> Duration;
    /// How often fetchers asked it for work.
    fn looks(&self) -> u64;

    /// What a client of that name opens it with.
    fn options(&self, worker: &str, queues: &[&str], lease: Duration) -> OpenOptions {
        OpenOptions {
            queues: queues.iter().map(|name| queue(name)).collect(),
            worker: worker.to_owned(),
            incarnation: "1".to_owned(),
            lease,
            connect_timeout: Duration::from_secs(10),
            event_age: Duration::from_secs(3_600),
            event_count: 1_000,
        }
    }

    /// A client of that name.
    async fn client(&self, worker: &str, queues: &[&str], lease: Duration) -> Broker {
        broker::open(&self.url(), &self.options(worker, queues, lease)).await.unwrap()
    }

    /// The store at the same address.
    async fn store(&self) -> Arc<dyn ResultStore> {
        store::open(&self.url(), &self.options("one", &[], LONG)).await.unwrap()
    }

    /// A client of the queue `default` with a long lease.
    async fn one(&self) -> Broker {
        self.client("one", &["default"], LONG).await
    }
}

/// A broker in memory.
pub(crate) struct Memory {
    name: String,
    hub: Arc<Hub>,
}

impl Dock for Memory {
    async fn start() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        Self { hub: Hub::named(&name), name }
    }
    fn url(&self) -> BrokerUrl {
        BrokerUrl::parse(&format!("memory:{}", self.name)).unwrap()
    }
    fn short_lease(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn looks(&self) -> u64 {
        self.hub.looks()
    }
}

/// A broker in a file of its own.
pub(crate) struct Sqlite {
    folder: TempDir,
    database: Arc<Database>,
}

impl Dock for Sqlite {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("longshore.db")).unwrap();
        Self { folder, database }
    }
    fn url(&self) -> BrokerUrl {
        BrokerUrl::sqlite(&self.folder.path().join("longshore.db"))
    }
    fn short_lease(&self) -> Duration {
        Duration::from_millis(300)
    }
    fn looks(&self) -> u64 {
        self.database.looks()
    }
}

/// A virtual host of a real RabbitMQ.
pub(crate) struct Amqp {
    rabbit: RabbitMq,
    looks: Arc<AtomicU64>,
}

/// Counts the fetches of a source: between them the server pushes, and nobody looks.
pub(crate) struct Counting {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) looks: Arc<AtomicU64>,
}

#[async_trait]
impl Source for Counting {
    async fn fetch(&self, credit: usize, stop: &CancelScope) -> Result<Vec<Delivery>, BrokerError> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.source.fetch(credit, stop).await
    }
    fn lease(&self) -> Duration {
        self.source.lease()
    }
    async fn fetch_delayed(
        &self,
        credit: usize,
    ) -> Result<Option<Vec<(jiff::Timestamp, Delivery)>>, BrokerError> {
        self.source.fetch_delayed(credit).await
    }
}

impl Dock for Amqp {
    async fn start() -> Self {
        Self { rabbit: RabbitMq::vhost().await, looks: Arc::default() }
    }
    fn url(&self) -> BrokerUrl {
        // Celery's own queues have no priorities; those that longshore makes can.
        BrokerUrl::parse(&format!("{}?max_priority=9", self.rabbit.url())).unwrap()
    }
    fn short_lease(&self) -> Duration {
        Duration::from_millis(600)
    }
    fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }
    async fn client(&self, worker: &str, queues: &[&str], lease: Duration) -> Broker {
        let mut broker = broker::open(&self.url(), &self.options(worker, queues, lease)).await.unwrap();
        broker.source = Arc::new(Counting { source: broker.source, looks: self.looks.clone() });
        broker
    }
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn task(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

/// A message of the task `name` for the queue `default`, with that name as its body and dedup id.
pub(crate) fn message(name: &str) -> Submission {
    Submission {
        task: task(name),
        queue: queue("default"),
        priority: Priority::default(),
        body: name.to_owned().into(),
        content_type: "application/json".to_owned(),
        content_encoding: None,
        headers: std::collections::BTreeMap::new(),
        properties: Properties::default(),
        dedup_id: format!("{name}.0.0"),
        not_before: None,
        expires: None,
    }
}

pub(crate) fn on(queue_name: &str, submission: Submission) -> Submission {
    Submission { queue: queue(queue_name), ..submission }
}

pub(crate) fn with_priority(priority: u64, submission: Submission) -> Submission {
    Submission { priority: Priority::new(priority).unwrap(), ..submission }
}

pub(crate) async fn submit(broker: &Broker, submissions: Vec<Submission>) {
    let expected = vec![Submitted::Queued; submissions.len()];
    assert_eq!(broker.submit.submit(submissions).await.unwrap(), expected);
}

/// What comes within `patience`, at most `credit`.
pub(crate) async fn fetch_within(broker: &Broker, credit: usize, patience: Duration) -> Vec<Delivery> {
    let stop = CancelScope::new();
    let mut fetch = std::pin::pin!(broker.source.fetch(credit, &stop));
    // Never dropped in the middle: that could lose what it took.
    let fetched = tokio::select! {
        fetched = &mut fetch => fetched,
        () = tokio::time::sleep(patience) => {
            stop.cancel(CancelReason::Interrupted);
            fetch.await
        }
    };
    fetched.unwrap()
}

/// The one message that comes promptly.
pub(crate) async fn fetch_one(broker: &Broker) -> Delivery {
    let mut fetched = fetch_within(broker, 1, PROMPT).await;
    assert_eq!(fetched.len(), 1, "one message should have come at once");
    fetched.remove(0)
}

/// Asserts that there is nothing to fetch now.
pub(crate) async fn assert_nothing_comes(broker: &Broker) {
    let fetched = fetch_within(broker, 10, Duration::from_millis(100)).await;
    assert!(fetched.is_empty(), "nothing should have come, but {fetched:?} did");
}

/// Fetches until `count` messages came, at most `credit` at a time; keeps their leases.
pub(crate) async fn fetch_all(broker: &Broker, count: usize, credit: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let fetched = fetch_within(broker, credit, PROMPT).await;
        assert!(!fetched.is_empty(), "only {} of {count} messages came", all.len());
        assert!(fetched.len() <= credit, "{} came for a credit of {credit}", fetched.len());
        all.extend(fetched);
    }
    all
}

pub(crate) async fn settle(delivery: Delivery, settlement: Settlement) {
    assert_eq!(delivery.lease.settler.settle(settlement).await, Settled::Settled);
}

pub(crate) fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.body.to_vec()).unwrap()).collect()
}
