//! A container's standard output and error, from before its start to the last byte: to the task's log as lines, or as
//! raw bytes to where the pipeline wants them. Bounded in memory however much is printed; never left unread, because an
//! unread attachment keeps the engine from removing the container. Called by the driver of a container and by the fuzz
//! target of the engine's frames.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::args::StdoutFilter;
use super::engine::{EngineError, Output};
use super::lines::{Lines, Skip};
use super::slicer::{Elements, Piece};
use crate::events::reporter::Reporter;
use crate::events::{LogStream, Mark, Standing};
use crate::pipeline::StandardStreams;

/// How long the engine may take for each further piece once the container has ended.
const SILENCE: Duration = Duration::from_secs(5);
/// What is kept of the last words.
const LAST_LINES: usize = 10;
const LAST_BYTES: usize = 2 << 10;

/// Where a container's output goes.
pub struct Outlet {
    report: Reporter,
    stdout: Channel,
    stderr: Channel,
    elements: Option<Elements>,
    raw: StandardStreams,
}

/// One stream on its way into the log.
struct Channel {
    stream: LogStream,
    lines: Lines,
    /// What an earlier process told of it, while it is passed over.
    told: Option<Before>,
    /// Its last lines, if somebody asks for them.
    last: Option<LastLines>,
}

/// What of a stream was told before; it is read again to be remembered.
struct Before {
    skip: Skip,
    lines: Lines,
}

impl Channel {
    fn new(stream: LogStream, line_max: usize) -> Self {
        let last = match stream {
            LogStream::Stderr => Some(LastLines::default()),
            LogStream::Stdout | LogStream::Worker => None,
        };
        Self { stream, lines: Lines::new(line_max), told: None, last }
    }

    /// Of a stream that was told up to `mark` before.
    fn behind(stream: LogStream, line_max: usize, mark: Mark) -> Self {
        Self { lines: Lines::at(line_max, mark), ..Self::new(stream, line_max) }
    }

    /// The same, where the stream is read again from its beginning.
    fn again(stream: LogStream, line_max: usize, mark: Mark) -> Self {
        let told = Some(Before { skip: Skip::to(mark), lines: Lines::new(line_max) });
        Self { told, ..Self::behind(stream, line_max, mark) }
    }

    /// Whether what comes next was not told before.
    fn is_new(&self) -> bool {
        self.told.as_ref().is_none_or(|told| told.skip.is_there())
    }

    fn take(&mut self, mut bytes: &[u8], report: &Reporter) {
        let Self { stream, lines, told, last } = self;
        if let Some(Before { skip, lines }) = told {
            let (known, new) = bytes.split_at(skip.pass(bytes));
            lines.feed(known, &mut |line, _| {
                keep(last, line);
                report.recall(*stream, line);
            });
            bytes = new;
        }
        lines.feed(bytes, &mut |line, mark| {
            keep(last, line);
            report.log_output(*stream, line, mark);
        });
    }

    /// Tells an unfinished line; the last words.
    fn finish(mut self, report: &Reporter) -> String {
        let Self { stream, lines, last, .. } = &mut self;
        lines.finish(&mut |line, mark| {
            keep(last, line);
            report.log_output(*stream, line, mark);
        });
        self.last.map(LastLines::joined).unwrap_or_default()
    }
}

fn keep(last: &mut Option<LastLines>, line: &str) {
    if let Some(last) = last {
        last.keep(line);
    }
}

/// The last lines of a stream, for the message of a failure.
#[derive(Default)]
struct LastLines {
    lines: VecDeque<String>,
}

impl Outlet {
    /// To the log of the attempt that `report` tells of, as far as the pipeline does not want the bytes themselves, in
    /// lines of at most `line_max` bytes.
    pub fn new(report: Reporter, line_max: usize, raw: StandardStreams) -> Self {
        Self {
            report,
            raw,
            elements: None,
            stdout: Channel::new(LogStream::Stdout, line_max),
            stderr: Channel::new(LogStream::Stderr, line_max),
        }
    }

    /// The same for output that is read again from its beginning, and was told up to `standing` before.
    pub(super) fn again(report: Reporter, line_max: usize, standing: &Standing) -> Self {
        Self {
            stdout: Channel::again(LogStream::Stdout, line_max, standing.stdout),
            stderr: Channel::again(LogStream::Stderr, line_max, standing.stderr),
            ..Self::new(report, line_max, StandardStreams::default())
        }
    }

    /// The same for output whose beginning is gone: it is told from where its reading starts.
    pub(super) fn behind(report: Reporter, line_max: usize, standing: &Standing) -> Self {
        Self {
            stdout: Channel::behind(LogStream::Stdout, line_max, standing.stdout),
            stderr: Channel::behind(LogStream::Stderr, line_max, standing.stderr),
            ..Self::new(report, line_max, StandardStreams::default())
        }
    }

    /// The same with `filter` upon what of standard output goes to the log.
    #[must_use]
    pub fn filtered(self, filter: Option<StdoutFilter>) -> Self {
        let elements = filter.map(|filter| match filter {
            StdoutFilter::Slicer => Elements::new(),
        });
        Self { elements, ..self }
    }

    /// Carries all that comes to where it belongs, until the stream ends. Once `ended` is canceled, a silent stream counts
    /// as ended, too.
    pub async fn drain(
        &mut self,
        mut output: BoxStream<'static, Result<Output, EngineError>>,
        ended: &CancellationToken,
    ) -> Result<(), EngineError> {
        loop {
            let piece = tokio::select! {
                biased;
                piece = output.next() => piece,
                () = silence_after(ended) => None,
            };
            match piece {
                Some(Ok(piece)) => self.take(piece).await,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }

    /// Tells unfinished lines, ends the raw streams and returns the container's last words.
    pub fn finish(mut self) -> String {
        if let Some(elements) = &mut self.elements {
            elements.finish(&mut |piece| sort(piece, &mut self.stdout, &self.report));
        }
        self.stdout.finish(&self.report);
        self.stderr.finish(&self.report)
    }

    async fn take(&mut self, piece: Output) {
        let Self { report, stdout, stderr, elements, raw } = self;
        match piece {
            Output::Stdout(bytes) => match (&mut raw.stdout, elements) {
                (Some(raw), _) => raw.write(&bytes).await,
                (None, Some(elements)) => elements.feed(&bytes, &mut |piece| sort(piece, stdout, report)),
                (None, None) => stdout.take(&bytes, report),
            },
            Output::Stderr(bytes) => match &mut raw.stderr {
                Some(raw) => raw.write(&bytes).await,
                None => stderr.take(&bytes, report),
            },
        }
    }
}

/// Text goes to the log, and progress where progress goes: only if it is new, since it would go back else.
fn sort(piece: Piece<'_>, stdout: &mut Channel, report: &Reporter) {
    match piece {
        Piece::Text(bytes) => stdout.take(bytes, report),
        Piece::Progress(progress) if stdout.is_new() => report.progress(progress),
        Piece::Progress(_) => {}
    }
}

async fn silence_after(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(SILENCE).await;
}

impl LastLines {
    fn keep(&mut self, block: &str) {
        for line in block.rsplit('\n').take(LAST_LINES).collect::<Vec<_>>().into_iter().rev() {
            let start = line.len().saturating_sub(LAST_BYTES / 2);
            let start = (start..=line.len()).find(|n| line.is_char_boundary(*n)).unwrap_or(line.len());
            self.lines.push_back(line[start..].to_owned());
        }
        let mut bytes: usize = self.lines.iter().map(|line| line.len() + 1).sum();
        while self.lines.len() > LAST_LINES || (bytes > LAST_BYTES && self.lines.len() > 1) {
            bytes -= self.lines.pop_front().map_or(0, |line| line.len() + 1);
        }
    }

    fn joined(self) -> String {
        Vec::from(self.lines).join("\n").trim_end().to_owned()
    }
}
