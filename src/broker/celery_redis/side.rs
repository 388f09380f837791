//! A connection of its own for what Celery's programs say beside tasks, opened when it is first needed.

use std::time::Duration;

use tokio::sync::OnceCell;

use super::address::Address;
use super::kombu::Kombu;
use crate::broker::{BrokerError, BrokerUrl, redis as common};
use crate::redis::{Link, LinkError, Place};

/// What carries it.
pub(super) struct Side {
    pub(super) place: Place,
    pub(super) kombu: Kombu,
    timeout: Duration,
    link: OnceCell<Link>,
}

impl Side {
    /// On the broker at `url`; the first answer may take `timeout`.
    pub(super) fn new(url: &BrokerUrl, timeout: Duration) -> Result<Self, BrokerError> {
        let address =
            Address::read(url).map_err(|error| common::refusal(&url.to_string(), "open it", error))?;
        Ok(Self { place: address.place, kombu: address.kombu, timeout, link: OnceCell::new() })
    }

    pub(super) async fn link(&self) -> Result<&Link, LinkError> {
        self.link.get_or_try_init(|| Link::open(&self.place, self.timeout, |_| {})).await
    }

    pub(super) fn cannot(&self, action: &'static str) -> impl Fn(LinkError) -> BrokerError + '_ {
        move |error| common::refusal(&self.place.name, action, error)
    }

    /// Puts `message` into a list that is forgotten after `seconds` without another one.
    pub(super) async fn leave(&self, list: &str, message: &str, seconds: u32) -> Result<(), LinkError> {
        let mut both = redis::pipe();
        both.atomic().cmd("LPUSH").arg(list).arg(message).cmd("EXPIRE").arg(list).arg(seconds);
        self.link().await?.send_all(&both, 4).await.map(drop)
    }
}
