//! The line to one job: what waits for it, and the member of the crew that tells it, one update after another.
//!
//! A text is sent again only when Girder cannot have it; where that is unclear, its log is looked at first, so that no
//! line stands there twice.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Steering;
use super::address::{Job, Seen, Trouble};
use super::script::{Script, State, Step};
use super::told;
use crate::events::{Event, EventData, Progress};
use crate::task::{Fence, TaskId};

/// Pauses while Girder does not answer; the client waits between its own tries besides.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// Steps from one state to another, at most.
const STATE_STEPS: usize = 4;

/// The line to one job.
pub(super) struct Line {
    task: TaskId,
    output: bool,
    look_every: Duration,
    state: Mutex<Waiting>,
    more: Notify,
    end: watch::Sender<End>,
}

/// How far the telling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There is more to come.
    Open,
    /// Its end was told, or there is nobody to tell.
    Told,
}

struct Waiting {
    script: Script,
    /// Place of the last event that was taken.
    last: Option<(Fence, u64)>,
    fence: Fence,
    ends: bool,
    /// It began with the end of a task: an earlier process may have told some of it.
    unsure: bool,
}

impl Line {
    pub(super) fn new(task: TaskId, output: bool, interval: Duration, look_every: Duration) -> Self {
        let waiting = Waiting {
            script: Script::new(interval),
            last: None,
            fence: Fence(0),
            ends: false,
            unsure: false,
        };
        Self {
            task,
            output,
            look_every,
            state: Mutex::new(waiting),
            more: Notify::new(),
            end: watch::Sender::new(End::Open),
        }
    }

    /// Takes an event; what was taken before is left out.
    pub(super) fn push(&self, event: &Event) {
        let mut waiting = self.lock();
        let place = (event.fence, event.number);
        if waiting.last.is_some_and(|last| place <= last) {
            return;
        }
        waiting.unsure |= waiting.last.is_none() && event.kind().is_terminal();
        waiting.last = Some(place);
        waiting.fence = event.fence;
        if let Some(text) = told::text(&event.data, self.output) {
            if event.kind().is_chatter() {
                waiting.script.say(&text);
            } else {
                waiting.script.say_surely(&text);
            }
        }
        let state = match &event.data {
            EventData::Staging { .. } => Some(State::Running),
            EventData::Progress(progress) => {
                waiting.script.progress(progress.clone());
                None
            }
            EventData::Succeeded { .. } => Some(State::Success),
            EventData::Failed { .. } | EventData::Dead { .. } => Some(State::Error),
            EventData::Canceled { .. } => Some(State::Canceled),
            EventData::Queued
            | EventData::Running { .. }
            | EventData::Log { .. }
            | EventData::Retrying { .. } => None,
        };
        if let Some(state) = state {
            waiting.script.become_state(state);
        }
        waiting.ends |= event.kind().is_terminal();
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits until the job knows the end. `false`: not within `limit`.
    pub(super) async fn told(&self, limit: Duration) -> bool {
        let mut end = self.end.subscribe();
        timeout(limit, end.wait_for(|end| *end == End::Told)).await.is_ok_and(|told| told.is_ok())
    }

    /// Tells everything until the task's end was told, the job is lost, or nothing lives here any more that could tell it.
    pub(super) async fn run(&self, job: &Job, steering: &dyn Steering) -> Over {
        let mut teller = Teller { line: self, job, steering, canceled: false, failures: 0 };
        teller.run().await
    }

    /// Waits until nothing lives here any more that could tell something.
    pub(super) async fn outlive(&self, steering: &dyn Steering) {
        loop {
            tokio::time::sleep(self.look_every).await;
            let fence = self.lock().fence;
            if !steering.is_live(&self.task, fence) {
                return;
            }
        }
    }

    /// Whether something waits to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().script.is_empty()
    }

    /// From now on nothing waits for it any more.
    pub(super) fn close(&self) {
        self.end.send_replace(End::Told);
    }

    pub(super) fn task(&self) -> &TaskId {
        &self.task
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the telling is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Everything was told.
    Told,
    /// Nothing will reach the job any more.
    Lost,
}

/// Whether the telling goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    /// Nothing will reach the job any more.
    Stop,
    /// Everything was told before.
    Known,
}

struct Teller<'a> {
    line: &'a Line,
    job: &'a Job,
    steering: &'a dyn Steering,
    canceled: bool,
    failures: usize,
}

impl Teller<'_> {
    async fn run(&mut self) -> Over {
        let mut looked = Instant::now();
        loop {
            let (due, ends, fence) = {
                let waiting = self.line.lock();
                (waiting.script.due(Instant::now()), waiting.ends, waiting.fence)
            };
            if due.is_none() && ends {
                return Over::Told;
            }
            let look = looked + self.line.look_every;
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or(look)), if due.is_some() => {
                    looked = Instant::now();
                    match self.tell().await {
                        Next::GoOn => {}
                        Next::Stop => return Over::Lost,
                        Next::Known => return Over::Told,
                    }
                }
                () = self.line.more.notified() => {}
                () = sleep_until(look) => {
                    looked = Instant::now();
                    if due.is_none() && !self.steering.is_live(&self.line.task, fence) {
                        return Over::Told;
                    }
                    if self.look().await == Next::Stop {
                        return Over::Lost;
                    }
                }
            }
        }
    }

    /// A quiet task learns from nothing else that its job was canceled, and a refused update from nothing else that it is gone.
    async fn look(&mut self) -> Next {
        match self.job.ask().await {
            Ok(seen) => self.heed(&seen),
            Err(Trouble::Lost(error)) => {
                self.lost(&error);
                return Next::Stop;
            }
            Err(other) => tracing::debug!(task = %self.line.task, ?other, "its job could not be looked at"),
        }
        Next::GoOn
    }

    async fn tell(&mut self) -> Next {
        if std::mem::take(&mut self.line.lock().unsure)
            && let Ok(seen) = self.job.ask().await
            && seen.state.is_final()
        {
            // An earlier process told the end and died before it could note that.
            self.line.lock().script.clear();
            return Next::Known;
        }
        let Some(step) = self.line.lock().script.take(Instant::now()) else { return Next::GoOn };
        match step {
            Step::Say { text, progress } => self.say(text, progress).await,
            Step::Become(state) => self.become_state(state).await,
        }
    }

    async fn say(&mut self, text: String, progress: Option<Progress>) -> Next {
        let numbers =
            progress.as_ref().map(|p| (p.total.map(number), p.current.map(number), p.message.clone()));
        let (total, current, message) = numbers.unwrap_or_default();
        let log = Some(text.clone()).filter(|text| !text.is_empty());
        let given = [
            ("progressTotal", total),
            ("progressCurrent", current),
            ("progressMessage", message),
            ("log", log),
        ];
        let fields: Vec<(&str, &str)> =
            given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        if fields.is_empty() {
            return Next::GoOn;
        }
        let trouble = match self.job.update(&fields).await {
            Ok(seen) => {
                self.failures = 0;
                self.heed(&seen);
                return Next::GoOn;
            }
            Err(trouble) => trouble,
        };
        match trouble {
            Trouble::NotBegun(error) => self.again(Step::Say { text, progress }, &error).await,
            Trouble::Unclear(error) => {
                tracing::debug!(task = %self.line.task, %error, "whether its job has the text is asked");
                match self.asked_for_long().await {
                    Some(seen) if has(&seen, &text) => self.heed(&seen),
                    Some(seen) => {
                        self.heed(&seen);
                        self.line.lock().script.put_back(Step::Say { text, progress });
                    }
                    None => return Next::Stop,
                }
            }
            Trouble::Lost(error) => {
                self.lost(&error);
                return Next::Stop;
            }
            Trouble::Transition => {}
            Trouble::Refused(error) => {
                tracing::debug!(task = %self.line.task, %error, "its job does not take a text");
                return self.look().await;
            }
        }
        Next::GoOn
    }

    async fn become_state(&mut self, wanted: State) -> Next {
        let mut next = wanted;
        for _ in 0..STATE_STEPS {
            let number = next.number().to_string();
            match self.job.update(&[("status", number.as_str())]).await {
                Ok(seen) => {
                    self.failures = 0;
                    self.heed(&seen);
                    if next == wanted || next.is_final() {
                        return Next::GoOn;
                    }
                    next = wanted;
                }
                Err(Trouble::Transition) => {
                    let Some(seen) = self.asked_for_long().await else { return Next::Stop };
                    self.heed(&seen);
                    let Some(step) = seen.state.towards(wanted) else {
                        let (state, wanted) = (seen.state.number(), wanted.number());
                        tracing::info!(task = %self.line.task, state, wanted, "its job stays where it is");
                        return Next::GoOn;
                    };
                    next = step;
                }
                Err(Trouble::NotBegun(error) | Trouble::Unclear(error)) => {
                    // Twice is as good as once.
                    self.again(Step::Become(wanted), &error).await;
                    return Next::GoOn;
                }
                Err(Trouble::Lost(error)) => {
                    self.lost(&error);
                    return Next::Stop;
                }
                Err(Trouble::Refused(error)) => {
                    tracing::debug!(task = %self.line.task, %error, "its job does not take its state");
                    return self.look().await;
                }
            }
        }
        Next::GoOn
    }

    /// Asks until Girder answers; `None`: the job is lost.
    async fn asked_for_long(&mut self) -> Option<Seen> {
        loop {
            match self.job.ask().await {
                Ok(seen) => return Some(seen),
                Err(Trouble::Lost(error)) => {
                    self.lost(&error);
                    return None;
                }
                Err(other) => {
                    tracing::debug!(task = %self.line.task, ?other, "its job cannot be asked");
                    self.pause().await;
                }
            }
        }
    }

    async fn again(&mut self, step: Step, error: &crate::girder::GirderError) {
        if self.failures == 0 {
            tracing::warn!(task = %self.line.task, %error, "its job is told later");
        }
        self.line.lock().script.put_back(step);
        self.pause().await;
    }

    async fn pause(&mut self) {
        let pause = PAUSES[self.failures.min(PAUSES.len() - 1)];
        self.failures += 1;
        tokio::time::sleep(pause).await;
    }

    /// Cancels the task when somebody canceled its job.
    fn heed(&mut self, seen: &Seen) {
        if seen.state.is_canceled() && !self.canceled && !self.line.lock().ends {
            self.canceled = true;
            self.steering.cancel(&self.line.task, "its job was canceled in Girder");
        }
    }

    fn lost(&self, error: &crate::girder::GirderError) {
        tracing::warn!(task = %self.line.task, %error, "its job cannot be told anything any more");
    }
}

/// Whether the log ends in `text`: it was the last that we sent.
fn has(seen: &Seen, text: &str) -> bool {
    text.is_empty() || seen.log.iter().rev().take(4).any(|known| known == text)
}

/// A number as Girder's `float` reads it, whole ones without a fraction.
fn number(value: f64) -> String {
    value.to_string()
}
