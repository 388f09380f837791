//! What a person sees of a running task: a bar, its output, the worker's notes.
//!
//! The container's standard output goes to ours, its standard error and the worker's notes to standard error, where the
//! bar is drawn as well, so that output can be piped while the bar is watched.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::error::CliError;
use super::output::Output;
use crate::events::{Event, EventData, LogStream, Progress};
use crate::task::Fence;

/// How much is shown while a task is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing.
    Nothing,
    /// The bar and what happens.
    Progress,
    /// What container and worker say.
    Logs,
    /// All of it, as `run` shows it.
    Everything,
    /// Every event as a line of JSON.
    Events,
}

impl Shown {
    /// What two flags ask for: `--progress` and `--logs`.
    pub(crate) fn asked(progress: bool, logs: bool) -> Self {
        match (progress, logs) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Progress,
            (false, true) => Self::Logs,
            (true, true) => Self::Everything,
        }
    }
}

/// Shows the events of tasks.
#[derive(Debug)]
pub(crate) struct Display {
    output: Output,
    shown: Shown,
    bar: Option<Bar>,
    /// The newest attempt seen: what older ones still say is left out.
    newest: Fence,
    /// The number of its last event: what a later process of the worker sends again is shown once.
    last: Option<u64>,
    /// Without a terminal, only steps of a tenth are told.
    told_tenth: Option<u64>,
    told_message: Option<String>,
}

impl Display {
    /// Shows as much as `shown` says.
    pub(crate) fn new(output: Output, shown: Shown) -> Self {
        let drawn = matches!(shown, Shown::Progress | Shown::Everything) && Output::is_watched();
        let bar = drawn.then(|| Bar::on(ProgressDrawTarget::stderr()));
        Self { output, shown, bar, newest: Fence(0), last: None, told_tenth: None, told_message: None }
    }

    /// Whether `event` is an older attempt's, or one that was seen before.
    fn was_shown(&mut self, event: &Event) -> bool {
        // What is told of a task in its queue has no attempt, and no numbers.
        let again = self.last.is_some_and(|last| event.number <= last) && event.fence != Fence(0);
        if event.fence < self.newest || event.fence == self.newest && again {
            return true;
        }
        self.newest = event.fence;
        self.last = Some(event.number);
        false
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), CliError> {
        if self.shown == Shown::Nothing {
            return Ok(());
        }
        if self.shown == Shown::Events {
            let mut line = crate::events::cloudevent::encode(event);
            line.push(b'\n');
            return self.output.bytes(&line);
        }
        if self.was_shown(event) {
            return Ok(());
        }
        match &event.data {
            EventData::Log { stream, text } => return self.log(*stream, text),
            EventData::Progress(progress) => self.progress(progress),
            EventData::Queued => self.step("queued"),
            EventData::Staging { worker, attempt } => self.step(&attempted("prepared", worker, *attempt)),
            EventData::Running { worker, attempt, .. } => self.step(&attempted("running", worker, *attempt)),
            EventData::Retrying { error, at, .. } => {
                self.step(&format!("failed: {error}; tried again at {}", super::output::time(*at)));
            }
            EventData::Succeeded { .. }
            | EventData::Failed { .. }
            | EventData::Canceled { .. }
            | EventData::Dead { .. } => {}
        }
        Ok(())
    }

    /// Takes the bar off the screen.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.drawn.finish_and_clear();
        }
    }

    fn shows_progress(&self) -> bool {
        matches!(self.shown, Shown::Progress | Shown::Everything)
    }

    fn step(&self, text: &str) {
        if !self.shows_progress() {
            return;
        }
        match &self.bar {
            Some(bar) => bar.step(text),
            None => self.output.note(text),
        }
    }

    fn log(&self, stream: LogStream, text: &str) -> Result<(), CliError> {
        if !matches!(self.shown, Shown::Logs | Shown::Everything) {
            return Ok(());
        }
        self.above_bar(|| match stream {
            LogStream::Stdout => self.output.line(text),
            LogStream::Stderr => {
                self.output.note(text);
                Ok(())
            }
            LogStream::Worker => {
                self.output.dim(text);
                Ok(())
            }
        })
    }

    /// The bar is taken off the screen while a line is printed.
    fn above_bar<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.drawn.suspend(print),
            None => print(),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if !self.shows_progress() {
            return;
        }
        match &self.bar {
            Some(bar) => bar.progress(progress),
            None => self.plain_progress(progress),
        }
    }

    /// A line for each new message and each tenth of the way.
    fn plain_progress(&mut self, progress: &Progress) {
        let share = share(progress);
        let tenth = share.map(|share| share / 10);
        if tenth.is_some() && tenth == self.told_tenth {
            return;
        }
        if tenth.is_none() && progress.message == self.told_message {
            return;
        }
        self.told_tenth = tenth;
        self.told_message.clone_from(&progress.message);
        let message = progress.message.as_deref().unwrap_or("progress");
        match share {
            Some(share) => self.output.note(format_args!("{share:3} %  {message}")),
            None => self.output.note(message),
        }
    }
}

fn attempted(what: &str, worker: &str, attempt: u32) -> String {
    if attempt > 1 { format!("{what} by {worker}, attempt {attempt}") } else { format!("{what} by {worker}") }
}

/// In percent.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=100")]
fn share(progress: &Progress) -> Option<u64> {
    let (current, total) = (progress.current?, progress.total?);
    (total > 0.0).then(|| (current / total * 100.0).clamp(0.0, 100.0) as u64)
}

/// The bar on the terminal. What it tells is changed as a whole and then drawn once: message and place of one line of
/// progress are seen together.
#[derive(Debug)]
struct Bar {
    drawn: ProgressBar,
    told: Arc<Mutex<Told>>,
}

#[derive(Debug, Default)]
struct Told {
    message: String,
    current: f64,
    total: f64,
}

/// Steps of a whole bar, so that fractions move it, too.
const WHOLE: u64 = 10_000;
const MESSAGE_WIDTH: usize = 40;
/// Between two frames.
const FRAME: Duration = Duration::from_millis(100);

impl Bar {
    fn on(target: ProgressDrawTarget) -> Self {
        let bar = Self { drawn: ProgressBar::with_draw_target(None, target), told: Arc::default() };
        bar.drawn.set_style(bar.style("{spinner} {told}  {elapsed}"));
        bar
    }

    fn step(&self, text: &str) {
        self.drawn.enable_steady_tick(FRAME);
        self.tell(|told, _| text.clone_into(&mut told.message));
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the whole, clamped"
    )]
    #[expect(clippy::cast_precision_loss, reason = "the whole is small")]
    fn progress(&self, progress: &Progress) {
        let total = progress.total.filter(|total| *total > 0.0 && total.is_finite());
        if total.is_some() && self.drawn.length().is_none() {
            // Before the line is told: the ticker may draw at any moment.
            self.drawn.set_style(self.style("{told:40} [{bar:30}] {count}  {rate}  {eta} left"));
        }
        self.tell(|told, state| {
            if let Some(message) = &progress.message {
                told.message = super::output::short(message, MESSAGE_WIDTH);
            }
            told.total = total.unwrap_or(0.0);
            told.current = progress.current.unwrap_or(0.0);
            if let Some(total) = total {
                let share = (told.current / total).clamp(0.0, 1.0);
                state.set_len(WHOLE);
                state.set_pos((share * WHOLE as f64) as u64);
            }
        });
    }

    /// Changes all of it while nothing can be drawn: a frame is drawn under the lock that `update` holds.
    fn tell(&self, change: impl FnOnce(&mut Told, &mut ProgressState)) {
        self.drawn
            .update(|state| change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner), state));
    }

    fn style(&self, template: &str) -> ProgressStyle {
        let with = |write: fn(&Told, &ProgressState) -> String| {
            let told = self.told.clone();
            move |state: &ProgressState, text: &mut dyn Write| {
                let told = told.lock().unwrap_or_else(PoisonError::into_inner);
                // Into memory, which cannot fail.
                let _ = text.write_str(&write(&told, state));
            }
        };
        ProgressStyle::with_template(template)
            .expect("invariant: the templates in this file are readable")
            .progress_chars("=> ")
            .with_key("told", with(|told, _| told.message.clone()))
            .with_key("count", with(|told, _| place(told)))
            .with_key("rate", with(rate))
    }
}

/// Nothing, while no place was told.
fn place(told: &Told) -> String {
    if told.total > 0.0 { format!("{}/{}", number(told.current), number(told.total)) } else { String::new() }
}

/// How fast it goes, in the units of the container's own numbers.
#[expect(clippy::cast_precision_loss, reason = "the whole is small")]
fn rate(told: &Told, state: &ProgressState) -> String {
    format!("{}/s", short_number(state.per_sec() * told.total / WHOLE as f64))
}

/// Whole where it is whole, else with at most two decimals.
fn number(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Three digits, as much as can be read while it changes.
fn short_number(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
