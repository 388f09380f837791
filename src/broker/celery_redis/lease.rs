//! The two halves of a lease. Every script asks first whether the message stands as this consumer put it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Client, envelope};
use crate::broker::redis::millis;
use crate::broker::{BrokerError, Extended, Extender, Settled, Settlement, Settler};
use crate::redis::{Call, LinkError, Script, script, value};
use crate::task::QueueName;

script!(EXTEND, "lua/common.lua", "lua/extend.lua");
script!(ACK, "lua/common.lua", "lua/ack.lua");
script!(GIVE_BACK, "lua/common.lua", "lua/give_back.lua");
script!(FORWARD, "lua/common.lua", "lua/forward.lua");
script!(PARK, "lua/common.lua", "lua/park.lua");

/// Which message is in whose name.
pub(super) struct Claim {
    pub(super) client: Arc<Client>,
    pub(super) consumer: Arc<str>,
    pub(super) queue: QueueName,
    pub(super) stem: String,
    pub(super) tag: String,
    /// As it was taken.
    pub(super) envelope: Bytes,
}

impl Claim {
    fn call(&self, script: &'static Script) -> Call {
        self.client.call(script, std::slice::from_ref(&self.stem)).arg(&*self.consumer).arg(&self.tag)
    }

    async fn asked(&self, call: &Call) -> Result<bool, LinkError> {
        Ok(value::int(&self.client.common.link.call(call).await?)? == 1)
    }

    async fn settled(&self, settlement: &Settlement) -> Result<bool, LinkError> {
        let call = match settlement {
            Settlement::Ack => self.call(&ACK),
            Settlement::Retry { after } | Settlement::Release { after } => self
                .call(&GIVE_BACK)
                .arg(millis(*after))
                .arg(self.client.common.keys.bell())
                .arg(self.queue.as_str())
                .arg(&envelope::seen(&self.envelope)[..]),
            Settlement::DeadLetter { reason } => match envelope::Envelope::read(&self.envelope) {
                Ok(read) => {
                    let headers = read.headers();
                    let headers = serde_json::to_string(&headers).unwrap_or_default();
                    let mut call = self.letter(reason, &read.raw.body).arg("headers").arg(headers);
                    let named = [
                        ("task", read.task.map(|task| task.to_string())),
                        ("type", read.raw.content_type),
                        ("encoding", read.raw.content_encoding),
                        // Whoever waits for its result does so until it was requeued, too.
                        ("correlation_id", read.raw.properties.correlation_id),
                        ("reply_to", read.raw.properties.reply_to),
                        ("celery_priority", read.raw.properties.priority.map(|number| number.to_string())),
                    ];
                    for (name, value) in named {
                        if let Some(value) = value {
                            call.push(name);
                            call.push(value);
                        }
                    }
                    call
                }
                Err(_) => self.letter(reason, &self.envelope),
            },
        };
        self.asked(&call).await
    }

    fn letter(&self, reason: &str, body: &[u8]) -> Call {
        self.call(&PARK).arg("dead_reason").arg(reason).arg("body").arg(body)
    }

    /// Parks what cannot be read, byte for byte.
    pub(super) async fn park_unread(&self, reason: &str) -> Result<bool, LinkError> {
        self.asked(&self.letter(reason, &self.envelope)).await
    }

    async fn forwarded(&self, queue: &QueueName) -> Result<bool, LinkError> {
        self.client.common.list_queues(std::iter::once(queue)).await?;
        let priority = envelope::kombu_priority(&self.envelope);
        let list = self.client.kombu.list(queue.as_str(), priority);
        self.asked(&self.call(&FORWARD).arg(list).arg(&self.envelope[..])).await
    }

    fn told(&self, ended: Result<bool, LinkError>) -> Settled {
        match ended {
            Ok(true) => Settled::Settled,
            Ok(false) => Settled::Lost,
            Err(error) => {
                let broker = &self.client.common.place.name;
                tracing::warn!(%broker, %error, "a message could not be settled; its lease will lapse");
                Settled::Unknown
            }
        }
    }
}

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        // Before the server reckons: the lease must not seem to last longer than it does.
        let until = Instant::now() + by;
        // Whoever waits may have set his timer to a later end.
        let common = &self.client.common;
        let bell = if by < common.options.lease { common.keys.bell() } else { String::new() };
        let asked = self.asked(&self.call(&EXTEND).arg(millis(by)).arg(bell)).await;
        let ours = asked.map_err(self.client.cannot("prolong a lease"))?;
        Ok(if ours { Extended::Until(until) } else { Extended::Lost })
    }
}

#[async_trait]
impl Settler for Claim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        self.told(self.settled(&settlement).await)
    }

    fn forwards(&self) -> bool {
        true
    }

    async fn forward(self: Box<Self>, queue: &QueueName) -> Settled {
        self.told(self.forwarded(queue).await)
    }
}
