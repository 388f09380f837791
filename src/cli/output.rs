//! All that commands print. No other file of the package writes to the standard streams.
//!
//! Results go to standard output, everything about them to standard error, so that output can be piped.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::error::CliError;

/// Who reads the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    // No doc comments: each would be a line in every command's help.
    Human,
    Json,
}

/// The standard streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Who reads it.
    pub(crate) format: Format,
}

impl Output {
    /// Whether programs read it.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person watches standard error, where progress is drawn.
    pub(crate) fn is_watched() -> bool {
        io::stderr().is_terminal()
    }

    /// A line of the result.
    pub(crate) fn line(self, text: impl Display) -> Result<(), CliError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// A part of the result as it is.
    #[expect(clippy::unused_self, reason = "who prints holds the output")]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| closed(&error))
    }

    /// A document of the result on one line.
    pub(crate) fn json_line<T: Serialize>(self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|error| unwritable(&error))?;
        self.line(text)
    }

    /// A document of the result, over several lines.
    pub(crate) fn document<T: Serialize>(self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?;
        self.line(text)
    }

    /// A line about the result, to standard error. What cannot be written there is lost.
    #[expect(clippy::unused_self, reason = "who prints holds the output")]
    pub(crate) fn note(self, text: impl Display) {
        // Nobody is left to be told that standard error is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// A line about the result, dimmed on a terminal.
    pub(crate) fn dim(self, text: impl Display) {
        if Self::is_watched() { self.note(format_args!("\x1b[2m{text}\x1b[0m")) } else { self.note(text) }
    }

    /// Why a command ended otherwise than well.
    pub(crate) fn error(self, error: &CliError) {
        match self.format {
            Format::Human => self.note(format_args!("longshore: {error}")),
            Format::Json => self.note(error.to_json()),
        }
    }

    /// Rows under a head, with aligned columns.
    pub(crate) fn table(self, head: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
        self.bytes(table(head, rows).as_bytes())
    }
}

fn unwritable(error: &serde_json::Error) -> CliError {
    CliError::Infrastructure(format!("the result cannot be written as JSON: {error}"))
}

fn closed(error: &io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        CliError::OutputClosed
    } else {
        CliError::Infrastructure(format!("the output cannot be written: {error}"))
    }
}

/// Columns as wide as their widest cell, two blanks apart; the last one is not padded.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(head.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let blanks = width - cell.chars().count() + 2;
            line.extend([cell.as_str(), &" ".repeat(blanks)]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time in UTC, to the second.
pub(crate) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How long ago `time` was, in one unit: `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// One line of at most `most` characters.
pub(crate) fn short(text: &str, most: usize) -> String {
    let line = text.replace(['\n', '\r', '\t'], " ");
    if line.chars().count() <= most {
        return line;
    }
    let mut cut: String = line.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = vec![
            vec!["ä".to_owned(), "long cell".to_owned(), String::new()],
            vec!["bcd".to_owned(), "x".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(&["ID", "WHAT", "END"], &rows),
            "ID   WHAT       END\nä    long cell\nbcd  x          y\n"
        );
    }

    #[test]
    fn times_are_utc_and_ages_have_one_unit() {
        let now: Timestamp = "2026-11-23T10:00:00.9+02:00".parse().unwrap();
        assert_eq!(time(now), "2026-11-23T08:00:00Z");
        let ago = |seconds: i64| age(now - jiff::SignedDuration::from_secs(seconds), now);
        assert_eq!([ago(-5), ago(5), ago(600), ago(7_200), ago(200_000)], ["0s", "5s", "10m", "2h", "2d"]);
        assert_eq!(short("a\nbcdef", 5), "a bc…");
    }
}
