//! Keeps the Girder job of each task up to date: its state, its log, its progress. And hears from it that it was canceled.
//!
//! [`JobSink`] is an event sink. Every job has a line of its own with what waits for it, so that one that stands still holds
//! up nobody, least of all a container. Called by the bus; the composition root makes it; [`was_canceled`] is asked before
//! a task starts.
//!
//! # Decisions
//! - Girder answers every update with the job's document: a cancellation is seen there. Only a quiet task asks by itself.
//! - A text goes out at most once in the job's interval, as `girder_worker` has it (0.5 s), but a timer sends the last one.
//! - What waits stands in a journal of its line, so that a process that dies takes nothing with it. A later one that has the
//!   folder tells it: at its start, unless another attempt has begun elsewhere by then, and at the latest before
//!   anything else that it tells the job.

mod address;
mod journal;
mod line;
mod script;
mod teller;
mod told;
mod waiting;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::Site;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::{EventSink, Notice, SinkError};
use crate::http::{Judge, Verify};
use crate::store::{Record, ResultStore, StoreError};
use crate::task::{Fence, JobSpec, Secret, Task, TaskId};

use address::{Job, Trouble};
use journal::{Entry, Found, Journal};
use line::Line;
use teller::{Over, Teller};
use waiting::Waiting;

pub use journal::Journals;

/// How long the end of a task waits for its job at a time; the outbox of its record keeps it open beyond that.
const TELL_WITHIN: Duration = Duration::from_secs(30);
/// How long a task's start waits to hear whether it was canceled.
const ADMIT_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries of a store that is away when what waits is looked for, and how many there are.
const STORE_AGAIN: Duration = Duration::from_secs(1);
const STORE_TRIES: u32 = 60;
/// The longest interval that a job may ask for, in seconds.
const LONGEST_INTERVAL: f64 = 60.0;

/// What a job may do to its task, and what may be reached for it.
pub trait Steering: Send + Sync {
    /// Cancels the live attempt of `task`, if there is one.
    fn cancel(&self, task: &TaskId, reason: &str);
    /// Whether the attempt with this fence lives in this process.
    fn is_live(&self, task: &TaskId, fence: Fence) -> bool;
    /// Which addresses `task` may reach.
    fn judge(&self, task: &Arc<Task>) -> Arc<dyn Judge>;
    /// The laxest check of certificates that policy leaves to `task`.
    fn laxest(&self, task: &Task) -> Verify;
}

/// Tells Girder's jobs what happens to their tasks. Clones are the same sink.
#[derive(Clone)]
pub struct JobSink {
    site: Arc<Site>,
    steering: Arc<dyn Steering>,
    crew: Crew,
    lines: Lines,
    journals: Option<Journals>,
    /// Ends once what earlier processes left was looked for.
    ready: CancellationToken,
}

/// The open lines by task.
type Lines = Arc<Mutex<HashMap<TaskId, Arc<Line>>>>;

/// A journal, and what an earlier process left in it.
type Kept = (Journal, Vec<Entry>);

impl JobSink {
    /// The name in outboxes.
    pub const NAME: &'static str = "girder";

    /// A sink whose lines are members of `crew`.
    pub fn new(site: Arc<Site>, steering: Arc<dyn Steering>, crew: Crew) -> Self {
        let ready = CancellationToken::new();
        ready.cancel();
        Self { site, steering, crew, lines: Arc::default(), journals: None, ready }
    }

    /// The same, with what waits kept in `journals`. What earlier processes left there is told first, as far as it is not
    /// overtaken by what stands in `store`.
    #[must_use]
    pub fn kept_in(self, journals: Journals, store: Arc<dyn ResultStore>) -> Self {
        let sink = Self { journals: Some(journals), ready: CancellationToken::new(), ..self };
        let (restoring, ready) = (sink.clone(), sink.ready.clone().drop_guard());
        sink.crew.spawn("jobs' journals", async move {
            restoring.restore(&*store).await;
            drop(ready);
        });
        sink
    }

    /// Opens the lines of what earlier processes left.
    async fn restore(&self, store: &dyn ResultStore) {
        let left = self.journals.as_ref().map(Journals::left_behind).transpose();
        let left = left.unwrap_or_else(|error| {
            tracing::error!(%error, "what waits for jobs in Girder cannot be looked for");
            None
        });
        for found in left.into_iter().flatten() {
            if let Err(error) = self.take_up(found, store).await {
                // It stays where it is; whoever meets its task finds it.
                tracing::warn!(%error, "what waits for jobs in Girder is not told yet");
                return;
            }
        }
    }

    async fn take_up(&self, found: Found, store: &dyn ResultStore) -> Result<(), StoreError> {
        let Found { task, journal, entries } = found;
        let task = Arc::new(task);
        let Some(spec) = spec_of(&task) else {
            journal.remove();
            return Ok(());
        };
        let mut waiting = waiting(spec);
        waiting.keep(journal, entries);
        let told_by = waiting.fence();
        let record = recorded(store, &task.id).await?;
        if record.as_ref().is_some_and(|record| record.fence > told_by) {
            tracing::info!(task = %task.id, "what waited for its job was overtaken by another attempt");
            waiting.end();
        } else if !waiting.is_empty() {
            tracing::info!(task = %task.id, "its job is told what an earlier process could not tell it");
            self.open(&mut lock(&self.lines), &task, waiting);
        } else if record.is_none_or(|record| record.status.is_finished() && record.owed.is_empty()) {
            // Where it stood counts for an attempt that is gone on with, and for nothing else.
            waiting.end();
        }
        Ok(())
    }

    /// Gives `notice` to the line of its job, which is opened when there is none. Nothing happens when the job cannot be
    /// reached at all.
    fn take(&self, notice: &Notice, task: &Arc<Task>, spec: &JobSpec) {
        let mut lines = lock(&self.lines);
        if let Some(line) = lines.get(&task.id) {
            return line.push(&notice.event);
        }
        let mut waiting = waiting(spec);
        if let Some((journal, entries)) = self.journal(task) {
            waiting.keep(journal, entries);
        }
        waiting.push(&notice.event);
        self.open(&mut lines, task, waiting);
    }

    fn journal(&self, task: &Task) -> Option<Kept> {
        match self.journals.as_ref()?.open(task) {
            Ok(Some(kept)) => Some(kept),
            Ok(None) => {
                tracing::debug!(task = %task.id, "another process tells its job, too: what waits here is not journaled");
                None
            }
            Err(error) => {
                tracing::warn!(task = %task.id, %error, "what waits for its job is lost if this process dies: it cannot be journaled");
                None
            }
        }
    }

    fn open(&self, lines: &mut HashMap<TaskId, Arc<Line>>, task: &Arc<Task>, mut waiting: Waiting) {
        let job = match Job::of(task, &self.site, &self.steering.judge(task), self.steering.laxest(task)) {
            Ok(Some(job)) => job,
            Ok(None) => return waiting.end(),
            Err(error) => {
                tracing::warn!(task = %task.id, %error, "its job cannot be told anything");
                return waiting.end();
            }
        };
        let line = Arc::new(Line::new(task.id.clone(), waiting, self.site.settings().job_look.get()));
        lines.insert(task.id.clone(), line.clone());
        self.crew.spawn("girder job", keep(line, job, self.steering.clone(), self.lines.clone()));
    }
}

/// Nothing, for a job that is told as `spec` says.
fn waiting(spec: &JobSpec) -> Waiting {
    let interval = Duration::from_secs_f64(spec.interval.clamp(0.0, LONGEST_INTERVAL));
    Waiting::new(spec.log, interval)
}

fn spec_of(task: &Task) -> Option<&JobSpec> {
    task.girder.as_ref()?.job.as_ref()
}

/// What stands in `store` of a task; asked again while it is away, but not for ever.
async fn recorded(store: &dyn ResultStore, task: &TaskId) -> Result<Option<Record>, StoreError> {
    let mut tries = 0;
    loop {
        match store.load(task).await {
            Ok(found) => return Ok(found.map(|found| found.record)),
            Err(error) if tries >= STORE_TRIES => return Err(error),
            Err(_) => tokio::time::sleep(STORE_AGAIN).await,
        }
        tries += 1;
    }
}

/// Keeps a line until its end. Events come to a line only while it is in `lines`, so none is lost with it.
async fn keep(line: Arc<Line>, job: Job, steering: Arc<dyn Steering>, lines: Lines) {
    while Teller::new(&line, job.clone(), &*steering).run().await == Over::Told {
        let mut lines = lock(&lines);
        if line.is_empty() {
            lines.remove(line.task());
            return line.close();
        }
    }
    // A lost job is left alone: the line stays and hears nothing, so that the next event opens no other.
    line.close();
    line.outlive(&*steering).await;
    lock(&lines).remove(line.task());
}

#[async_trait]
impl EventSink for JobSink {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn wants(&self, task: &Task) -> bool {
        task.girder.as_ref().is_some_and(|girder| girder.job.is_some())
    }

    fn knows_by_event(&self) -> bool {
        false
    }

    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        // What earlier processes left goes before.
        self.ready.cancelled().await;
        for notice in notices {
            let Some(task) = &notice.task else { continue };
            let Some(spec) = spec_of(task) else { continue };
            self.take(notice, task, spec);
        }
        Ok(())
    }

    fn renew(&self, task: &TaskId, api_url: &str, token: &Secret) {
        if let Some(line) = lock(&self.lines).get(task) {
            line.renew(api_url, token);
        }
    }

    async fn told(&self, notice: &Notice) -> Result<(), SinkError> {
        let line = lock(&self.lines).get(&notice.event.task).cloned();
        // Without a line its end was told, or nobody can be told.
        let Some(line) = line else { return Ok(()) };
        if line.told(TELL_WITHIN).await {
            return Ok(());
        }
        let reason = format!("the job of {} does not answer; it hears of the end later", notice.event.task);
        Err(SinkError { sink: Self::NAME, reason })
    }
}

/// Whether the job of `task` was canceled, asked once and not for long. An error when Girder could not be asked.
pub async fn was_canceled(
    task: &Task,
    site: &Arc<Site>,
    judge: &Arc<dyn Judge>,
    laxest: Verify,
) -> Result<bool, TaskError> {
    let Some(job) = Job::of(task, site, judge, laxest)? else { return Ok(false) };
    match tokio::time::timeout(ADMIT_WITHIN, job.ask()).await {
        Ok(Ok(seen)) => Ok(seen.state.is_canceled()),
        Ok(Err(Trouble::Transition)) => Ok(false),
        Ok(Err(
            Trouble::NotBegun(error)
            | Trouble::Unclear(error)
            | Trouble::Barred(error)
            | Trouble::Lost(error)
            | Trouble::Refused(error),
        )) => Err(error.into()),
        Err(_) => Err(TaskError::retryable(
            "girder_unavailable",
            format!("Girder did not say within {} s whether the job was canceled", ADMIT_WITHIN.as_secs()),
        )),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
