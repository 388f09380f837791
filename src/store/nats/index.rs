//! What lists want to know of a record, as headers of its message.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, HeaderValue};
use jiff::Timestamp;

use super::super::{Record, RecordQuery, Status};
use crate::nats::{Stored, header, name_of};
use crate::task::{QueueName, TaskId};

const STATUS: &str = "Longshore-Status";
const QUEUE: &str = "Longshore-Queue";
/// Microseconds since 1970.
const CHANGED: &str = "Longshore-Changed";
/// Microseconds since 1970, when it is leased.
const LEASE: &str = "Longshore-Lease";
/// How many sinks must still be told.
const OWED: &str = "Longshore-Owed";
/// As one JSON object.
const LABELS: &str = "Longshore-Labels";
/// What a message takes beyond body and headers.
const OVERHEAD: u64 = 64;

/// The headers of `record`.
pub(super) fn headers(record: &Record) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(STATUS, record.status.as_str());
    headers.insert(QUEUE, record.queue.as_str());
    headers.insert(CHANGED, micros(record.times.changed.unwrap_or_else(Timestamp::now)).as_str());
    if let Some(until) = record.lease_until {
        headers.insert(LEASE, micros(until).as_str());
    }
    if !record.owed.is_empty() {
        headers.insert(OWED, record.owed.len().to_string().as_str());
    }
    if !record.labels.is_empty()
        && let Ok(labels) = serde_json::to_string(&record.labels)
        && let Ok(labels) = labels.parse::<HeaderValue>()
    {
        headers.insert(LABELS, labels);
    }
    headers
}

fn micros(time: Timestamp) -> String {
    time.as_microsecond().to_string()
}

/// What the headers of a record's message say.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: TaskId,
    pub(super) sequence: u64,
    pub(super) status: Status,
    pub(super) queue: QueueName,
    pub(super) changed: Timestamp,
    pub(super) lease: Option<Timestamp>,
    pub(super) owes: bool,
    pub(super) labels: BTreeMap<String, String>,
    /// Bytes that it takes.
    pub(super) size: u64,
}

impl Entry {
    /// Reads it; `None` when the message is none of ours.
    pub(super) fn read(stored: &Stored, stem: &str) -> Option<Self> {
        let time = |name: &str| Timestamp::from_microsecond(stored.header(name)?.parse().ok()?).ok();
        let own: usize = stored
            .headers
            .iter()
            .flat_map(|(name, values)| {
                values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4)
            })
            .sum();
        let body = stored.header(header::SIZE).and_then(|size| size.parse::<u64>().ok());
        Some(Self {
            id: TaskId::new(name_of(stored.subject.strip_prefix(stem)?)?).ok()?,
            sequence: stored.sequence,
            status: Status::parse(stored.header(STATUS)?)?,
            queue: QueueName::new(stored.header(QUEUE)?).ok()?,
            changed: time(CHANGED)?,
            lease: time(LEASE),
            owes: stored.header(OWED).is_some(),
            labels: stored
                .header(LABELS)
                .and_then(|labels| serde_json::from_str(labels).ok())
                .unwrap_or_default(),
            size: body.unwrap_or(stored.body.len() as u64)
                + own as u64
                + stored.subject.len() as u64
                + OVERHEAD,
        })
    }

    /// Whether a list wants it.
    pub(super) fn matches(&self, query: &RecordQuery, now: Timestamp) -> bool {
        (query.status.is_empty() || query.status.contains(&self.status))
            && query.queue.as_ref().is_none_or(|queue| *queue == self.queue)
            && query.since.is_none_or(|since| self.changed >= since)
            && query.labels.iter().all(|(name, value)| self.labels.get(name) == Some(value))
            && (!query.owing || self.owes && self.lease.is_none_or(|until| until <= now))
    }
}
