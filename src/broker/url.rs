//! Broker and store addresses, and what opens them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Broker, BrokerError};
use crate::task::QueueName;

/// One way of reaching a kind of broker.
#[derive(Clone, Copy)]
pub struct Adapter {
    /// The URL schemes it answers to.
    pub schemes: &'static [&'static str],
    /// One line for `--help` and errors.
    pub summary: &'static str,
    /// Opens it.
    pub open: for<'a> fn(&'a BrokerUrl, &'a OpenOptions) -> BoxFuture<'a, Result<Broker, BrokerError>>,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

/// What an adapter needs to know beyond its address.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The queues to fetch from; empty for clients that fetch nothing.
    pub queues: Vec<QueueName>,
    /// Who asks: the worker's name, or `cli`.
    pub worker: String,
    /// Changes with each start of the process.
    pub incarnation: String,
    /// How long a lease lasts when it is not extended.
    pub lease: Duration,
    /// How long to wait for the first answer.
    pub connect_timeout: Duration,
    /// How long events are kept, where the broker can.
    pub event_age: Duration,
    /// At most so many events are kept, where the broker can.
    pub event_count: u64,
}

/// An address such as `sqlite:///var/lib/longshore/longshore.db`, `memory:`, `nats://host:4222`.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    scheme: String,
    rest: String,
}

impl BrokerUrl {
    /// Reads an address; it must begin with a scheme.
    pub fn parse(text: &str) -> Result<Self, BrokerError> {
        let (scheme, rest) = text.split_once(':').filter(|(scheme, _)| !scheme.is_empty()).ok_or_else(|| {
            BrokerError::Url(format!("{text:?} is no address: write one such as sqlite:///path/longshore.db or nats://host:4222"))
        })?;
        Ok(Self { scheme: scheme.to_ascii_lowercase(), rest: rest.to_owned() })
    }

    /// The part before the first colon, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What follows the scheme, as written.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// The whole address, secrets included.
    pub fn expose(&self) -> String {
        format!("{}:{}", self.scheme, self.rest)
    }

    /// For `sqlite:` addresses: the file. `sqlite:///abs/path`, `sqlite:rel/path` and `sqlite:/abs/path` are read alike.
    pub fn file(&self) -> PathBuf {
        let rest = self.rest.strip_prefix("//").unwrap_or(&self.rest);
        PathBuf::from(rest.split('?').next().unwrap_or_default())
    }

    /// The address of the SQLite file at `path`.
    pub fn sqlite(path: &std::path::Path) -> Self {
        Self { scheme: "sqlite".to_owned(), rest: format!("//{}", path.display()) }
    }
}

impl fmt::Display for BrokerUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.rest.split('?').next().unwrap_or_default();
        match rest.strip_prefix("//").and_then(|authority| authority.rsplit_once('@')) {
            Some((_, host)) => write!(f, "{}://{host}", self.scheme),
            None => write!(f, "{}:{rest}", self.scheme),
        }
    }
}
impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let url = BrokerUrl::parse("NATS://user:secret@host:4222?tls=1").unwrap();
        assert_eq!(url.to_string(), "nats://host:4222");
        assert!(!format!("{url:?}").contains("secret"));
        assert_eq!(url.expose(), "nats://user:secret@host:4222?tls=1");
    }

    #[test]
    fn files_are_read_in_every_usual_way() {
        for text in ["sqlite:///a/b.db", "sqlite:/a/b.db"] {
            assert_eq!(BrokerUrl::parse(text).unwrap().file(), PathBuf::from("/a/b.db"));
        }
        assert_eq!(BrokerUrl::parse("sqlite:b.db").unwrap().file(), PathBuf::from("b.db"));
        assert!(BrokerUrl::parse("b.db").is_err());
    }
}
