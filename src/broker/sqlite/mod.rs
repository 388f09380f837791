//! The default broker: queues, events and commands in one SQLite file, shared by the processes of a host.
//!
//! Each file holds the statements of one trait; `sqlite/` owns the database, its commits and the doorbell.
//!
//! # Decisions
//! A claim is a message's number and token. The token grows when the message is handed out and when it is given back,
//! not when a lease merely lapses: until another has claimed it, the late owner may still settle it.

mod admin;
mod claims;
mod dead;
mod events;
mod fleet;
mod source;
mod submit;
mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions};
use crate::sqlite::{Database, DatabaseError};
use crate::task::{Priority, QueueName, TaskId};

/// How this adapter is found.
pub const ADAPTER: Adapter = Adapter {
    schemes: &["sqlite"],
    summary: "sqlite:///path/to/file.db  an embedded, durable queue for the processes of this host",
    open,
};

/// How long a dedup id is remembered.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 3600);

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(async move {
        let name = url.to_string();
        let opened = tokio::time::timeout(options.connect_timeout, Database::opened(url.file()));
        let late = |_| DatabaseError::Unavailable {
            reason: format!("it could not be opened within {:?}", options.connect_timeout),
        };
        let opened = opened.await.map_err(late).flatten();
        let database = opened.map_err(|error| refusal(&name, "open it", error))?;
        Ok(broker(Arc::new(Client {
            database,
            name,
            options: options.clone(),
            published: AtomicU64::new(0),
        })))
    })
}

fn broker(client: Arc<Client>) -> Broker {
    Broker {
        name: client.name.clone(),
        capabilities: Capabilities {
            replay: true,
            dedup_window: Some(DEDUP_WINDOW),
            extend: true,
            remote: false,
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

/// One who opened the file.
struct Client {
    database: Arc<Database>,
    name: String,
    options: OpenOptions,
    /// Events published since the shelves were last looked through.
    published: AtomicU64,
}

impl Client {
    fn cannot(&self, action: &'static str) -> impl Fn(DatabaseError) -> BrokerError + '_ {
        move |error| refusal(&self.name, action, error)
    }
}

fn refusal(name: &str, action: &'static str, error: DatabaseError) -> BrokerError {
    let broker = name.to_owned();
    match error {
        DatabaseError::Unavailable { reason } => BrokerError::Unavailable { broker, reason },
        DatabaseError::Refused { reason } => BrokerError::Refused { broker, action, reason },
        DatabaseError::Corrupt { reason } => BrokerError::Corrupt { broker, reason },
    }
}

/// What of a row is not what we wrote.
fn unreadable(what: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(what))
}

fn queue_name(text: String) -> rusqlite::Result<QueueName> {
    QueueName::new(text).map_err(unreadable)
}

fn task_id(text: String) -> rusqlite::Result<TaskId> {
    TaskId::new(text).map_err(unreadable)
}

fn rank(priority: Priority) -> i64 {
    9 - i64::from(priority.get())
}

fn priority(rank: i64) -> Priority {
    u64::try_from(9 - rank).ok().and_then(|number| Priority::new(number).ok()).unwrap_or_default()
}

fn headers_text(headers: &BTreeMap<String, Value>) -> Option<String> {
    let text = || serde_json::to_string(headers).expect("invariant: headers have text keys");
    (!headers.is_empty()).then(text)
}

fn headers(text: Option<String>) -> rusqlite::Result<BTreeMap<String, Value>> {
    text.map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(&text).map_err(unreadable))
}

/// A bound of a list as SQL has it; 0 means 1,000.
fn limit(limit: usize) -> i64 {
    if limit == 0 { 1_000 } else { i64::try_from(limit).unwrap_or(i64::MAX) }
}

/// A count, which SQL has with a sign.
fn count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
