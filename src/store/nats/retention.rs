//! Removing finished records that are too old or too much.
//!
//! # Decisions
//! Records stand in the order of their last change, so a sweep reads from the beginning to the first one that is too young.
//! Only the first sweep, one under other rules, and one in so many read all: a record may say that it was changed earlier than
//! it was written.

use futures_util::{StreamExt, stream as streams};
use jiff::Timestamp;

use super::super::{Retention, Status};
use super::NatsStore;
use super::index::Entry;
use crate::nats::{From, LinkError, Scan, stream};

/// Every so manieth sweep reads all.
const WHOLE_EVERY: u64 = 120;
/// Records removed at once.
const AT_ONCE: usize = 32;

/// What the last sweep did.
#[derive(Default)]
pub(super) struct Swept {
    rules: Option<Retention>,
    count: u64,
}

impl NatsStore {
    pub(super) async fn sweep_all(&self, retention: &Retention) -> Result<u64, LinkError> {
        let mut swept = self.swept.lock().await;
        let state = stream::state(&self.link, &self.stream, None).await?;
        let mut excess = match retention.bytes {
            0 => 0,
            most => state.bytes.saturating_sub(most),
        };
        let whole = swept.rules != Some(*retention) || swept.count.is_multiple_of(WHOLE_EVERY);
        let now = Timestamp::now();
        let horizon = |kept| now.checked_sub(kept).unwrap_or(Timestamp::MIN);
        let youngest = horizon(retention.succeeded.min(retention.failed));
        let filter = format!("{}>", self.stem);
        let mut scan = Scan::headers(&self.link, &self.stream, &filter, From::Oldest).await?;
        let mut gone = Vec::new();
        while let Some(stored) = scan.next().await? {
            if !whole && excess == 0 && stored.time > youngest {
                break;
            }
            let Some(entry) = Entry::read(&stored, &self.stem) else { continue };
            if !entry.status.is_finished() || entry.owes {
                continue;
            }
            let kept = match entry.status {
                Status::Succeeded | Status::Canceled => retention.succeeded,
                _ => retention.failed,
            };
            if entry.changed < horizon(kept) || excess > 0 {
                excess = excess.saturating_sub(entry.size);
                gone.push(entry.sequence);
            }
        }
        scan.end().await;
        let removed = streams::iter(gone.into_iter().map(|at| stream::remove(&self.link, &self.stream, at)));
        let removed: Vec<Result<bool, LinkError>> = removed.buffer_unordered(AT_ONCE).collect().await;
        let mut count = 0;
        for removed in removed {
            count += u64::from(removed?);
        }
        swept.rules = Some(*retention);
        swept.count += 1;
        Ok(count)
    }
}
