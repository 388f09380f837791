//! Messages as kombu keeps them in Redis: a JSON map with the body in base64 and AMQP's properties beside it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::broker::Submission;
use crate::task::json::{self, Json};
use crate::task::{Limits, Priority, RawMessage, TaskId};

/// What kombu says of a message that was handed out before.
const REDELIVERED: &str = "redelivered";
/// What longshore says of its own messages, among the properties.
const OWN: &str = "longshore";
/// When a worker of longshore first gave a message of Celery's back, there.
const SEEN: &str = "seen";
/// kombu's priority that is served last.
const LAST: u8 = 9;

/// A message that was read.
pub(super) struct Envelope {
    /// As the decoders read it.
    pub(super) raw: RawMessage,
    /// Whether it was handed out before.
    pub(super) redelivered: bool,
    /// When it was submitted: by longshore, or else at the latest, since Celery's messages do not say it.
    pub(super) submitted: Option<Timestamp>,
    /// Whether longshore sent it.
    is_own: bool,
    /// The task, where that can be told without decoding the body.
    pub(super) task: Option<TaskId>,
    tag: Option<String>,
}

impl Envelope {
    /// Reads a message as it stands in a list; what is wrong with it, in words, when it is none.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let document = document(bytes)?;
        if document.get("body").is_none_or(|body| !matches!(body, Json::Text(_) | Json::Surrogates(_))) {
            return Err(
                "it has no body: what Celery puts into a Redis list is a map with a text `body`".to_owned()
            );
        }
        let raw = RawMessage::from_kombu(&document).map_err(|error| error.to_string())?;
        let properties = document.get("properties");
        let info = properties.and_then(|properties| properties.get("delivery_info"));
        let is_flagged =
            |map: Option<&Json>| map.and_then(|map| map.get(REDELIVERED)) == Some(&Json::Bool(true));
        let own = properties.and_then(|properties| properties.get(OWN));
        let number = |name: &str| match own.and_then(|own| own.get(name)) {
            Some(Json::Number(number)) => number.as_i64(),
            _ => None,
        };
        let named = own.and_then(|own| own.get("task")).or_else(|| raw.header("id")).and_then(Json::text);
        Ok(Self {
            redelivered: is_flagged(document.get("headers")) || is_flagged(info),
            submitted: number("submitted")
                .or(number(SEEN))
                .and_then(|millis| Timestamp::from_millisecond(millis).ok()),
            is_own: number("submitted").is_some(),
            task: named.and_then(|id| TaskId::new(id).ok()),
            tag: properties.and_then(|map| map.get("delivery_tag")).and_then(Json::text).map(str::to_owned),
            raw,
        })
    }

    /// Who it is, the same however often it is handed over: its sender's tag, else what it holds. Two that were sent as one are one:
    /// while the first is at work the second waits, and neither is taken for a duplicate of a task that died.
    pub(super) fn identity(&self) -> String {
        let digest = || {
            let sum = Sha256::digest(&self.raw.body);
            sum.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
        };
        self.tag.clone().filter(|tag| !tag.is_empty()).unwrap_or_else(digest)
    }

    /// The headers as brokers hand them over, without the flag that kombu puts there.
    pub(super) fn headers(&self) -> BTreeMap<String, Value> {
        let sent = self.raw.headers.iter().filter(|(name, _)| name != REDELIVERED);
        sent.map(|(name, value)| (name.clone(), value.to_value())).collect()
    }

    /// 0-9, 9 being the best. Celery's usual one, 0, is the middle, as it is for the task that becomes of the message.
    pub(super) fn priority(&self) -> Priority {
        let kombus = u64::from(self.raw.properties.priority.unwrap_or(0).min(LAST));
        let ours = if self.is_own {
            u64::from(LAST) - kombus
        } else {
            u64::from(Priority::default()) - kombus.div_ceil(2)
        };
        Priority::new(ours).unwrap_or_default()
    }
}

fn document(bytes: &[u8]) -> Result<Json, String> {
    // What the body may be is judged when it is decoded.
    let limits = Limits { max_bytes: usize::MAX, ..Limits::default() };
    match json::parse(bytes, &limits) {
        Ok(document @ Json::Map(_)) => Ok(document),
        Ok(_) => Err("it is no map: what Celery puts into a Redis list is a map with `body`, `headers` and `properties`".to_owned()),
        Err(error) => Err(format!("it is no JSON that Celery writes: {error}")),
    }
}

/// The message with kombu's two flags that it was handed out before. What cannot be read, or has no place for them, stays as it is,
/// as kombu leaves it.
pub(super) fn redelivered(bytes: &Bytes) -> Bytes {
    let Ok(Json::Map(mut map)) = document(bytes) else { return bytes.clone() };
    let is_set = set_flag(entry(&mut map, "headers"))
        && set_flag(
            entry(&mut map, "properties")
                .and_then(entries)
                .and_then(|properties| entry(properties, "delivery_info")),
        );
    if is_set { Json::Map(map).to_string().into() } else { bytes.clone() }
}

/// The message with the flags, and with the time at which it was first given back where nothing tells when it was sent.
pub(super) fn seen(bytes: &Bytes) -> Bytes {
    let flagged = redelivered(bytes);
    let Ok(Json::Map(mut map)) = document(&flagged) else { return flagged };
    let Some(properties) = entry(&mut map, "properties").and_then(entries) else { return flagged };
    if entry(properties, OWN).is_some() {
        return flagged;
    }
    let now = Json::Number(Timestamp::now().as_millisecond().into());
    properties.push((OWN.to_owned(), Json::Map(vec![(SEEN.to_owned(), now)])));
    Json::Map(map).to_string().into()
}

fn entry<'a>(map: &'a mut [(String, Json)], name: &str) -> Option<&'a mut Json> {
    map.iter_mut().find(|(key, _)| key == name).map(|(_, value)| value)
}

fn entries(value: &mut Json) -> Option<&mut Vec<(String, Json)>> {
    match value {
        Json::Map(entries) => Some(entries),
        _ => None,
    }
}

/// Whether there was a map to set it in.
fn set_flag(map: Option<&mut Json>) -> bool {
    let Some(map) = map.and_then(entries) else { return false };
    match entry(map, REDELIVERED) {
        Some(flag) => *flag = Json::Bool(true),
        None => map.push((REDELIVERED.to_owned(), Json::Bool(true))),
    }
    true
}

/// kombu's priority of a message as it stands in a list; 0, the best, when it has none.
pub(super) fn kombu_priority(bytes: &[u8]) -> u8 {
    let read = Envelope::read(bytes).ok();
    read.and_then(|envelope| envelope.raw.properties.priority).unwrap_or(0).min(LAST)
}

/// kombu's priority in place of ours, whose best is 9.
pub(super) fn of_priority(priority: Priority) -> u8 {
    LAST - priority.get().min(LAST)
}

/// The number that kombu has for the priority of `submission`: that of another's message is in its words already, and 0, the best,
/// when it says none, as from Celery itself.
pub(super) fn priority_of(submission: &Submission) -> u8 {
    match submission.properties.correlation_id {
        Some(_) => submission.properties.priority.unwrap_or(0).min(LAST),
        None => of_priority(submission.priority),
    }
}

/// Writes `submission` with the delivery tag `tag`.
pub(super) fn of_submission(submission: &Submission, tag: &str) -> String {
    let mut properties = json!({
        "delivery_mode": 2,
        "delivery_info": { "exchange": "", "routing_key": submission.queue },
        "priority": priority_of(submission),
        "body_encoding": "base64",
        "delivery_tag": tag,
    });
    let asked = &submission.properties;
    if let Some(correlation_id) = &asked.correlation_id {
        properties["correlation_id"] = correlation_id.as_str().into();
        properties["reply_to"] = asked.reply_to.as_deref().unwrap_or_default().into();
    } else {
        properties[OWN] = json!({ "task": submission.task, "submitted": Timestamp::now().as_millisecond() });
    }
    json!({
        "body": STANDARD.encode(&submission.body),
        "content-encoding": submission.content_encoding,
        "content-type": submission.content_type,
        "headers": submission.headers,
        "properties": properties,
    })
    .to_string()
}

/// Writes a JSON document for `routing_key` of `exchange`, as Celery's programs send each other what is no task.
pub(super) fn of_document(
    (exchange, routing_key): (&str, &str),
    headers: &Value,
    correlation_id: Option<&str>,
    body: &[u8],
) -> String {
    let mut properties = json!({
        "delivery_mode": 1,
        "delivery_info": { "exchange": exchange, "routing_key": routing_key },
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": uuid::Uuid::now_v7(),
    });
    if let Some(correlation_id) = correlation_id {
        properties["correlation_id"] = correlation_id.into();
    }
    json!({
        "body": STANDARD.encode(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"body": "W10=", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"task": "t", "id": "a-b", "argsrepr": "\ud800", "n": 123456789012345678901, "stamps": {}, "l": []}, "properties": {"priority": 7, "delivery_info": {"exchange": "", "routing_key": "celery"}, "body_encoding": "base64", "delivery_tag": "x"}}"#;

    #[test]
    fn a_message_is_read_with_what_the_decoders_need() {
        let envelope = Envelope::read(MESSAGE.as_bytes()).unwrap();
        assert_eq!((&envelope.raw.body[..], envelope.priority().get()), (&b"[]"[..], 1));
        assert_eq!(envelope.task.as_ref().map(TaskId::as_str), Some("a-b"));
        assert!(!envelope.redelivered);
    }

    #[test]
    fn the_flags_are_set_and_nothing_else_changes() {
        let flagged = redelivered(&MESSAGE.into());
        let envelope = Envelope::read(&flagged).unwrap();
        assert!(envelope.redelivered && !envelope.headers().contains_key(REDELIVERED));
        let text = String::from_utf8(flagged.to_vec()).unwrap();
        let without = text.replace(r#", "redelivered": true"#, "");
        assert_eq!(without, MESSAGE);
        assert_eq!(redelivered(&flagged), flagged);
        for odd in ["", "[1]", "7", r#"{"headers": []}"#, r#"{"headers": {}, "properties": null}"#] {
            assert_eq!(redelivered(&Bytes::from_static(odd.as_bytes())), odd.as_bytes());
        }
    }

    #[test]
    fn a_message_of_celery_remembers_when_it_was_first_given_back() {
        let before = Envelope::read(MESSAGE.as_bytes()).unwrap();
        let seen_once = seen(&MESSAGE.into());
        let envelope = Envelope::read(&seen_once).unwrap();
        assert!(before.submitted.is_none() && envelope.submitted.is_some() && envelope.redelivered);
        // It stays a message of Celery's, with its priority and its id.
        assert_eq!((envelope.priority(), envelope.identity()), (before.priority(), before.identity()));
        assert_eq!(seen(&seen_once), seen_once);
    }

    #[test]
    fn what_is_no_message_is_told_in_words() {
        for (odd, told) in [
            ("not json", "no JSON"),
            ("[1]", "no map"),
            (r#"{"headers": {}}"#, "no body"),
            (r#"{"body": 7}"#, "no body"),
            (r#"{"body": "", "headers": []}"#, "headers"),
            (r#"{"body": "§", "properties": {"body_encoding": "base64"}}"#, "base64"),
        ] {
            let error = Envelope::read(odd.as_bytes()).map(|_| ()).unwrap_err();
            assert!(error.contains(told), "{odd}: {error}");
        }
    }
}
