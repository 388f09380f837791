//! Finding records through the index of queue, status and time, through labels, or through open outboxes.

use jiff::Timestamp;
use redis::Value;

use super::{RecordQuery, RedisStore, Stored, changed, label};
use crate::redis::{LinkError, value};
use crate::store::{Record, Status};

/// Records that are read at once.
const PAGE: usize = 500;

impl RedisStore {
    /// Records that match `query`, newest change first.
    pub(super) async fn matching(&self, query: &RecordQuery) -> Result<Vec<Record>, LinkError> {
        let most = if query.limit == 0 { 1_000 } else { query.limit };
        let mut records = if query.owing {
            self.owing(query).await?
        } else if let Some((name, value)) = query.labels.first() {
            self.labelled(&label(name, value), query, most).await?
        } else {
            self.placed(query, most).await?
        };
        records.sort_by(|a, b| (changed(b), &b.id).cmp(&(changed(a), &a.id)));
        records.truncate(most);
        Ok(records)
    }

    /// The newest of each queue and state.
    async fn placed(&self, query: &RecordQuery, most: usize) -> Result<Vec<Record>, LinkError> {
        let places = self.places(query).await?;
        let mut newest = redis::pipe();
        for place in &places {
            newest.cmd("ZREVRANGEBYSCORE").arg(place).arg("+inf").arg(since(query));
            newest.arg("WITHSCORES").arg("LIMIT").arg(0).arg(most);
        }
        let mut found: Vec<(i64, String)> = Vec::new();
        for answer in self.link.send_all(&newest, places.len()).await? {
            found.extend(scored(answer)?);
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(most);
        let ids: Vec<String> = found
            .into_iter()
            .filter_map(|(_, member)| member.rsplit_once(' ').map(|(id, _)| id.to_owned()))
            .collect();
        self.read_matching(&ids, query).await
    }

    /// The key of each queue and state that is wanted.
    async fn places(&self, query: &RecordQuery) -> Result<Vec<String>, LinkError> {
        let queues = match &query.queue {
            Some(queue) => vec![queue.to_string()],
            None => self.queues().await?,
        };
        let statuses = if query.status.is_empty() { &Status::ALL[..] } else { &query.status };
        let mut places: Vec<String> = queues
            .iter()
            .flat_map(|queue| statuses.iter().map(|status| self.place(queue, *status)))
            .collect();
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    pub(super) async fn queues(&self) -> Result<Vec<String>, LinkError> {
        let names = self.link.send(redis::cmd("SMEMBERS").arg(format!("{}queues", self.stem()))).await?;
        value::list(names)?.into_iter().map(value::text).collect()
    }

    /// Walks along one label until enough match the rest as well.
    async fn labelled(
        &self,
        label: &str,
        query: &RecordQuery,
        most: usize,
    ) -> Result<Vec<Record>, LinkError> {
        let mut records = Vec::new();
        let mut offset = 0;
        while records.len() < most {
            let mut page = redis::cmd("ZREVRANGEBYSCORE");
            page.arg(self.label_key(label)).arg("+inf").arg(since(query));
            page.arg("LIMIT").arg(offset).arg(PAGE);
            let ids = texts(self.link.send(&page).await?)?;
            records.extend(self.read_matching(&ids, query).await?);
            offset += PAGE;
            if ids.len() < PAGE {
                break;
            }
        }
        Ok(records)
    }

    /// Those whose outbox is open while nobody works on them.
    async fn owing(&self, query: &RecordQuery) -> Result<Vec<Record>, LinkError> {
        let mut open = redis::cmd("ZRANGEBYSCORE");
        open.arg(format!("{}owing", self.stem())).arg("-inf").arg(Timestamp::now().as_microsecond());
        let ids = texts(self.link.send(&open).await?)?;
        self.read_matching(&ids, query).await
    }

    /// Reads `ids` and keeps what matches: an index may be a moment behind, and one label of several was asked for.
    async fn read_matching(&self, ids: &[String], query: &RecordQuery) -> Result<Vec<Record>, LinkError> {
        let mut records = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let mut read = redis::pipe();
            for id in page {
                read.cmd("HMGET").arg(self.key(id)).arg(&Stored::FIELDS);
            }
            for (id, found) in page.iter().zip(self.link.send_all(&read, page.len()).await?) {
                let Some(stored) = Stored::read(found)? else { continue };
                match stored.parsed() {
                    Ok(versioned) if matches(&versioned.record, query) => records.push(versioned.record),
                    Ok(_) => {}
                    Err(reason) => {
                        tracing::error!(store = %self.name, task = %id, %reason, "a record is unreadable and left out");
                    }
                }
            }
        }
        Ok(records)
    }
}

fn matches(record: &Record, query: &RecordQuery) -> bool {
    let now = Timestamp::now();
    (query.status.is_empty() || query.status.contains(&record.status))
        && query.queue.as_ref().is_none_or(|queue| *queue == record.queue)
        && query.labels.iter().all(|(name, value)| record.labels.get(name) == Some(value))
        && query.since.is_none_or(|since| changed(record) >= since.as_microsecond())
        && (!query.owing || !record.owed.is_empty() && record.lease_until.is_none_or(|until| until <= now))
}

fn since(query: &RecordQuery) -> String {
    query.since.map_or_else(|| "-inf".to_owned(), |since| since.as_microsecond().to_string())
}

fn texts(answer: Value) -> Result<Vec<String>, LinkError> {
    value::list(answer)?.into_iter().map(value::text).collect()
}

/// Members with their scores: pairs, or one after the other.
pub(super) fn scored(answer: Value) -> Result<Vec<(i64, String)>, LinkError> {
    let mut found = Vec::new();
    let mut values = value::list(answer)?.into_iter();
    while let Some(first) = values.next() {
        let (member, score) = match first {
            Value::Array(pair) => {
                let [member, score] = value::row(Value::Array(pair))?;
                (member, score)
            }
            member => (member, values.next().unwrap_or(Value::Nil)),
        };
        found.push((whole(score)?, value::text(member)?));
    }
    Ok(found)
}

/// A score, which is a whole number of microseconds.
fn whole(score: Value) -> Result<i64, LinkError> {
    #[expect(clippy::cast_possible_truncation, reason = "microseconds since 1970 are below 2^53")]
    match score {
        Value::Double(score) => Ok(score as i64),
        other => {
            let text = value::text(other)?;
            let score: f64 =
                text.parse().map_err(|_| LinkError::Unreadable(format!("{text:?} is no score")))?;
            Ok(score as i64)
        }
    }
}
