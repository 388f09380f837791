//! Removing finished records that are too old or too much.
//!
//! In many short steps, because the server does nothing else meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use redis::Value;

use super::{RedisStore, Retention, Status};
use crate::redis::{LinkError, script, value};

script!(SWEEP, "lua/common.lua", "lua/sweep.lua");
script!(TIDY, "lua/common.lua", "lua/tidy.lua");

/// Records that one step looks at.
const STEP: usize = 200;
/// The indexes of labels are looked through by one sweep of so many.
const TIDY_EVERY: u64 = 120;
/// A record outlives the age at which it is swept by so much, so that a sweep comes first and the sums stay right.
const GRACE: Duration = Duration::from_secs(3_600);
/// How long a record stays while no retention is known, or its task has not ended: longer than any task waits.
const LONGEST: Duration = Duration::from_secs(400 * 86_400);

/// How long finished records are kept, in seconds, as the last sweep said; 0: not known yet.
#[derive(Debug, Default)]
pub(super) struct Ages {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Ages {
    fn learn(&self, retention: &Retention) {
        self.succeeded.store(retention.succeeded.as_secs().max(1), Ordering::Relaxed);
        self.failed.store(retention.failed.as_secs().max(1), Ordering::Relaxed);
    }

    /// How long a record may stay that changes to `status` now.
    pub(super) fn time_to_live(&self, status: Status) -> Duration {
        let seconds = match status {
            Status::Succeeded | Status::Canceled => self.succeeded.load(Ordering::Relaxed),
            Status::Failed | Status::Dead => self.failed.load(Ordering::Relaxed),
            Status::Queued
            | Status::Staging
            | Status::Running
            | Status::Uploading
            | Status::Retrying
            | Status::Released => 0,
        };
        if seconds == 0 { LONGEST } else { (Duration::from_secs(seconds) + GRACE).min(LONGEST) }
    }
}

/// What one step did.
struct Step {
    seen: u64,
    gone: u64,
    removed: u64,
    freed: u64,
}

impl RedisStore {
    pub(super) async fn sweep_all(&self, retention: &Retention) -> Result<u64, LinkError> {
        self.ages.learn(retention);
        let mut removed = 0;
        let places = self.finished_places().await?;
        for (status, place) in &places {
            let kept = match status {
                Status::Succeeded | Status::Canceled => retention.succeeded,
                _ => retention.failed,
            };
            let horizon = Timestamp::now().saturating_sub(kept).unwrap_or(Timestamp::MIN);
            // The time itself is not beyond.
            let latest = format!("({}", horizon.as_microsecond());
            removed += self.sweep_place(place, &latest).await?;
        }
        if retention.bytes > 0 {
            removed += self.shrink_to(retention.bytes, &places).await?;
        }
        if self.sweeps.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY_EVERY) {
            self.tidy_labels().await?;
        }
        Ok(removed)
    }

    async fn finished_places(&self) -> Result<Vec<(Status, String)>, LinkError> {
        let queues = self.queues().await?;
        let finished = Status::ALL.into_iter().filter(|status| status.is_finished());
        Ok(finished
            .flat_map(|status| queues.iter().map(move |queue| (status, self.place(queue, status))))
            .collect())
    }

    async fn sweep_place(&self, place: &str, latest: &str) -> Result<u64, LinkError> {
        let (mut removed, mut offset) = (0, 0);
        loop {
            let step = self.step(place, latest, (STEP, offset), 0).await?;
            removed += step.removed;
            // What stays stands before the rest.
            offset += step.seen - step.gone;
            if step.seen < STEP as u64 {
                return Ok(removed);
            }
        }
    }

    async fn step(
        &self,
        place: &str,
        latest: &str,
        (most, offset): (usize, u64),
        most_bytes: u64,
    ) -> Result<Step, LinkError> {
        let call = SWEEP.on(&[place.to_owned()]).arg(self.stem()).arg(format!("{}:result:", self.prefix));
        let call = call.arg(latest).arg(most).arg(offset).arg(most_bytes);
        let [seen, gone, removed, freed] = value::row(self.link.call(&call).await?)?;
        Ok(Step {
            seen: value::count(&seen)?,
            gone: value::count(&gone)?,
            removed: value::count(&removed)?,
            freed: value::count(&freed)?,
        })
    }

    /// Removes the oldest finished records until all take at most `most` bytes.
    async fn shrink_to(&self, most: u64, places: &[(Status, String)]) -> Result<u64, LinkError> {
        let sum = self.link.send(redis::cmd("GET").arg(format!("{}bytes", self.stem()))).await?;
        let sum = if matches!(sum, Value::Nil) { 0 } else { value::count(&sum)? };
        let mut excess = sum.saturating_sub(most);
        let mut removed = 0;
        // Records that stay because they owe something, by place.
        let mut staying = vec![0_u64; places.len()];
        while excess > 0 {
            let Some((index, latest)) = self.oldest(places, &staying).await? else { break };
            let place = &places[index].1;
            let step = self.step(place, &latest, (STEP, staying[index]), excess).await?;
            removed += step.removed;
            excess = excess.saturating_sub(step.freed);
            if step.gone == 0 {
                staying[index] += step.seen.max(1);
            }
        }
        Ok(removed)
    }

    /// The place whose first record that may go is the oldest, and the time of the next oldest place's first: up to there
    /// its records are older than any other.
    async fn oldest(
        &self,
        places: &[(Status, String)],
        staying: &[u64],
    ) -> Result<Option<(usize, String)>, LinkError> {
        let mut firsts = redis::pipe();
        for ((_, place), skipped) in places.iter().zip(staying) {
            firsts.cmd("ZRANGE").arg(place).arg(*skipped).arg(*skipped).arg("WITHSCORES");
        }
        let mut found = Vec::new();
        for (index, answer) in self.link.send_all(&firsts, places.len()).await?.into_iter().enumerate() {
            if let Some((changed, _)) = super::list::scored(answer)?.pop() {
                found.push((changed, index));
            }
        }
        found.sort_unstable();
        let latest = found.get(1).map_or_else(|| "+inf".to_owned(), |(changed, _)| changed.to_string());
        Ok(found.first().map(|(_, index)| (*index, latest)))
    }

    /// Records that ended by their time to live are still in the indexes of their labels.
    async fn tidy_labels(&self) -> Result<(), LinkError> {
        let labels = self.link.send(redis::cmd("SMEMBERS").arg(format!("{}labels", self.stem()))).await?;
        for label in value::list(labels)? {
            let label = value::text(label)?;
            let mut offset = 0;
            loop {
                let call = TIDY.on(&[self.label_key(&label)]).arg(self.stem());
                let call = call.arg(format!("{}:result:", self.prefix)).arg(&label).arg(offset).arg(STEP);
                let [seen, gone] = value::row(self.link.call(&call).await?)?;
                let (seen, gone) = (value::count(&seen)?, value::count(&gone)?);
                offset += seen - gone;
                if seen < STEP as u64 {
                    break;
                }
            }
        }
        Ok(())
    }
}
