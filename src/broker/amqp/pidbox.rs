//! Celery's mailbox of remote control: requests on a fanout exchange that all workers hear, answers to whoever asked.
//!
//! Knows the wire only; what requests mean is told in `celery/control`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, ExchangeKind};

use super::Address;
use super::link::{Link, table};
use super::wire::{Original, short};
use crate::broker::{BrokerError, BrokerUrl, celery};

const REQUESTS: &str = "celery.pidbox";
/// The only exchange that answers go to: a request must not make us write elsewhere.
const ANSWERS: &str = "reply.celery.pidbox";
/// How long a request waits for a worker that is slow to read, as kombu says it.
const UNREAD_MILLIS: i32 = 300_000;
/// How long the mailbox stands after its worker went, as kombu says it.
const UNUSED_MILLIS: i32 = 10_000;

/// A worker's mailbox.
pub struct Pidbox {
    link: Link,
    node: String,
}

impl Pidbox {
    /// The mailbox of `node` on the broker at `url`, over a connection of its own that is opened when it is first needed.
    pub fn new(url: &BrokerUrl, node: &str, timeout: Duration) -> Result<Self, BrokerError> {
        let address = Address::read(url)?;
        let link = Link::new(address.uri, url.to_string(), "longshore control".to_owned(), timeout);
        Ok(Self { link, node: node.to_owned() })
    }
}

#[async_trait]
impl celery::Pidbox for Pidbox {
    fn broker(&self) -> &str {
        self.link.name()
    }

    async fn requests(&self) -> Result<BoxStream<'static, Bytes>, BrokerError> {
        let link = &self.link;
        let channel = link.channel().await?;
        let fleeting = ExchangeDeclareOptions::default();
        let made =
            channel.exchange_declare(short(REQUESTS), ExchangeKind::Fanout, fleeting, FieldTable::default());
        link.within("declare an exchange", made).await?;
        let queue = short(&format!("{}.celery.pidbox", self.node));
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let arguments = table(&[
            ("x-message-ttl", AMQPValue::LongInt(UNREAD_MILLIS)),
            ("x-expires", AMQPValue::LongInt(UNUSED_MILLIS)),
        ]);
        link.within("declare a queue", channel.queue_declare(queue.clone(), own, arguments)).await?;
        let bound = channel.queue_bind(
            queue.clone(),
            short(REQUESTS),
            ShortString::default(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        link.within("bind a queue", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
        let consumer = link.within("subscribe", consuming).await?;
        let heard = unfold((channel, consumer), |(channel, mut consumer)| async move {
            loop {
                let wired = consumer.next().await?.ok()?;
                if !is_late(wired.properties.headers().as_ref()) {
                    return Some((Bytes::from(wired.data), (channel, consumer)));
                }
            }
        });
        Ok(heard.boxed())
    }

    async fn answer(
        &self,
        routing_key: &str,
        ticket: &str,
        clock: u64,
        body: Vec<u8>,
    ) -> Result<(), BrokerError> {
        let mut headers = FieldTable::default();
        headers.insert("ticket".into(), AMQPValue::LongString(ticket.into()));
        headers.insert("clock".into(), AMQPValue::LongLongInt(i64::try_from(clock).unwrap_or(i64::MAX)));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_headers(headers)
            .with_delivery_mode(1)
            .with_priority(0);
        let message = Original { properties, body: body.into() };
        let sent = self.link.send(ANSWERS, routing_key, &message, BasicPublishOptions::default()).await?;
        self.link.taken(sent).await.map(drop)
    }
}

/// Whether nobody waits for the answer any more: the header `expires`, in seconds since 1970, has passed; 0 is never.
fn is_late(headers: Option<&FieldTable>) -> bool {
    let now = Timestamp::now().as_duration();
    match headers.and_then(|headers| headers.inner().get("expires")) {
        Some(AMQPValue::Double(at)) => *at > 0.0 && *at < now.as_secs_f64(),
        Some(AMQPValue::LongLongInt(at)) => *at > 0 && *at < now.as_secs(),
        Some(AMQPValue::LongInt(at)) => *at > 0 && i64::from(*at) < now.as_secs(),
        _ => false,
    }
}
