//! Messages with their headers, there and back. A message without any header is a valid submission, so that a plain publish
//! by any producer is one.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value as Json;

use crate::broker::Submission;
use crate::nats::header::MESSAGE_ID;
use crate::task::{Priority, QueueName, RawMessage, TaskId};

const TASK: &str = "Longshore-Task";
const PRIORITY: &str = "Longshore-Priority";
const CONTENT_TYPE: &str = "Content-Type";
const CONTENT_ENCODING: &str = "Content-Encoding";
/// Headers of other producers' messages, as one JSON object.
const HEADERS: &str = "Longshore-Headers";
/// Not before, in microseconds since 1970; of what waits for its time.
const DUE: &str = "Longshore-Due";
/// Who the message is, once it was moved from where it was submitted.
const MESSAGE: &str = "Longshore-Message";
/// When it was submitted, in microseconds since 1970, once it was moved.
const SUBMITTED: &str = "Longshore-Submitted";
/// There once it was handed over and given back.
const AGAIN: &str = "Longshore-Again";
const DEAD_REASON: &str = "Longshore-Dead-Reason";

/// The headers of `submission`, with its dedup id.
pub(super) fn headers(submission: &Submission) -> HeaderMap {
    let mut headers = HeaderMap::new();
    set(&mut headers, MESSAGE_ID, &submission.dedup_id);
    set(&mut headers, TASK, submission.task.as_str());
    set(&mut headers, PRIORITY, &submission.priority.get().to_string());
    set(&mut headers, CONTENT_TYPE, &submission.content_type);
    if let Some(encoding) = &submission.content_encoding {
        set(&mut headers, CONTENT_ENCODING, encoding);
    }
    if !submission.headers.is_empty() {
        let json = serde_json::to_string(&submission.headers).expect("invariant: headers have text keys");
        set(&mut headers, HEADERS, &json);
    }
    headers
}

/// What is said of a message that is moved within the broker.
pub(super) struct Moved<'a> {
    /// A name of this move: the same move is made once.
    pub(super) id: String,
    /// Who it is.
    pub(super) message: &'a str,
    /// When it was submitted.
    pub(super) submitted: Timestamp,
    /// Whether it was handed over before.
    pub(super) again: bool,
}

/// The headers of a message in its new place.
pub(super) fn moved(old: &HeaderMap, moved: &Moved<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in old.iter() {
        // What the server reads was meant for the old place.
        let text: &str = name.as_ref();
        if !text.to_ascii_lowercase().starts_with("nats-") && text != DUE {
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
    }
    set(&mut headers, MESSAGE_ID, &moved.id);
    set(&mut headers, MESSAGE, moved.message);
    set(&mut headers, SUBMITTED, &moved.submitted.as_microsecond().to_string());
    if moved.again {
        set(&mut headers, AGAIN, "1");
    }
    headers
}

/// Says when a message is due. Rounded up: nothing may go before its time.
pub(super) fn set_due(headers: &mut HeaderMap, due: Timestamp) {
    let micros =
        due.as_nanosecond().div_euclid(1_000) + i128::from(due.as_nanosecond().rem_euclid(1_000) > 0);
    set(headers, DUE, &micros.to_string());
}

/// Says why a message is dead.
pub(super) fn set_dead_reason(headers: &mut HeaderMap, reason: &str) {
    set(headers, DEAD_REASON, reason);
}

/// Line ends would begin another header, so they become blanks.
fn set(headers: &mut HeaderMap, name: &'static str, text: &str) {
    let clean: String =
        text.chars().map(|c| if c == '\r' || c == '\n' || c == '\0' { ' ' } else { c }).collect();
    let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), clean.parse::<HeaderValue>()) else { return };
    headers.insert(name, value);
}

/// What the headers of a message say. What cannot be read is as if it were not there.
#[derive(Debug, Default)]
pub(super) struct Letter {
    pub(super) task: Option<TaskId>,
    pub(super) priority: Option<Priority>,
    pub(super) content_type: Option<String>,
    pub(super) encoding: Option<String>,
    pub(super) headers: BTreeMap<String, Json>,
    pub(super) due: Option<Timestamp>,
    pub(super) message: Option<String>,
    pub(super) submitted: Option<Timestamp>,
    pub(super) again: bool,
    pub(super) dead_reason: Option<String>,
}

impl Letter {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let time = |name: &str| Timestamp::from_microsecond(text(name)?.parse().ok()?).ok();
        Self {
            task: text(TASK).and_then(|task| TaskId::new(task).ok()),
            priority: text(PRIORITY)
                .and_then(|number| number.parse().ok())
                .and_then(|number| Priority::new(number).ok()),
            content_type: text(CONTENT_TYPE),
            encoding: text(CONTENT_ENCODING),
            headers: text(HEADERS).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
            due: time(DUE),
            message: text(MESSAGE),
            submitted: time(SUBMITTED),
            again: text(AGAIN).is_some(),
            dead_reason: text(DEAD_REASON),
        }
    }

    /// The message as the decoders read it.
    pub(super) fn raw(self, queue: &QueueName, body: Bytes) -> RawMessage {
        RawMessage {
            content_type: self.content_type,
            content_encoding: self.encoding,
            queue: Some(queue.to_string()),
            ..RawMessage::new(body).with_headers(&self.headers)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission() -> Submission {
        Submission {
            task: TaskId::new("a").unwrap(),
            queue: QueueName::default(),
            priority: Priority::new(7).unwrap(),
            body: Bytes::from_static(b"x"),
            content_type: "text/plain\r\nEvil: 1".to_owned(),
            content_encoding: None,
            headers: BTreeMap::from([("note".to_owned(), serde_json::json!({"k": "a\nb"}))]),
            properties: crate::task::message::Properties::default(),
            dedup_id: "a.0.0".to_owned(),
            not_before: None,
            expires: None,
        }
    }

    #[test]
    fn no_text_becomes_a_header_of_its_own() {
        let headers = headers(&submission());
        assert!(headers.get("Evil").is_none());
        let letter = Letter::read(&headers);
        assert_eq!(letter.content_type.as_deref(), Some("text/plain  Evil: 1"));
        assert_eq!(letter.headers["note"]["k"], "a\nb");
        assert_eq!((letter.task.unwrap().as_str(), letter.priority.unwrap().get()), ("a", 7));
    }

    #[test]
    fn a_moved_message_leaves_behind_what_the_server_reads() {
        let mut old = headers(&submission());
        set_due(&mut old, Timestamp::from_second(5).unwrap());
        let submitted = Timestamp::from_microsecond(1_234_567).unwrap();
        let new = moved(&old, &Moved { id: "m1".to_owned(), message: "q/1", submitted, again: true });
        assert_eq!(new.get(MESSAGE_ID).unwrap().as_str(), "m1");
        let letter = Letter::read(&new);
        assert_eq!((letter.due, letter.again), (None, true));
        assert_eq!((letter.message.as_deref(), letter.submitted), (Some("q/1"), Some(submitted)));
        assert_eq!(letter.task.unwrap().as_str(), "a");
    }
}
