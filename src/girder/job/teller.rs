//! Tells a job what waits for it, one update after another, until its end was told or nobody can be told any more.
//!
//! A text is sent again only when Girder cannot have it; where that is unclear, its log is looked at first, so that no
//! line stands there twice. A token that is over bars the line until there is a new one.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Steering;
use super::address::{Job, Seen, Trouble};
use super::line::Line;
use super::script::{State, Step};
use super::waiting::Became;
use crate::events::Progress;
use crate::girder::GirderError;
use crate::task::Secret;

/// Pauses while Girder does not answer; the client waits between its own tries besides.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// Steps from one state to another, at most.
const STATE_STEPS: usize = 4;
/// How long a job whose token is over waits for an attempt that may be taken up here yet.
const BARRED_FOR: Duration = Duration::from_secs(60);

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

/// Tells one line.
pub(super) struct Teller<'a> {
    line: &'a Line,
    job: Job,
    steering: &'a dyn Steering,
    canceled: bool,
    failures: usize,
    /// Since when Girder does not take the token, and what it said.
    barred: Option<(Instant, GirderError)>,
    /// The new token that was tried.
    tried: Option<Secret>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(line: &'a Line, job: Job, steering: &'a dyn Steering) -> Self {
        Self { line, job, steering, canceled: false, failures: 0, barred: None, tried: None }
    }

    /// Tells everything until the task's end was told, the job is lost, or nothing lives here any more that could tell it.
    pub(super) async fn run(&mut self) -> Over {
        let mut looked = Instant::now();
        loop {
            let (due, ends, fence) = {
                let waiting = self.line.waiting();
                (waiting.due(Instant::now()), waiting.ends(), waiting.fence())
            };
            if due.is_none() && ends {
                return Over::Told;
            }
            self.unbar();
            if let Some((since, error)) = &self.barred {
                let is_live = self.steering.is_live(self.line.task(), fence);
                if ends || !is_live && since.elapsed() > BARRED_FOR {
                    self.lost(error);
                    return Over::Lost;
                }
            }
            let due = due.filter(|_| self.barred.is_none());
            let look = looked + self.line.look_every();
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
                () = self.line.more() => {}
                () = sleep_until(look) => {
                    looked = Instant::now();
                    if self.barred.is_some() {
                        continue;
                    }
                    if due.is_none() && !self.steering.is_live(self.line.task(), fence) {
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
            Err(Trouble::Barred(error)) => self.bar(error),
            Err(other) => tracing::debug!(task = %self.line.task(), ?other, "its job could not be looked at"),
        }
        Next::GoOn
    }

    async fn tell(&mut self) -> Next {
        let (unsure, begun) = {
            let mut waiting = self.line.waiting();
            (waiting.is_unsure(), waiting.begun().cloned())
        };
        if unsure
            && let Ok(seen) = self.job.ask().await
            && seen.state.is_final()
        {
            // An earlier process told the end and died before it could note that.
            self.line.waiting().clear();
            return Next::Known;
        }
        if let Some(step) = begun {
            return self.find_out(&step).await;
        }
        let Some(step) = self.line.waiting().begin() else { return Next::GoOn };
        match &step {
            Step::Say { text, progress } => self.say(&step, text, progress.as_ref()).await,
            Step::Become(state) => self.become_state(*state).await,
        }
    }

    async fn say(&mut self, step: &Step, text: &str, progress: Option<&Progress>) -> Next {
        let numbers = progress.map(|p| (p.total.map(number), p.current.map(number), p.message.clone()));
        let (total, current, message) = numbers.unwrap_or_default();
        let log = Some(text.to_owned()).filter(|text| !text.is_empty());
        let given = [
            ("progressTotal", total),
            ("progressCurrent", current),
            ("progressMessage", message),
            ("log", log),
        ];
        let fields: Vec<(&str, &str)> =
            given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        if fields.is_empty() {
            return self.became(Became::Done);
        }
        match self.job.update(&fields).await {
            Ok(seen) => {
                self.failures = 0;
                self.heed(&seen);
                self.became(Became::Done)
            }
            Err(Trouble::NotBegun(error)) => self.again(&error).await,
            Err(Trouble::Unclear(error)) => {
                tracing::debug!(task = %self.line.task(), %error, "whether its job has the text is asked");
                self.find_out(step).await
            }
            Err(Trouble::Barred(error)) => {
                self.bar(error);
                self.became(Became::Back)
            }
            Err(Trouble::Lost(error)) => {
                self.lost(&error);
                Next::Stop
            }
            Err(Trouble::Transition) => self.became(Became::Done),
            Err(Trouble::Refused(error)) => {
                tracing::debug!(task = %self.line.task(), %error, "its job does not take a text");
                self.became(Became::Done);
                self.look().await
            }
        }
    }

    /// Whether Girder has what was begun, by this process or by an earlier one.
    async fn find_out(&mut self, step: &Step) -> Next {
        let became = match step {
            // Twice is as good as once.
            Step::Become(_) => Became::Back,
            Step::Say { text, .. } => match self.asked().await {
                Ok(seen) if has(&seen, text) => Became::Done,
                Ok(_) => Became::Back,
                Err(next) => return next,
            },
        };
        self.became(became)
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
                        break;
                    }
                    next = wanted;
                }
                Err(Trouble::Transition) => {
                    let seen = match self.asked().await {
                        Ok(seen) => seen,
                        Err(next) => return next,
                    };
                    let Some(step) = seen.state.towards(wanted) else {
                        let (state, wanted) = (seen.state.number(), wanted.number());
                        tracing::info!(task = %self.line.task(), state, wanted, "its job stays where it is");
                        break;
                    };
                    next = step;
                }
                Err(Trouble::NotBegun(error) | Trouble::Unclear(error)) => return self.again(&error).await,
                Err(Trouble::Barred(error)) => {
                    self.bar(error);
                    return self.became(Became::Back);
                }
                Err(Trouble::Lost(error)) => {
                    self.lost(&error);
                    return Next::Stop;
                }
                Err(Trouble::Refused(error)) => {
                    tracing::debug!(task = %self.line.task(), %error, "its job does not take its state");
                    self.became(Became::Done);
                    return self.look().await;
                }
            }
        }
        self.became(Became::Done)
    }

    /// Asks until Girder answers. What was begun stays begun when that does not happen.
    async fn asked(&mut self) -> Result<Seen, Next> {
        loop {
            match self.job.ask().await {
                Ok(seen) => {
                    self.heed(&seen);
                    return Ok(seen);
                }
                Err(Trouble::Lost(error)) => {
                    self.lost(&error);
                    return Err(Next::Stop);
                }
                Err(Trouble::Barred(error)) => {
                    self.bar(error);
                    return Err(Next::GoOn);
                }
                Err(other) => {
                    tracing::debug!(task = %self.line.task(), ?other, "its job cannot be asked");
                    self.pause().await;
                }
            }
        }
    }

    fn became(&self, became: Became) -> Next {
        self.line.waiting().became(became);
        Next::GoOn
    }

    async fn again(&mut self, error: &GirderError) -> Next {
        if self.failures == 0 {
            tracing::warn!(task = %self.line.task(), %error, "its job is told later");
        }
        self.became(Became::Back);
        self.pause().await;
        Next::GoOn
    }

    async fn pause(&mut self) {
        let pause = PAUSES[self.failures.min(PAUSES.len() - 1)];
        self.failures += 1;
        tokio::time::sleep(pause).await;
    }

    /// Girder does not take the token.
    fn bar(&mut self, error: GirderError) {
        if self.barred.is_none() {
            tracing::warn!(task = %self.line.task(), %error, "its job waits for a new token (longshore task upload --token)");
            self.barred = Some((Instant::now(), error));
        }
    }

    /// Goes on with a new token, if there is one that was not tried.
    fn unbar(&mut self) {
        if self.barred.is_none() {
            return;
        }
        let fresh = self.line.waiting().fresh().cloned();
        let Some((api_url, token)) = fresh.filter(|(_, token)| self.tried.as_ref() != Some(token)) else {
            return;
        };
        if let Some(job) = self.job.renewed(&api_url, &token) {
            tracing::info!(task = %self.line.task(), "its job is told with a new token");
            (self.job, self.barred) = (job, None);
        }
        self.tried = Some(token);
    }

    /// Cancels the task when somebody canceled its job.
    fn heed(&mut self, seen: &Seen) {
        if seen.state.is_canceled() && !self.canceled && !self.line.waiting().ends() {
            self.canceled = true;
            self.steering.cancel(self.line.task(), "its job was canceled in Girder");
        }
    }

    fn lost(&self, error: &GirderError) {
        tracing::warn!(task = %self.line.task(), %error, "its job cannot be told anything any more");
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
