//! Celery's mailbox of remote control: requests on a channel that all workers hear, answers in the list of whoever asked.
//!
//! Knows the wire only; what requests mean is told in `celery/control`.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use jiff::Timestamp;
use redis::aio::PubSubStream;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::side::Side;
use super::{envelope, kombu};
use crate::broker::redis::millis;
use crate::broker::{BrokerError, BrokerUrl, celery};
use crate::redis::{Link, LinkError, value};

const REQUESTS: &str = "celery.pidbox";
/// The only exchange that answers go to: a request must not make us write elsewhere.
const ANSWERS: &str = "reply.celery.pidbox";
/// How long an answer waits for whoever asked.
const UNREAD_SECONDS: u32 = 300;
/// How long a mailbox stands after its worker went: kombu removes tables of bindings no sooner.
const STANDS: Duration = Duration::from_secs(3_600);
/// Between two words that the mailbox still stands.
const AGAIN: Duration = Duration::from_secs(1_200);

/// A worker's mailbox.
pub struct Pidbox {
    side: Side,
    node: String,
}

/// What is looked at of a request before it is known whether anybody waits for its answer.
#[derive(Deserialize)]
struct Wired {
    body: String,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    properties: Properties,
}

#[derive(Default, Deserialize)]
struct Headers {
    #[serde(default)]
    expires: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Properties {
    #[serde(default)]
    body_encoding: Option<String>,
}

impl Wired {
    /// The request, unless nobody waits for its answer any more.
    fn request(payload: &[u8]) -> Option<Bytes> {
        let wired: Self = serde_json::from_slice(payload).ok()?;
        let late = |at: f64| at > 0.0 && at < Timestamp::now().as_duration().as_secs_f64();
        if wired.headers.expires.is_some_and(late) {
            return None;
        }
        match wired.properties.body_encoding.as_deref() {
            Some("base64") => STANDARD.decode(wired.body).ok().map(Bytes::from),
            _ => Some(wired.body.into()),
        }
    }
}

impl Pidbox {
    /// The mailbox of `node` on the broker at `url`, over connections of its own that are opened when they are first needed.
    pub fn new(url: &BrokerUrl, node: &str, timeout: Duration) -> Result<Self, BrokerError> {
        Ok(Self { side: Side::new(url, timeout)?, node: node.to_owned() })
    }

    async fn listen(&self) -> Result<Hearing, LinkError> {
        let mut listener = self.side.place.listener().await?;
        listener.subscribe(self.side.kombu.channel(REQUESTS, "")).await?;
        let [table, _] = self.side.kombu.bindings(REQUESTS);
        let member = kombu::binding("", &format!("{}.{REQUESTS}", self.node));
        let mailbox = Mailbox {
            link: self.side.link().await?.clone(),
            table,
            member,
            deadlines: self.side.kombu.deadlines(),
        };
        mailbox.stand().await?;
        let messages = listener.into_on_message();
        Ok(Hearing { messages, mailbox, stands_again: Instant::now() + AGAIN })
    }

    /// The lists from which the answers with `routing_key` are read.
    async fn readers(&self, routing_key: &str) -> Result<Vec<String>, LinkError> {
        let [table, _] = self.side.kombu.bindings(ANSWERS);
        let members = self.side.link().await?.send(redis::cmd("SMEMBERS").arg(table)).await?;
        let mut readers = Vec::new();
        for member in value::list(members)? {
            let member = value::text(member)?;
            if let Some((key, queue)) = kombu::bound(&member)
                && key == routing_key
                && queue.ends_with(ANSWERS)
            {
                readers.push(self.side.kombu.key(queue));
            }
        }
        Ok(readers)
    }
}

/// The binding by which kombu knows a mailbox.
struct Mailbox {
    link: Link,
    table: String,
    member: String,
    deadlines: String,
}

impl Mailbox {
    /// Says that it stands.
    async fn stand(&self) -> Result<(), LinkError> {
        let until = Timestamp::now().as_millisecond() + millis(STANDS);
        let mut both = redis::pipe();
        both.cmd("SADD").arg(&self.table).arg(&self.member);
        both.cmd("ZADD").arg(&self.deadlines).arg("GT").arg(until).arg(REQUESTS);
        self.link.send_all(&both, 2).await.map(drop)
    }
}

/// A mailbox that is read.
struct Hearing {
    messages: PubSubStream,
    mailbox: Mailbox,
    stands_again: Instant,
}

impl Hearing {
    /// `None` once the connection broke.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            tokio::select! {
                message = self.messages.next() => {
                    if let Some(request) = Wired::request(message?.get_payload_bytes()) {
                        return Some(request);
                    }
                }
                () = sleep_until(self.stands_again) => {
                    self.stands_again = Instant::now() + AGAIN;
                    self.mailbox.stand().await.ok()?;
                }
            }
        }
    }
}

#[async_trait]
impl celery::Pidbox for Pidbox {
    fn broker(&self) -> &str {
        &self.side.place.name
    }

    async fn requests(&self) -> Result<BoxStream<'static, Bytes>, BrokerError> {
        let hearing = self.listen().await.map_err(self.side.cannot("hear remote control"))?;
        Ok(unfold(hearing, |mut hearing| async move { Some((hearing.next().await?, hearing)) }).boxed())
    }

    async fn answer(
        &self,
        routing_key: &str,
        ticket: &str,
        clock: u64,
        body: Vec<u8>,
    ) -> Result<(), BrokerError> {
        let headers = json!({ "ticket": ticket, "clock": clock });
        let message = envelope::of_document((ANSWERS, routing_key), &headers, None, &body);
        let answered = async {
            for list in self.readers(routing_key).await? {
                self.side.leave(&list, &message, UNREAD_SECONDS).await?;
            }
            Ok(())
        };
        answered.await.map_err(self.side.cannot("take an answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_unpacked_unless_nobody_waits_for_it() {
        let wired = |expires: &str| {
            let text = format!(
                r#"{{"body": "e30=", "headers": {{"clock": 1, "expires": {expires}}}, "properties": {{"body_encoding": "base64"}}}}"#
            );
            Wired::request(text.as_bytes())
        };
        for (expires, heard) in
            [("0", true), ("null", true), ("99999999999.5", true), ("1.5", false), ("7", false)]
        {
            assert_eq!(wired(expires).as_deref(), heard.then_some(&b"{}"[..]), "{expires}");
        }
        assert_eq!(Wired::request(b"garbage"), None);
        assert_eq!(Wired::request(br#"{"body": "{}"}"#).as_deref(), Some(&b"{}"[..]));
    }
}
