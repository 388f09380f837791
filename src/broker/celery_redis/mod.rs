//! Celery's queues in Redis, shared with its producers and workers (`celery+redis://`): kombu's lists, its unacked
//! messages, and nothing that kombu does not understand.
//!
//! Each file holds what one trait needs; `lua/` holds what the server must do in one step, and `lua/common.lua` says which keys
//! there are. Events, commands, presences, dead letters and paused queues are kept as `broker/redis` keeps them, below a prefix
//! of their own. [`pidbox`], [`celeryev`] and [`answers`] carry what Celery's programs say beside tasks.
//!
//! # Decisions
//! - A message goes from its list into `unacked` in one script, so that no kill at any moment loses it (kombu itself pops first
//!   and notes later). Its score in `unacked_index` is the end of our lease, in the future: no visibility timeout, however
//!   short, lets a Python worker restore what we hold. When we die the score becomes an age like any other: workers of longshore
//!   restore at the lease's end, Python workers once their visibility timeout has passed after it.
//! - Whose a message is stands beside kombu's keys with the score that we gave it. When a kombu channel restored and took it, the
//!   score is another, and a stale owner is told that he lost.
//! - What waits for its time (eta, retry) stays in `unacked`, too, in nobody's name and with its time as score.
//! - A queue's name is noted with the default exchange, which leads a restored message into that very queue.
//! - What Lua's JSON reader refuses (lone surrogates, garbage) is kept aside: kombu would end over it when it restores. Whether it is
//!   a task says our own reader; what is none is parked at once.
//! - Nothing blocks on a pop. See [`peek`].

mod address;
mod admin;
mod answers;
mod celeryev;
mod envelope;
mod kombu;
mod lease;
mod peek;
mod pidbox;
mod restore;
mod side;
mod source;
mod submit;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use answers::Answers;
pub use celeryev::Celeryev;
pub use pidbox::Pidbox;

use self::address::Address;
use self::kombu::Kombu;
use super::redis::Client as Common;
use super::{Adapter, Broker, BrokerError, BrokerUrl, Capabilities, OpenOptions};
use crate::redis::{Call, LinkError, Script};
use crate::task::QueueName;

/// How this adapter is found.
pub const ADAPTER: Adapter = Adapter {
    schemes: address::SCHEMES,
    summary: "celery+redis://[user:password@]host[:6379][/db]  Redis as Celery uses it; celery+rediss:// for TLS, celery+redis+unix:///path for a socket",
    open,
};

fn open<'a>(url: &'a BrokerUrl, options: &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>> {
    Box::pin(async move {
        let client = Client::open(url, options).await;
        let client = client.map_err(|error| super::redis::refusal(&url.to_string(), "open it", error))?;
        Ok(broker(Arc::new(client)))
    })
}

fn broker(client: Arc<Client>) -> Broker {
    let common = client.common.clone();
    Broker {
        name: common.place.name.clone(),
        capabilities: Capabilities {
            replay: true,
            dedup_window: Some(common.dedup_window()),
            extend: true,
            remote: true,
            list: true,
        },
        source: Arc::new(source::Fetcher::new(client.clone())),
        submit: client.clone(),
        topic: common.clone(),
        admin: client,
        dead: common.clone(),
        fleet: common,
    }
}

/// One who opened a server.
struct Client {
    /// What is kept as longshore's own queues in Redis keep it.
    common: Arc<Common>,
    kombu: Kombu,
    visibility_timeout: Duration,
}

impl Client {
    async fn open(url: &BrokerUrl, options: &OpenOptions) -> Result<Self, LinkError> {
        let Address { place, kombu, visibility_timeout } = Address::read(url)?;
        let common = Arc::new(Common::at(place, options).await?);
        let client = Self { common, kombu, visibility_timeout };
        for queue in &options.queues {
            client.bind(queue).await?;
        }
        Ok(client)
    }

    /// Makes `queue` known to kombu as its own consumers do.
    async fn bind(&self, queue: &QueueName) -> Result<(), LinkError> {
        let member = kombu::binding(queue.as_str(), queue.as_str());
        let mut both = redis::pipe();
        for table in self.kombu.bindings(queue.as_str()) {
            both.cmd("SADD").arg(table).arg(&member);
        }
        self.common.link.send_all(&both, 2).await.map(drop)
    }

    /// A call of `script` with the keys that all of them have, and `more`.
    fn call(&self, script: &'static Script, more: &[String]) -> Call {
        let keys: Vec<String> =
            self.kombu.unacked().into_iter().chain(self.owned()).chain(more.iter().cloned()).collect();
        script.on(&keys)
    }

    /// Owners, and what kombu must not find.
    fn owned(&self) -> [String; 2] {
        ["owners", "aside"].map(|what| format!("{}:{what}", self.common.place.prefix))
    }

    /// Counts tags of messages that came without one.
    fn counter(&self) -> String {
        format!("{}:number", self.common.place.prefix)
    }

    fn stem(&self, queue: &QueueName) -> String {
        self.common.keys.stem(queue)
    }

    fn cannot(&self, action: &'static str) -> impl Fn(LinkError) -> BrokerError + '_ {
        self.common.cannot(action)
    }
}
