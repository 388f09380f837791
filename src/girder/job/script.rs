//! What a job must still be told, in order: texts for its log, its progress, its states. Pure; `line.rs` acts on it.
//!
//! Neighbouring texts become one update; progress joins the text beside it, and a later one replaces it. A state is told
//! after every text before it. Beyond a bound texts are left out, and where that was is told.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::events::Progress;

/// Most bytes of text in one update: Girder shortens a job's log by the length of what is added
/// (`Job._updateLog`, `$slice`), so that longer ones would cost more of what came before.
pub(super) const UPDATE_MAX: usize = 64 << 10;
/// Most bytes of text that wait while Girder does not answer.
const WAITING_MAX: usize = 4 << 20;

/// What the job is (`girder_jobs.constants.JobStatus`, and `CANCELING` of the worker plugin).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub(super) enum State {
    Inactive,
    Queued,
    Running,
    Success,
    Error,
    Canceled,
    Canceling,
    /// One of a plugin's own.
    Unknown(i64),
}

impl State {
    pub(super) fn of(number: i64) -> Self {
        match number {
            0 => Self::Inactive,
            1 => Self::Queued,
            2 => Self::Running,
            3 => Self::Success,
            4 => Self::Error,
            5 => Self::Canceled,
            824 => Self::Canceling,
            other => Self::Unknown(other),
        }
    }

    pub(super) fn number(self) -> i64 {
        match self {
            Self::Inactive => 0,
            Self::Queued => 1,
            Self::Running => 2,
            Self::Success => 3,
            Self::Error => 4,
            Self::Canceled => 5,
            Self::Canceling => 824,
            Self::Unknown(other) => other,
        }
    }

    /// Whether somebody wants the task to end.
    pub(super) fn is_canceled(self) -> bool {
        matches!(self, Self::Canceled | Self::Canceling)
    }

    /// Whether nothing can follow it.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Error | Self::Canceled)
    }

    /// Which state to ask for next so that a job in `self` comes to `wanted`, when Girder refused to take it there at
    /// once; none when it cannot. The accepted steps are `valid_transitions` of girder_jobs and those of the worker
    /// plugin for `worker_handler` and `celery_handler` (`girder_plugin_worker.status`).
    pub(super) fn towards(self, wanted: Self) -> Option<Self> {
        match (self, wanted) {
            (here, there) if here == there => None,
            (Self::Inactive, Self::Running | Self::Success | Self::Error | Self::Canceled) => {
                Some(Self::Queued)
            }
            (Self::Queued, Self::Running | Self::Success | Self::Error)
            | (Self::Unknown(_), Self::Running) => Some(Self::Running),
            // What was asked to end ends as canceled or as failed, whatever came of it.
            (Self::Queued | Self::Canceling, Self::Canceled) | (Self::Canceling, Self::Success) => {
                Some(Self::Canceled)
            }
            (Self::Running | Self::Unknown(_), Self::Success | Self::Error | Self::Canceled) => Some(wanted),
            (Self::Canceling, Self::Error) => Some(Self::Error),
            _ => None,
        }
    }
}

impl From<i64> for State {
    fn from(number: i64) -> Self {
        Self::of(number)
    }
}
impl From<State> for i64 {
    fn from(state: State) -> Self {
        state.number()
    }
}

/// One update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Text for the log and the latest progress.
    Say { text: String, progress: Option<Progress> },
    /// A state.
    Become(State),
}

/// The updates that are still to come.
#[derive(Debug)]
pub(super) struct Script {
    steps: VecDeque<Step>,
    waiting: usize,
    left_out: usize,
    interval: Duration,
    /// When the last text went out.
    said: Option<Instant>,
}

impl Script {
    /// An empty one that says something at most once in `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self { steps: VecDeque::new(), waiting: 0, left_out: 0, interval, said: None }
    }

    /// What is still to come, and how many bytes are left out behind it.
    pub(super) fn stands(&self) -> (Vec<Step>, usize) {
        (self.steps.iter().cloned().collect(), self.left_out)
    }

    /// Goes on where another one stood.
    pub(super) fn stand(&mut self, steps: Vec<Step>, left_out: usize) {
        let text = |step: &Step| match step {
            Step::Say { text, .. } => text.len(),
            Step::Become(_) => 0,
        };
        self.waiting = steps.iter().map(text).sum();
        (self.steps, self.left_out) = (steps.into(), left_out);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        (self.waiting, self.left_out) = (0, 0);
    }

    /// Adds text, whole lines with their ends.
    pub(super) fn say(&mut self, text: &str) {
        if self.waiting + text.len() > WAITING_MAX {
            self.left_out += text.len();
            return;
        }
        self.admit_gap();
        self.push_text(text);
    }

    /// Adds text that is kept whatever waits: why it ended.
    pub(super) fn say_surely(&mut self, text: &str) {
        self.admit_gap();
        self.push_text(text);
    }

    /// The job's progress is this now.
    pub(super) fn progress(&mut self, progress: Progress) {
        if let Some(Step::Say { progress: known, .. }) = self.steps.back_mut() {
            *known = Some(progress);
        } else {
            self.steps.push_back(Step::Say { text: String::new(), progress: Some(progress) });
        }
    }

    /// The job is this from now on.
    pub(super) fn become_state(&mut self, state: State) {
        self.steps.push_back(Step::Become(state));
    }

    /// When the first update may go out; `None`: there is none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.steps.front()?, self.said) {
            (Step::Say { .. }, Some(said)) if self.steps.len() == 1 => Some((said + self.interval).max(now)),
            _ => Some(now),
        }
    }

    /// Takes the first update; it must come back by [`Script::put_back`] when it was not told.
    pub(super) fn take(&mut self, now: Instant) -> Option<Step> {
        let step = self.steps.pop_front()?;
        if let Step::Say { text, .. } = &step {
            self.waiting -= text.len();
            self.said = Some(now);
        }
        Some(step)
    }

    /// The first update was not told after all.
    pub(super) fn put_back(&mut self, step: Step) {
        if let Step::Say { text, .. } = &step {
            self.waiting += text.len();
        }
        self.steps.push_front(step);
    }

    fn admit_gap(&mut self) {
        if self.left_out > 0 {
            let told =
                format!("[{} bytes are left out here: Girder did not take them in time]\n", self.left_out);
            self.left_out = 0;
            self.push_text(&told);
        }
    }

    fn push_text(&mut self, text: &str) {
        self.waiting += text.len();
        match self.steps.back_mut() {
            Some(Step::Say { text: known, .. }) if known.len() + text.len() <= UPDATE_MAX => {
                known.push_str(text);
            }
            _ => self.steps.push_back(Step::Say { text: text.to_owned(), progress: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        Script::new(Duration::from_millis(500))
    }
    fn said(step: Option<Step>) -> (String, Option<f64>) {
        match step {
            Some(Step::Say { text, progress }) => (text, progress.and_then(|progress| progress.current)),
            other => panic!("{other:?}"),
        }
    }
    fn at(current: f64) -> Progress {
        Progress { current: Some(current), ..Progress::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn texts_join_and_the_last_progress_counts() {
        let mut script = script();
        script.say("a\n");
        script.progress(at(1.0));
        script.say("b\n");
        script.progress(at(2.0));
        assert_eq!(said(script.take(Instant::now())), ("a\nb\n".to_owned(), Some(2.0)));
        assert!(script.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_text_goes_at_once_and_the_next_after_the_interval_but_before_a_state_at_once() {
        let mut script = script();
        let start = Instant::now();
        script.say("a\n");
        assert_eq!(script.due(start), Some(start));
        script.take(start);
        assert_eq!(script.due(start), None);
        script.say("b\n");
        assert_eq!(script.due(start), Some(start + Duration::from_millis(500)));
        script.become_state(State::Success);
        assert_eq!(script.due(start), Some(start));
        assert_eq!(said(script.take(start)).0, "b\n");
        assert_eq!(script.take(start), Some(Step::Become(State::Success)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_back_is_the_next_again() {
        let mut script = script();
        script.say("a\n");
        let step = script.take(Instant::now()).unwrap();
        script.become_state(State::Error);
        script.put_back(step.clone());
        assert_eq!(script.take(Instant::now()), Some(step));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_bound_text_is_left_out_and_told_but_never_why_it_ended() {
        let mut script = script();
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..5_000 {
            script.say(&line);
        }
        script.say_surely("DockerException: 3\n");
        let mut all = String::new();
        while let Some(step) = script.take(Instant::now()) {
            let text = said(Some(step)).0;
            assert!(text.len() <= UPDATE_MAX);
            all.push_str(&text);
        }
        assert!(all.len() < (4 << 20) + 200);
        let tail: Vec<&str> = all.lines().rev().take(2).collect();
        assert_eq!(tail[0], "DockerException: 3");
        assert_eq!(
            tail[1],
            format!("[{} bytes are left out here: Girder did not take them in time]", (5_000 - 4_096) * 1024)
        );
    }

    #[test]
    fn every_state_finds_its_way_through_what_girder_accepts() {
        use State::{Canceled, Canceling, Error, Inactive, Queued, Running, Success};
        for (from, wanted, next) in [
            (Inactive, Running, Some(Queued)),
            (Queued, Success, Some(Running)),
            (Inactive, Error, Some(Queued)),
            (Inactive, Canceled, Some(Queued)),
            (Queued, Canceled, Some(Canceled)),
            (Canceling, Success, Some(Canceled)),
            (Canceling, Running, None),
            (Canceling, Canceled, Some(Canceled)),
            (Canceling, Error, Some(Error)),
            (Success, Error, None),
            (Canceled, Success, None),
            (Error, Running, None),
        ] {
            assert_eq!(from.towards(wanted), next, "{from:?} to {wanted:?}");
        }
        for number in [0, 1, 2, 3, 4, 5, 820, 824] {
            assert_eq!(State::of(number).number(), number);
        }
    }
}
