//! Listing records by what their messages' headers say; only those that match are read.
//!
//! # Decisions
//! - A change writes a record anew at the stream's end. So a list of the newest reads the end first, and more only when that
//!   does not hold enough; a list since some time reads from there.
//! - Open outboxes are looked for again and again: what was met once is remembered, and only what is new is read.

use std::collections::HashMap;

use futures_util::{StreamExt, stream as streams};
use jiff::Timestamp;

use super::super::{Record, RecordQuery};
use super::index::Entry;
use super::{NatsStore, before};
use crate::nats::{From, LinkError, Scan, stream};
use crate::task::TaskId;

/// Records that one list holds when no limit is named.
const USUAL: usize = 1_000;
/// How much of the stream's end is read, each time that less did not hold enough.
const WINDOWS: [u64; 3] = [2_000, 20_000, 200_000];
/// Records read at once.
const AT_ONCE: usize = 64;

/// The records with an open outbox, as far as the stream was read.
#[derive(Default)]
pub(super) struct Owing {
    known: HashMap<TaskId, Entry>,
    read: u64,
}

impl NatsStore {
    pub(super) async fn matching(&self, query: &RecordQuery) -> Result<Vec<Record>, LinkError> {
        let most = if query.limit == 0 { USUAL } else { query.limit };
        let mut found = if query.owing {
            self.owing(query).await?
        } else if let Some(since) = query.since {
            self.entries(From::Time(before(since)), query).await?.1
        } else {
            self.newest(query, most).await?
        };
        found.sort_by_key(|entry| std::cmp::Reverse((entry.changed, entry.sequence)));
        found.truncate(most);
        self.read(found).await
    }

    /// The entries that match, and when the first that was looked at was stored.
    async fn entries(
        &self,
        from: From,
        query: &RecordQuery,
    ) -> Result<(Option<Timestamp>, Vec<Entry>), LinkError> {
        let now = Timestamp::now();
        let filter = format!("{}>", self.stem);
        let mut scan = Scan::headers(&self.link, &self.stream, &filter, from).await?;
        let (mut first, mut found) = (None, Vec::new());
        while let Some(stored) = scan.next().await? {
            first.get_or_insert(stored.time);
            found.extend(Entry::read(&stored, &self.stem).filter(|entry| entry.matches(query, now)));
        }
        scan.end().await;
        Ok((first, found))
    }

    async fn newest(&self, query: &RecordQuery, most: usize) -> Result<Vec<Entry>, LinkError> {
        let state = stream::state(&self.link, &self.stream, None).await?;
        for window in WINDOWS {
            let from = (state.last + 1).saturating_sub(window);
            if from <= state.first {
                break;
            }
            let (first, mut found) = self.entries(From::Sequence(from), query).await?;
            if found.len() < most {
                continue;
            }
            // What stands before the window was not changed after its first message was stored.
            found.sort_by_key(|entry| std::cmp::Reverse(entry.changed));
            if first.is_none_or(|first| found[most - 1].changed >= first) {
                return Ok(found);
            }
        }
        Ok(self.entries(From::Oldest, query).await?.1)
    }

    async fn owing(&self, query: &RecordQuery) -> Result<Vec<Entry>, LinkError> {
        let mut owing = self.owing.lock().await;
        let state = stream::state(&self.link, &self.stream, None).await?;
        if state.last < owing.read {
            // Another stream of that name.
            *owing = Owing::default();
        }
        if state.last > owing.read {
            let filter = format!("{}>", self.stem);
            let from = From::Sequence(owing.read + 1);
            let mut scan = Scan::headers(&self.link, &self.stream, &filter, from).await?;
            while let Some(stored) = scan.next().await? {
                owing.read = owing.read.max(stored.sequence);
                match Entry::read(&stored, &self.stem) {
                    Some(entry) if entry.owes => drop(owing.known.insert(entry.id.clone(), entry)),
                    Some(entry) => drop(owing.known.remove(&entry.id)),
                    None => {}
                }
            }
            scan.end().await;
            owing.read = owing.read.max(state.last);
        }
        let now = Timestamp::now();
        Ok(owing.known.values().filter(|entry| entry.matches(query, now)).cloned().collect())
    }

    /// The records of `entries`, but those that were changed meanwhile or cannot be read.
    async fn read(&self, entries: Vec<Entry>) -> Result<Vec<Record>, LinkError> {
        let asked = streams::iter(entries.into_iter().map(|entry| async move {
            let mut found = self.link.at(&self.stream, entry.sequence).await?;
            if found.is_none() {
                let subject = self.subject(&entry.id);
                found = self.link.last(&self.stream, &subject).await?;
            }
            Ok((entry, found))
        }));
        let answers: Vec<Result<_, LinkError>> = asked.buffered(AT_ONCE).collect().await;
        let mut records = Vec::with_capacity(answers.len());
        for answer in answers {
            let (entry, found) = answer?;
            let Some(stored) = found else { continue };
            match self.parsed(entry.id.as_str(), &stored) {
                Ok(found) => records.push(found.record),
                Err(error) => tracing::error!(%error, "it is left out of the list"),
            }
        }
        Ok(records)
    }
}
