//! Through which one attempt tells what happens to it. Never blocks and never fails.
//!
//! Numbers are given here, after coalescing: while an attempt talks faster than the configured rate, its latest
//! progress replaces the one before and neighbouring log lines of one stream become one event of several lines. What
//! waits is sent by a timer, or before any other event of the attempt, so the order is kept and the last one is never lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::bus::Bus;
use super::{Book, Event, EventData, LogStream, Mark, Progress, Standing, Told};
use crate::failpoint::{self, Moment};
use crate::store::{Details, PhaseTimes};
use crate::task::{Fence, Secret, Task};

/// Tells what happens to one attempt. Clones tell of the same one.
#[derive(Clone)]
pub struct Reporter {
    inner: Arc<Inner>,
}

struct Inner {
    task: Arc<Task>,
    fence: Fence,
    bus: Bus,
    limits: LogLimits,
    state: Mutex<State>,
    running: tokio::sync::Notify,
}

/// How much of an attempt's log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes sent as events; beyond them the middle is dropped.
    pub log_max: u64,
    /// Bytes of the end kept in the record.
    pub log_tail: usize,
}

impl Default for LogLimits {
    /// 64 MiB and 64 KiB.
    fn default() -> Self {
        Self { log_max: 64 << 20, log_tail: 64 << 10 }
    }
}

struct State {
    number: u64,
    tokens: f64,
    refilled: Instant,
    waiting: Vec<Waiting>,
    /// How far the container's output was handed in: standard output, standard error.
    marks: (Mark, Mark),
    outputs: (Option<Timestamp>, Option<Timestamp>),
    book: Option<Arc<dyn Book>>,
    timer: bool,
    attempt: u32,
    worker: String,
    times: PhaseTimes,
    details: Details,
    started: bool,
    closed: bool,
    tail: VecDeque<(LogStream, String)>,
    tail_bytes: usize,
    sent: u64,
    dropped: u64,
    secrets: Vec<Secret>,
    warnings_dropped: u64,
}

/// What is not numbered yet.
struct Waiting {
    data: EventData,
    /// How far into the container's output it reaches.
    marks: (Mark, Mark),
}

/// What an earlier process of the worker knew of an attempt.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// Counts from 1.
    pub attempt: u32,
    /// What it had found out.
    pub details: Details,
    /// Which points it had reached.
    pub times: PhaseTimes,
    /// What it had told.
    pub told: Told,
}

/// A point that an attempt reaches once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The image is there.
    Pulled,
    /// Everything is prepared.
    Staged,
    /// The container was started.
    Started,
    /// The container ended.
    Ended,
    /// The outputs are uploaded.
    Uploaded,
}

/// The most bytes of log lines in one event.
const LOG_EVENT: usize = 16 << 10;
/// The most warnings in a record.
const WARNINGS: usize = 50;

impl Reporter {
    /// A reporter of the attempt of `task` with `fence`; `limits` bound its log.
    pub fn new(task: Arc<Task>, fence: Fence, bus: Bus, limits: LogLimits) -> Self {
        let state = State {
            number: 0,
            tokens: bus.chatter_per_second().max(1.0),
            refilled: Instant::now(),
            waiting: Vec::new(),
            marks: (Mark::default(), Mark::default()),
            outputs: (None, None),
            book: None,
            timer: false,
            attempt: 1,
            worker: String::new(),
            times: PhaseTimes::default(),
            details: Details::default(),
            started: false,
            closed: false,
            tail: VecDeque::new(),
            tail_bytes: 0,
            sent: 0,
            dropped: 0,
            secrets: Vec::new(),
            warnings_dropped: 0,
        };
        let running = tokio::sync::Notify::new();
        Self { inner: Arc::new(Inner { task, fence, bus, limits, state: Mutex::new(state), running }) }
    }

    /// Which attempt it is and who runs it, and that staging begins.
    pub fn staging(&self, attempt: u32, worker: &str, times: PhaseTimes) {
        let mut state = self.lock();
        state.attempt = attempt;
        worker.clone_into(&mut state.worker);
        state.times = times;
        self.emit(&mut state, EventData::Staging { attempt, worker: worker.to_owned() });
    }

    /// From now on what is told stands in `book` first. To be called before anything of the container's output is told.
    pub fn keep(&self, book: Arc<dyn Book>) {
        self.lock().book = Some(book);
    }

    /// The same for a book that is begun with how far it was told by now.
    pub fn keep_anew<B: Book + 'static, E>(
        &self,
        begin: impl FnOnce(Standing) -> Result<B, E>,
    ) -> Result<(), E> {
        let mut state = self.lock();
        self.flush(&mut state);
        let book = begin(state.standing())?;
        state.book = Some(Arc::new(book));
        Ok(())
    }

    /// How far it was told.
    pub fn standing(&self) -> Standing {
        self.lock().standing()
    }

    /// Goes on behind what an earlier process told, of which what may not have arrived is sent again under its old
    /// numbers. What is told from now on by `worker` stands in `book` first.
    pub fn resume(&self, earlier: Earlier, worker: &str, book: Arc<dyn Book>) {
        let mut state = self.lock();
        let Earlier { attempt, details, mut times, told: Told { standing, pending } } = earlier;
        times.started = times.started.or(standing.started);
        (state.attempt, state.details, state.times) = (attempt, details, times);
        worker.clone_into(&mut state.worker);
        state.number = standing.next;
        state.marks = (standing.stdout, standing.stderr);
        state.outputs = (standing.first_output, standing.last_output);
        for event in pending {
            self.inner.bus.send_booked(event, &self.inner.task, &book);
        }
        state.book = Some(book);
    }

    /// It runs already: the task's time limit counts on from its start.
    pub fn runs_on(&self) {
        self.lock().started = true;
        self.inner.running.notify_one();
    }

    /// It runs; the task's time limit counts from here.
    pub fn running(&self, container: Option<&str>) {
        let mut state = self.lock();
        let started = state.times.started.get_or_insert_with(Timestamp::now);
        tracing::debug!(task = %self.inner.task.id, at = %started, "running");
        state.details.container = container.map(str::to_owned).or(state.details.container.take());
        state.started = true;
        let data = EventData::Running {
            attempt: state.attempt,
            worker: state.worker.clone(),
            container: container.map(str::to_owned),
        };
        self.emit(&mut state, data);
        self.inner.running.notify_one();
        drop(state);
        failpoint::reached(Moment::Running, self.inner.task.id.as_str(), self.inner.fence.0);
    }

    /// Waits until [`Reporter::running`] was called; since when it runs. Cancel-safe; one waiter.
    pub async fn runs(&self) -> Timestamp {
        loop {
            let notified = self.inner.running.notified();
            {
                let state = self.lock();
                if state.started {
                    return state.times.started.unwrap_or_default();
                }
            }
            notified.await;
        }
    }

    /// It came further.
    pub fn progress(&self, progress: Progress) {
        let mut state = self.lock();
        let progress = Progress { message: progress.message.map(|text| state.redacted(&text)), ..progress };
        state.details.progress = Some(progress.clone());
        self.chatter(&mut state, EventData::Progress(progress));
    }

    /// One line of log, without its end.
    pub fn log(&self, stream: LogStream, line: &str) {
        self.log_line(&mut self.lock(), stream, line);
    }

    /// Lines of the container's output that end at `mark` of their stream.
    pub fn log_output(&self, stream: LogStream, lines: &str, mark: Mark) {
        let mut state = self.lock();
        match stream {
            LogStream::Stdout => state.marks.0 = mark,
            LogStream::Stderr => state.marks.1 = mark,
            LogStream::Worker => {}
        }
        self.log_line(&mut state, stream, lines);
    }

    /// Lines that an earlier process told: they count, and belong to the log's tail, but are not told again.
    pub fn recall(&self, stream: LogStream, lines: &str) {
        let mut state = self.lock();
        let text = state.redacted(lines);
        state.count(stream, &text, self.inner.limits);
    }

    fn log_line(&self, state: &mut State, stream: LogStream, line: &str) {
        let text = state.redacted(line);
        let was_whole = state.dropped == 0;
        if state.count(stream, &text, self.inner.limits) {
            self.chatter(state, EventData::Log { stream, text });
        } else if was_whole {
            let max = self.inner.limits.log_max;
            let text = format!("[the log is longer than {max} bytes: its middle is left out]");
            self.chatter(state, EventData::Log { stream: LogStream::Worker, text });
        }
    }

    /// One line of the worker's own in the task's log.
    pub fn note(&self, text: impl Into<String>) {
        self.log(LogStream::Worker, &text.into());
    }

    /// Something worth knowing that is no failure: in the log and in the record.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("warning: {text}"));
        let mut state = self.lock();
        if state.details.warnings.len() < WARNINGS {
            let text = state.redacted(&text);
            state.details.warnings.push(text);
        } else {
            state.warnings_dropped += 1;
        }
    }

    /// A point was reached; only the first time counts.
    pub fn reached(&self, phase: Phase) {
        let mut state = self.lock();
        let times = &mut state.times;
        let slot = match phase {
            Phase::Pulled => &mut times.pulled,
            Phase::Staged => &mut times.staged,
            Phase::Started => &mut times.started,
            Phase::Ended => &mut times.ended,
            Phase::Uploaded => &mut times.uploaded,
        };
        slot.get_or_insert_with(Timestamp::now);
    }

    /// Changes what the record will say.
    pub fn describe(&self, change: impl FnOnce(&mut Details)) {
        change(&mut self.lock().details);
    }

    /// From now on this text is replaced by `[redacted]` wherever it would be told.
    pub fn redact(&self, secret: &Secret) {
        // Very short texts would tear everything that is told, and are no secrets.
        let mut state = self.lock();
        if secret.expose().len() >= 4 && !state.secrets.contains(secret) {
            state.secrets.push(secret.clone());
        }
    }

    /// From now on whoever is told of the attempt may use this token at the Girder with the base `api_url`.
    pub fn renew(&self, api_url: &str, token: &Secret) {
        self.redact(token);
        self.inner.bus.renew(&self.inner.task, api_url, token);
    }

    /// What is told of the attempt so far.
    pub fn snapshot(&self) -> (PhaseTimes, Details) {
        let mut state = self.lock();
        let state = &mut *state;
        let mut details = state.details.clone();
        for text in details.argv.iter_mut().chain(details.warnings.iter_mut()) {
            *text = redacted(&state.secrets, text);
        }
        if state.warnings_dropped > 0 {
            details.warnings.push(format!("{} more warnings", state.warnings_dropped));
        }
        details.log_tail = state.tail.iter().fold(String::new(), |mut tail, (_, line)| {
            tail.push_str(line);
            tail.push('\n');
            tail
        });
        details.log_dropped = state.dropped;
        (state.times.clone(), details)
    }

    /// Ends the telling: what waits is sent, and `data` becomes the last event, which is returned and not sent.
    pub fn close(&self, data: EventData) -> Event {
        let mut state = self.lock();
        if state.dropped > 0 && !state.closed {
            let told: Vec<_> = state.tail.iter().cloned().collect();
            let text = format!("[{} bytes left out; the end of the log follows]", state.dropped);
            self.chatter(&mut state, EventData::Log { stream: LogStream::Worker, text });
            for (stream, text) in told {
                self.chatter(&mut state, EventData::Log { stream, text });
            }
        }
        self.flush(&mut state);
        state.closed = true;
        self.numbered(&mut state, data)
    }

    /// Sends what waits and tells nothing more: a later process goes on.
    pub fn fall_silent(&self) {
        let mut state = self.lock();
        self.flush(&mut state);
        state.closed = true;
    }

    /// Sends a status event.
    pub fn status(&self, data: EventData) {
        let mut state = self.lock();
        self.emit(&mut state, data);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn numbered(&self, state: &mut State, data: EventData) -> Event {
        let number = state.number;
        state.number += 1;
        Event {
            task: self.inner.task.id.clone(),
            queue: self.inner.task.queue.clone(),
            fence: self.inner.fence,
            number,
            time: Timestamp::now(),
            data,
        }
    }

    /// Sends what waits, then `data`.
    fn emit(&self, state: &mut State, data: EventData) {
        self.flush(state);
        self.send(state, data, state.marks);
    }

    fn flush(&self, state: &mut State) {
        for Waiting { data, marks } in std::mem::take(&mut state.waiting) {
            self.send(state, data, marks);
        }
    }

    /// Gives `data` a number and sends it. It stands in the book before it is on its way.
    fn send(&self, state: &mut State, data: EventData, marks: (Mark, Mark)) {
        let event = self.numbered(state, data);
        if let EventData::Log { stream: LogStream::Stdout | LogStream::Stderr, .. } = &event.data {
            state.outputs = (state.outputs.0.or(Some(event.time)), Some(event.time));
        }
        match &state.book {
            Some(book) => {
                let (stdout, stderr) = marks;
                book.telling(&event, &Standing { stdout, stderr, ..state.standing() });
                self.inner.bus.send_booked(event, &self.inner.task, book);
            }
            None => self.inner.bus.send(event, Some(&self.inner.task)),
        }
    }

    /// Sends progress or log at once while the rate allows it, else lets it wait and coalesce.
    fn chatter(&self, state: &mut State, data: EventData) {
        if state.closed {
            return;
        }
        let rate = self.inner.bus.chatter_per_second();
        let now = Instant::now();
        state.tokens =
            (state.tokens + now.duration_since(state.refilled).as_secs_f64() * rate).min(rate.max(1.0));
        state.refilled = now;
        state.coalesce(data);
        let full = matches!(state.waiting.last(), Some(Waiting { data: EventData::Log { text, .. }, .. }) if text.len() >= LOG_EVENT);
        if state.tokens >= 1.0 || full || state.waiting.len() >= 64 {
            state.tokens = (state.tokens - 1.0).max(0.0);
            self.flush(state);
        } else if !state.timer {
            state.timer = true;
            let wait = Duration::from_secs_f64(((1.0 - state.tokens) / rate).clamp(0.001, 10.0));
            let this = self.clone();
            self.inner.bus.crew().spawn("coalescing", async move {
                tokio::time::sleep(wait).await;
                let mut state = this.lock();
                state.timer = false;
                this.flush(&mut state);
            });
        }
    }
}

impl State {
    fn redacted(&self, text: &str) -> String {
        redacted(&self.secrets, text)
    }

    fn standing(&self) -> Standing {
        Standing {
            next: self.number,
            stdout: self.marks.0,
            stderr: self.marks.1,
            first_output: self.outputs.0,
            last_output: self.outputs.1,
            started: self.times.started,
        }
    }

    /// Adds lines to the tail and to what the log's bounds count. Whether there is room for them.
    fn count(&mut self, stream: LogStream, text: &str, limits: LogLimits) -> bool {
        self.keep_tail(stream, text, limits.log_tail);
        let bytes = text.len() as u64 + 1;
        let fits = self.sent + bytes <= limits.log_max;
        if fits {
            self.sent += bytes;
        } else {
            self.dropped += bytes;
        }
        fits
    }

    fn keep_tail(&mut self, stream: LogStream, text: &str, bound: usize) {
        // A line longer than the tail keeps its end.
        let start = text.len().saturating_sub(bound);
        let start = (start..=text.len()).find(|n| text.is_char_boundary(*n)).unwrap_or(text.len());
        let line = text[start..].to_owned();
        self.tail_bytes += line.len() + 1;
        self.tail.push_back((stream, line));
        while self.tail_bytes > bound.max(1) && self.tail.len() > 1 {
            let (_, gone) = self.tail.pop_front().unwrap_or((stream, String::new()));
            self.tail_bytes -= gone.len() + 1;
        }
    }

    /// Adds `data` to what waits: a progress replaces a waiting one, a log line joins its neighbour of the same stream.
    fn coalesce(&mut self, data: EventData) {
        let marks = self.marks;
        match (data, self.waiting.last_mut()) {
            (
                EventData::Log { stream, text },
                Some(Waiting { data: EventData::Log { stream: last, text: lines }, marks: reached }),
            ) if *last == stream && lines.len() + text.len() < LOG_EVENT => {
                lines.push('\n');
                lines.push_str(&text);
                *reached = marks;
            }
            (EventData::Progress(progress), _) => {
                self.waiting.retain(|waiting| !matches!(waiting.data, EventData::Progress(_)));
                self.waiting.push(Waiting { data: EventData::Progress(progress), marks });
            }
            (data, _) => self.waiting.push(Waiting { data, marks }),
        }
    }
}

fn redacted(secrets: &[Secret], text: &str) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if text.contains(secret.expose()) {
            text = text.replace(secret.expose(), "[redacted]");
        }
    }
    text
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
