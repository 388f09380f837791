//! Reads an address such as `celery+redis://host:6379/0?global_keyprefix=site-&visibility_timeout=10m`.

use std::time::Duration;

use super::kombu::Kombu;
use crate::broker::BrokerUrl;
use crate::redis::{LinkError, Place};
use crate::units::Span;

/// What stands before the scheme of a Redis address.
const CELERYS: &str = "celery+";

/// The schemes that are read.
pub(super) const SCHEMES: &[&str] = &["celery+redis", "celery+rediss", "celery+redis+unix"];

/// How long kombu lets a message be unacknowledged, unless it is told otherwise.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Where a server is, and how kombu was told to use it.
pub(super) struct Address {
    /// The server; its prefix is for our own keys.
    pub(super) place: Place,
    /// The names of kombu's keys.
    pub(super) kombu: Kombu,
    /// As long as the Python workers' `visibility_timeout`: what they left behind is restored after it.
    pub(super) visibility_timeout: Duration,
}

impl Address {
    /// Reads kombu's transport options `global_keyprefix` and `visibility_timeout`; the rest is a Redis address.
    pub(super) fn read(url: &BrokerUrl) -> Result<Self, LinkError> {
        let whole = url.expose();
        let address = whole.strip_prefix(CELERYS).unwrap_or(&whole);
        let (base, query) = address.split_once('?').unwrap_or((address, ""));
        let mut global = String::new();
        let mut visibility_timeout = VISIBILITY_TIMEOUT;
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("global_keyprefix", prefix)) => prefix.clone_into(&mut global),
                Some(("visibility_timeout", span)) => {
                    visibility_timeout = seconds(span).ok_or_else(|| {
                        LinkError::Address(format!(
                            "the address {url} has the visibility timeout {span:?}: write the Python workers' one in seconds, such as 3600, or as a time, such as 1h"
                        ))
                    })?;
                }
                _ => rest.push(pair),
            }
        }
        let address = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut place = Place::parse(&address, &url.to_string())?;
        let kombu = Kombu::new(&global, place.database());
        place.prefix = format!("{}:celery", place.prefix);
        if !global.is_empty() {
            place.prefix = format!("{}:{}", place.prefix, global.replace(['{', '}'], "_"));
        }
        Ok(Self { place, kombu, visibility_timeout })
    }
}

/// A time of at least a second; a bare number counts seconds.
fn seconds(text: &str) -> Option<Duration> {
    let span = text.parse().map(Duration::from_secs).ok();
    let span = span.or_else(|| text.parse::<Span>().ok().map(Span::get))?;
    (span >= Duration::from_secs(1)).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Address, LinkError> {
        Address::read(&BrokerUrl::parse(text).unwrap())
    }

    #[test]
    fn kombus_options_are_read_and_the_rest_is_the_servers_address() {
        let address =
            read("celery+redis://:secret@h/3?global_keyprefix=site-&visibility_timeout=90").unwrap();
        assert_eq!(address.place.name, "celery+redis://h/3");
        assert_eq!(address.place.prefix, "longshore:celery:site-");
        assert_eq!(address.kombu.channel("celery.pidbox", ""), "site-/3.celery.pidbox");
        assert_eq!(address.visibility_timeout, Duration::from_secs(90));
        let usual = read("celery+redis://h?prefix=lab").unwrap();
        assert_eq!(
            (usual.place.prefix.as_str(), usual.visibility_timeout),
            ("lab:celery", VISIBILITY_TIMEOUT)
        );
    }

    #[test]
    fn a_wrong_timeout_is_told_without_the_password() {
        for wrong in ["0", "soon", "-1"] {
            let address = format!("celery+redis://u:secret@h?visibility_timeout={wrong}");
            let error = read(&address).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("visibility timeout") && !error.contains("secret"), "{error}");
        }
    }
}
