//! Keeps the Girder job of each task up to date: its state, its log, its progress. And hears from it that it was canceled.
//!
//! [`JobSink`] is an event sink. Every job has a line of its own with what waits for it, so that one that stands still holds
//! up nobody, least of all a container. Called by the bus; the composition root makes it; [`was_canceled`] is asked before
//! a task starts.
//!
//! # Decisions
//! - Girder answers every update with the job's document: a cancellation is seen there. Only a quiet task asks by itself.
//! - A text goes out at most once in the job's interval, as `girder_worker` has it (0.5 s), but a timer sends the last one.

mod address;
mod line;
mod script;
mod told;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::Site;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::{EventSink, Notice, SinkError};
use crate::http::{Judge, Verify};
use crate::task::{Fence, JobSpec, Task, TaskId};

use address::{Job, Trouble};
use line::{Line, Over};

/// How long the end of a task waits for its job at a time; the outbox of its record keeps it open beyond that.
const TELL_WITHIN: Duration = Duration::from_secs(30);
/// How long a task's start waits to hear whether it was canceled.
const ADMIT_WITHIN: Duration = Duration::from_secs(5);
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

/// Tells Girder's jobs what happens to their tasks.
pub struct JobSink {
    site: Arc<Site>,
    steering: Arc<dyn Steering>,
    crew: Crew,
    lines: Lines,
}

/// The open lines by task.
type Lines = Arc<Mutex<HashMap<TaskId, Arc<Line>>>>;

impl JobSink {
    /// The name in outboxes.
    pub const NAME: &'static str = "girder";

    /// A sink whose lines are members of `crew`.
    pub fn new(site: Arc<Site>, steering: Arc<dyn Steering>, crew: Crew) -> Self {
        Self { site, steering, crew, lines: Arc::default() }
    }

    /// Gives `notice` to the line of its job, which is opened when there is none. Nothing happens when the job cannot be
    /// reached at all.
    fn take(&self, notice: &Notice, task: &Arc<Task>, spec: &JobSpec) {
        let mut lines = lock(&self.lines);
        if let Some(line) = lines.get(&task.id) {
            return line.push(&notice.event);
        }
        let job = match Job::of(task, &self.site, &self.steering.judge(task), self.steering.laxest(task)) {
            Ok(Some(job)) => job,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(task = %task.id, %error, "its job cannot be told anything");
                return;
            }
        };
        let interval = Duration::from_secs_f64(spec.interval.clamp(0.0, LONGEST_INTERVAL));
        let look_every = self.site.settings().job_look.get();
        let line = Arc::new(Line::new(task.id.clone(), spec.log, interval, look_every));
        line.push(&notice.event);
        lines.insert(task.id.clone(), line.clone());
        self.crew.spawn("girder job", keep(line, job, self.steering.clone(), self.lines.clone()));
    }
}

/// Keeps a line until its end. Events come to a line only while it is in `lines`, so none is lost with it.
async fn keep(line: Arc<Line>, job: Job, steering: Arc<dyn Steering>, lines: Lines) {
    while line.run(&job, &*steering).await == Over::Told {
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
        for notice in notices {
            let Some(task) = &notice.task else { continue };
            let Some(spec) = task.girder.as_ref().and_then(|girder| girder.job.as_ref()) else { continue };
            self.take(notice, task, spec);
        }
        Ok(())
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
