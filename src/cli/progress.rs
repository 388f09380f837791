//! What a person sees of a running task: a bar, its output, the worker's notes.
//!
//! The container's standard output goes to ours, its standard error and the worker's notes to standard error, where the
//! bar is drawn as well, so that output can be piped while the bar is watched.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
    bar: Option<ProgressBar>,
    /// The newest attempt seen: what older ones still say is left out.
    newest: Fence,
    /// Without a terminal, only steps of a tenth are told.
    told_tenth: Option<u64>,
    told_message: Option<String>,
}

impl Display {
    /// Shows as much as `shown` says.
    pub(crate) fn new(output: Output, shown: Shown) -> Self {
        let drawn = matches!(shown, Shown::Progress | Shown::Everything) && Output::is_watched();
        let bar = drawn.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner());
            bar
        });
        Self { output, shown, bar, newest: Fence(0), told_tenth: None, told_message: None }
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
        if event.fence < self.newest {
            return Ok(());
        }
        self.newest = event.fence;
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
            bar.finish_and_clear();
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
            Some(bar) => {
                bar.set_message(text.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
            }
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
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if !self.shows_progress() {
            return;
        }
        match &self.bar {
            Some(bar) => draw(bar, progress),
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

/// A bar counts thousandths where the numbers are small, so that fractions move it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a bar can show")]
fn draw(bar: &ProgressBar, progress: &Progress) {
    let whole = |number: f64| number.clamp(0.0, 1e15).round() as u64;
    if let Some(message) = &progress.message {
        bar.set_message(super::output::short(message, 40));
    }
    if let Some(total) = progress.total.filter(|total| *total > 0.0) {
        if bar.length() != Some(whole(total)) {
            bar.set_style(bar_style());
            bar.set_length(whole(total));
        }
        bar.set_position(whole(progress.current.unwrap_or(0.0)));
    } else {
        bar.tick();
    }
}

fn bar_style() -> ProgressStyle {
    style("{msg:40} [{bar:30}] {pos}/{len}  {per_sec}  {eta} left")
}

fn spinner() -> ProgressStyle {
    style("{spinner} {msg}  {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("invariant: the templates in this file are readable")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_can_be_read() {
        let _ = (bar_style(), spinner());
    }

    #[test]
    fn a_share_is_told_only_where_there_is_a_total() {
        let progress = |current, total| Progress { message: None, current, total };
        assert_eq!(share(&progress(Some(5.0), Some(20.0))), Some(25));
        assert_eq!(share(&progress(Some(50.0), Some(20.0))), Some(100));
        assert_eq!(share(&progress(Some(-1.0), Some(20.0))), Some(0));
        assert_eq!(share(&progress(Some(5.0), Some(0.0))), None);
        assert_eq!(share(&progress(Some(5.0), None)), None);
    }
}
