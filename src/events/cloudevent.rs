//! Events as CloudEvents 1.0 in JSON (structured mode), the form in which brokers carry them.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Event, EventData};
use crate::task::{Fence, QueueName, TaskId};

/// The CloudEvents attributes that longshore uses (CloudEvents specification 1.0.2 §3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent {
    /// `1.0`
    pub specversion: String,
    /// Unique: `<task>/<sequence>`.
    pub id: String,
    /// `longshore/<queue>`
    pub source: String,
    /// `longshore.task.<kind>.v1`
    #[serde(rename = "type")]
    pub kind: String,
    /// The task's id.
    pub subject: String,
    /// When it happened, in UTC.
    pub time: Timestamp,
    /// `application/json`
    pub datacontenttype: String,
    /// `<fence, 20 digits>-<number, 10 digits>`: ordered as text within a task.
    pub sequence: String,
    /// What happened.
    pub data: EventData,
}

/// Why a document is no event of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudEventError {
    /// Not JSON, or not of the form.
    #[error("the event is malformed: {0}")]
    Malformed(String),
}

impl From<&Event> for CloudEvent {
    fn from(event: &Event) -> Self {
        let sequence = sequence(event.fence, event.number);
        Self {
            specversion: "1.0".to_owned(),
            id: format!("{}/{sequence}", event.task),
            source: format!("longshore/{}", event.queue),
            kind: format!("longshore.task.{}.v1", event.kind().as_str()),
            subject: event.task.to_string(),
            time: event.time,
            datacontenttype: "application/json".to_owned(),
            sequence,
            data: event.data.clone(),
        }
    }
}

/// The sequence attribute.
pub fn sequence(fence: Fence, number: u64) -> String {
    format!("{:020}-{number:010}", fence.0)
}

/// Writes an event.
pub fn encode(event: &Event) -> Vec<u8> {
    serde_json::to_vec(&CloudEvent::from(event))
        .expect("invariant: an event has text keys and finite numbers only")
}

/// Reads an event. The inverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Result<Event, CloudEventError> {
    serde_json::from_slice(bytes)
        .map_err(|error| CloudEventError::Malformed(error.to_string()))
        .and_then(read)
}

/// Reads an event, or a list of them in the form of a batch (`application/cloudevents-batch+json`).
pub fn decode_all(bytes: &[u8]) -> Result<Vec<Event>, CloudEventError> {
    if bytes.first() != Some(&b'[') {
        return decode(bytes).map(|event| vec![event]);
    }
    let documents: Vec<CloudEvent> =
        serde_json::from_slice(bytes).map_err(|error| CloudEventError::Malformed(error.to_string()))?;
    documents.into_iter().map(read).collect()
}

fn read(document: CloudEvent) -> Result<Event, CloudEventError> {
    let malformed = |reason: &str| CloudEventError::Malformed(reason.to_owned());
    let (fence, number) =
        document.sequence.split_once('-').ok_or_else(|| malformed("sequence has no dash"))?;
    let queue =
        document.source.strip_prefix("longshore/").ok_or_else(|| malformed("source is not longshore/…"))?;
    Ok(Event {
        task: TaskId::new(document.subject).map_err(|e| malformed(&e.to_string()))?,
        queue: QueueName::new(queue).map_err(|e| malformed(&e.to_string()))?,
        fence: Fence(fence.parse().map_err(|_| malformed("sequence holds no fence"))?),
        number: number.parse().map_err(|_| malformed("sequence holds no number"))?,
        time: document.time,
        data: document.data,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{LogStream, Progress};
    use super::*;

    fn event(data: EventData) -> Event {
        Event {
            task: TaskId::new("0190/ä").unwrap(),
            queue: QueueName::new("gpu").unwrap(),
            fence: Fence(7),
            number: 3,
            time: "2026-11-23T10:00:00.123456Z".parse().unwrap(),
            data,
        }
    }

    #[test]
    fn events_come_back_as_they_were_written() {
        for data in [
            EventData::Queued,
            EventData::Progress(Progress { message: Some("x".to_owned()), current: Some(1.5), total: None }),
            EventData::Log { stream: LogStream::Stderr, text: "a\"b".to_owned() },
        ] {
            let event = event(data);
            assert_eq!(decode(&encode(&event)).as_ref(), Ok(&event));
            let batch = [b"[".as_slice(), &encode(&event), b",", &encode(&event), b"]"].concat();
            assert_eq!(decode_all(&batch), Ok(vec![event.clone(), event]));
        }
    }

    #[test]
    fn the_form_is_cloudevents() {
        insta::assert_snapshot!(String::from_utf8(encode(&event(EventData::Queued))).unwrap());
    }
}
