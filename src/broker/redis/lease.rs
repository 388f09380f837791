//! The two halves of a lease. Every script asks first whether the message is still in this consumer's name.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Client, millis};
use crate::broker::{BrokerError, Extended, Extender, Settled, Settlement, Settler};
use crate::redis::{Call, LinkError, Script, script, value};
use crate::task::{PriorityClass as Class, QueueName};

script!(EXTEND, "lua/common.lua", "lua/extend.lua");
script!(ACK, "lua/common.lua", "lua/ack.lua");
script!(GIVE_BACK, "lua/common.lua", "lua/give_back.lua");
script!(FORWARD, "lua/common.lua", "lua/forward.lua");
script!(PARK, "lua/common.lua", "lua/park.lua");
script!(HELD, "lua/common.lua", "lua/held.lua");

/// Which message is in whose name.
pub(super) struct Claim {
    pub(super) client: Arc<Client>,
    pub(super) consumer: Arc<str>,
    pub(super) stem: String,
    pub(super) class: Class,
    pub(super) id: String,
}

impl Claim {
    fn call(&self, script: &'static Script) -> Call {
        script
            .on(std::slice::from_ref(&self.stem))
            .arg(&*self.consumer)
            .arg(self.class.as_str())
            .arg(&self.id)
    }

    async fn settled(&self, settlement: &Settlement) -> Result<bool, LinkError> {
        let call = match settlement {
            Settlement::Ack => self.call(&ACK),
            Settlement::Retry { after } | Settlement::Release { after } => {
                self.call(&GIVE_BACK).arg(millis(*after)).arg(self.client.keys.bell())
            }
            Settlement::DeadLetter { reason } => self.call(&PARK).arg(reason),
        };
        let answer = match self.client.link.call(&call).await? {
            redis::Value::Array(mut results) if results.len() == 1 => results.remove(0),
            other => other,
        };
        Ok(value::int(&answer)? == 1)
    }
}

impl Claim {
    async fn forwarded(&self, queue: &QueueName) -> Result<bool, LinkError> {
        self.client.list_queues(std::iter::once(queue)).await?;
        let stems = [self.stem.clone(), self.client.keys.stem(queue)];
        let call = FORWARD.on(&stems).arg(&*self.consumer).arg(self.class.as_str()).arg(&self.id);
        Ok(value::int(&self.client.link.call(&call).await?)? == 1)
    }

    fn told(&self, ended: Result<bool, LinkError>) -> Settled {
        told(&self.client, ended)
    }
}

fn told(client: &Client, ended: Result<bool, LinkError>) -> Settled {
    match ended {
        Ok(true) => Settled::Settled,
        Ok(false) => Settled::Lost,
        Err(error) => {
            let broker = &client.place.name;
            tracing::warn!(%broker, %error, "a message could not be settled; its lease will lapse");
            Settled::Unknown
        }
    }
}

/// A message that was taken before its time and stays outside of the stream: kept by putting its time off.
pub(super) struct EarlyClaim {
    pub(super) client: Arc<Client>,
    pub(super) stem: String,
    pub(super) number: String,
}

impl EarlyClaim {
    fn call(&self, verb: &str) -> Call {
        HELD.on(std::slice::from_ref(&self.stem)).arg(&self.number).arg(verb)
    }

    async fn ask(&self, call: Call) -> Result<bool, LinkError> {
        Ok(value::int(&self.client.link.call(&call).await?)? == 1)
    }
}

#[async_trait]
impl Extender for EarlyClaim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        let until = Instant::now() + by;
        let ours = self.ask(self.call("extend").arg(millis(by))).await;
        let ours = ours.map_err(self.client.cannot("prolong a lease"))?;
        Ok(if ours { Extended::Until(until) } else { Extended::Lost })
    }
}

#[async_trait]
impl Settler for EarlyClaim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        let call = match &settlement {
            Settlement::Ack => self.call("ack"),
            Settlement::Retry { after } | Settlement::Release { after } => {
                self.call("until").arg(millis(*after)).arg(self.client.keys.bell())
            }
            Settlement::DeadLetter { reason } => self.call("park").arg(reason),
        };
        told(&self.client, self.ask(call).await)
    }
}

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        // Before the server reckons: the lease must not seem to last longer than it does.
        let until = Instant::now() + by;
        // Whoever waits may have set his timer to a later end.
        let bell = if by < self.client.options.lease { self.client.keys.bell() } else { String::new() };
        let call = self.call(&EXTEND).arg(millis(by)).arg(bell);
        let answer = self.client.link.call(&call).await.and_then(|answer| value::int(&answer));
        let ours = answer.map_err(self.client.cannot("prolong a lease"))? == 1;
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
