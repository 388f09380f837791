//! A message as a stream holds it, and what the server says of a delivered one.

use async_nats::{HeaderMap, Message};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::{LinkError, header};

/// A message of a stream.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its subject.
    pub subject: String,
    /// Its place in the stream; never given twice.
    pub sequence: u64,
    /// When the server took it.
    pub time: Timestamp,
    /// As they were sent.
    pub headers: HeaderMap,
    /// What it holds; empty when headers only were asked for.
    pub body: Bytes,
}

impl Stored {
    /// The text of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// Reads the answer to a direct get.
    pub(super) fn direct(message: Message) -> Result<Self, LinkError> {
        let headers = message.headers.unwrap_or_default();
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let read = || {
            Some((
                text(header::SUBJECT)?,
                text(header::SEQUENCE)?.parse().ok()?,
                text(header::TIME)?.parse().ok()?,
            ))
        };
        let unreadable = || LinkError::Unreadable("it answered a direct get without its headers".to_owned());
        let (subject, sequence, time) = read().ok_or_else(unreadable)?;
        Ok(Self { subject, sequence, time, headers, body: message.payload })
    }

    /// Reads the answer of a stream's leader, `message` of `STREAM.MSG.GET`.
    pub(super) fn of_leader(answer: &Value) -> Result<Self, LinkError> {
        let unreadable = |what: &str| LinkError::Unreadable(format!("it answered a message without {what}"));
        let message = answer.get("message").ok_or_else(|| unreadable("one"))?;
        let text = |name: &str| message.get(name).and_then(Value::as_str);
        let bytes = |name: &str| match text(name) {
            None => Ok(Vec::new()),
            Some(text) => BASE64_STANDARD.decode(text).map_err(|_| unreadable(name)),
        };
        Ok(Self {
            subject: text("subject").ok_or_else(|| unreadable("subject"))?.to_owned(),
            sequence: message.get("seq").and_then(Value::as_u64).ok_or_else(|| unreadable("seq"))?,
            time: text("time").and_then(|time| time.parse().ok()).ok_or_else(|| unreadable("time"))?,
            headers: headers_of(&bytes("hdrs")?),
            body: bytes("data")?.into(),
        })
    }

    /// Reads a message that a consumer handed over.
    pub(super) fn delivered(message: Message) -> Result<(Self, AckInfo), LinkError> {
        let info = AckInfo::of(&message)?;
        let stored = Self {
            subject: message.subject.to_string(),
            sequence: info.sequence,
            time: info.time,
            headers: message.headers.unwrap_or_default(),
            body: message.payload,
        };
        Ok((stored, info))
    }
}

/// The block of headers as it travels: a version line, then one `name: value` a line.
fn headers_of(block: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(block).lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name: Result<async_nats::HeaderName, _> = name.trim().parse();
        let value: Result<async_nats::HeaderValue, _> = value.trim().parse();
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// What the subject on which a delivery is acknowledged says: `$JS.ACK.…` (ADR-15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckInfo {
    /// Where it is acknowledged.
    pub reply: String,
    /// How often it was handed over, this time included.
    pub delivered: u64,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the server took it.
    pub time: Timestamp,
    /// Messages behind it that its consumer has not handed over.
    pub pending: u64,
}

impl AckInfo {
    /// Reads it from a delivered message.
    pub fn of(message: &Message) -> Result<Self, LinkError> {
        let reply = message.reply.as_ref().map(ToString::to_string).unwrap_or_default();
        Self::parse(&reply)
            .ok_or_else(|| LinkError::Unreadable(format!("{reply:?} is no place to acknowledge a delivery")))
    }

    fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        // Servers may put domain and account in front and a random token behind.
        let numbers = match tokens.len() {
            7 => &tokens[2..],
            9.. => &tokens[4..],
            _ => return None,
        };
        let nanos: i128 = numbers[3].parse().ok()?;
        Some(Self {
            reply: reply.to_owned(),
            delivered: numbers[0].parse().ok()?,
            sequence: numbers[1].parse().ok()?,
            time: Timestamp::from_nanosecond(nanos).ok()?,
            pending: numbers[4].parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_acknowledgement_are_read() {
        let old = AckInfo::parse("$JS.ACK.W.c1.2.5.6.1795816506374444151.3").unwrap();
        let new = AckInfo::parse("$JS.ACK.hub.acchash.W.c1.2.5.6.1795816506374444151.3.x7").unwrap();
        for info in [old, new] {
            assert_eq!((info.delivered, info.sequence, info.pending), (2, 5, 3));
            assert_eq!(info.time.as_nanosecond(), 1_795_816_506_374_444_151);
        }
        assert_eq!(AckInfo::parse("_INBOX.x.y"), None);
    }
}
