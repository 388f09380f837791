//! A container's standard output and error, from before its start to the last byte: to the task's log as lines, or as
//! raw bytes to where the pipeline wants them. Bounded in memory however much is printed; never left unread, because an
//! unread attachment keeps the engine from removing the container. Called by the driver of a container and by the fuzz
//! target of the engine's frames.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::engine::{EngineError, Output};
use super::lines::{Lines, Skip};
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
    stdout: Lines,
    stderr: Lines,
    /// What an earlier process told of each, while it is passed over.
    told: Option<(Before, Before)>,
    last: LastLines,
    raw: StandardStreams,
}

/// What of a stream was told before; it is read again to be remembered.
struct Before {
    skip: Skip,
    lines: Lines,
}

impl Before {
    fn new(line_max: usize, mark: Mark) -> Self {
        Self { skip: Skip::to(mark), lines: Lines::new(line_max) }
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
            stdout: Lines::new(line_max),
            stderr: Lines::new(line_max),
            told: None,
            last: LastLines::default(),
        }
    }

    /// The same for output that is read again from its beginning, and was told up to `standing` before.
    pub(super) fn again(report: Reporter, line_max: usize, standing: &Standing) -> Self {
        let Standing { stdout, stderr, .. } = standing;
        Self {
            stdout: Lines::at(line_max, *stdout),
            stderr: Lines::at(line_max, *stderr),
            told: Some((Before::new(line_max, *stdout), Before::new(line_max, *stderr))),
            ..Self::new(report, line_max, StandardStreams::default())
        }
    }

    /// The same for output whose beginning is gone: it is told from where its reading starts.
    pub(super) fn behind(report: Reporter, line_max: usize, standing: &Standing) -> Self {
        Self { told: None, ..Self::again(report, line_max, standing) }
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
        let report = self.report;
        self.stdout.finish(&mut |line, mark| report.log_output(LogStream::Stdout, line, mark));
        let last = &mut self.last;
        self.stderr.finish(&mut |line, mark| {
            last.keep(line);
            report.log_output(LogStream::Stderr, line, mark);
        });
        self.last.joined()
    }

    async fn take(&mut self, piece: Output) {
        let report = &self.report;
        match piece {
            Output::Stdout(bytes) => {
                if let Some(raw) = &mut self.raw.stdout {
                    return raw.write(&bytes).await;
                }
                let mut bytes = &bytes[..];
                if let Some((Before { skip, lines }, _)) = &mut self.told {
                    let (known, new) = bytes.split_at(skip.pass(bytes));
                    lines.feed(known, &mut |line, _| report.recall(LogStream::Stdout, line));
                    bytes = new;
                }
                self.stdout.feed(bytes, &mut |line, mark| report.log_output(LogStream::Stdout, line, mark));
            }
            Output::Stderr(bytes) => {
                if let Some(raw) = &mut self.raw.stderr {
                    return raw.write(&bytes).await;
                }
                let last = &mut self.last;
                let mut bytes = &bytes[..];
                if let Some((_, Before { skip, lines })) = &mut self.told {
                    let (known, new) = bytes.split_at(skip.pass(bytes));
                    lines.feed(known, &mut |line, _| {
                        last.keep(line);
                        report.recall(LogStream::Stderr, line);
                    });
                    bytes = new;
                }
                self.stderr.feed(bytes, &mut |line, mark| {
                    last.keep(line);
                    report.log_output(LogStream::Stderr, line, mark);
                });
            }
        }
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
