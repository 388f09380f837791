//! How an answer is told: a table for people, a document for programs. Every ratio is of two figures of one run.

use std::fmt;

use serde::Serialize;
use serde_json::json;

use super::Outcome;

/// The answer to one question.
#[derive(Serialize)]
pub(crate) struct Answer {
    question: &'static str,
    /// What was measured, and in which unit.
    measured: &'static str,
    load_before: f64,
    load_after: f64,
    rows: Vec<Row>,
}

/// One case.
#[derive(Serialize)]
pub(crate) struct Row {
    /// The case in a few words.
    pub(crate) case: String,
    /// longshore's.
    pub(crate) longshore: Figure,
    /// What the machine allows at best.
    pub(crate) limit: Option<Compared>,
    /// The Python worker's.
    pub(crate) python: Option<Compared>,
    /// What is asked of it.
    pub(crate) bars: Vec<Bar>,
}

/// Another figure and longshore's as a ratio to it.
#[derive(Serialize)]
pub(crate) struct Compared {
    figure: Figure,
    ratio: f64,
}

/// What several rounds gave.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

/// Something asked of a figure, and whether it holds.
#[derive(Serialize)]
pub(crate) struct Bar {
    asked: String,
    /// `None`: the other figure is missing.
    held: Option<bool>,
}

impl Answer {
    /// Begins an answer; the machine's load is noted now.
    pub(crate) fn begin(question: &'static str, measured: &'static str) -> Self {
        Self { question, measured, load_before: load(), load_after: 0.0, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Ends it.
    pub(crate) fn end(mut self) -> Self {
        self.load_after = load();
        self
    }

    /// All answers for programs.
    pub(crate) fn document(answers: &[Answer]) -> Outcome<String> {
        let processors = std::thread::available_parallelism()?.get();
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "processors": processors,
            "at": jiff::Timestamp::now(),
            "answers": answers,
        });
        Ok(serde_json::to_string_pretty(&document)?)
    }
}

impl Row {
    /// A case with nothing beside it.
    pub(crate) fn new(case: impl Into<String>, longshore: Figure) -> Self {
        Self { case: case.into(), longshore, limit: None, python: None, bars: Vec::new() }
    }

    pub(crate) fn limit(mut self, limit: Figure) -> Self {
        self.limit = Some(self.compared(limit));
        self
    }

    pub(crate) fn python(mut self, python: Option<Figure>) -> Self {
        self.python = python.map(|python| self.compared(python));
        self
    }

    /// Asks that the figure is at least `factor` of the limit.
    pub(crate) fn at_least_of_limit(self, factor: f64) -> Self {
        let ratio = self.limit.as_ref().map(|limit| limit.ratio);
        self.asked(format!("at least {factor} of the limit"), ratio.map(|ratio| ratio >= factor))
    }

    /// Asks that the figure is at most `factor` of the limit.
    pub(crate) fn at_most_of_limit(self, factor: f64) -> Self {
        let ratio = self.limit.as_ref().map(|limit| limit.ratio);
        self.asked(format!("at most {factor} of the limit"), ratio.map(|ratio| ratio <= factor))
    }

    /// Asks that the figure is at least `factor` times the Python worker's.
    pub(crate) fn at_least_of_python(self, factor: f64) -> Self {
        let ratio = self.python.as_ref().map(|python| python.ratio);
        self.asked(format!("at least {factor} of Python's"), ratio.map(|ratio| ratio >= factor))
    }

    /// Asks that the figure is below `bound`.
    pub(crate) fn below(self, bound: f64) -> Self {
        let held = self.longshore.median < bound;
        self.asked(format!("below {bound}"), Some(held))
    }

    fn asked(mut self, asked: String, held: Option<bool>) -> Self {
        self.bars.push(Bar { asked, held });
        self
    }

    fn compared(&self, figure: Figure) -> Compared {
        Compared { figure, ratio: self.longshore.median / figure.median }
    }
}

impl Figure {
    /// Of at least one round.
    pub(crate) fn of(rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median, least: end(sorted.first()), most: end(sorted.last()) }
    }

    /// `None` of no rounds: whoever was to be measured is not there.
    pub(crate) fn if_any(rounds: &[f64]) -> Option<Self> {
        (!rounds.is_empty()).then(|| Self::of(rounds))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}-{})", number(self.median), number(self.least), number(self.most))
    }
}

/// With as many places as say something.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.question, self.measured)?;
        let mut lines =
            vec![["", "longshore", "limit", "ratio", "Python worker", "ratio"].map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let widths: Vec<usize> =
            (0..6).map(|n| lines.iter().map(|cells| cells[n].len()).max().unwrap_or(0)).collect();
        let verdicts = self.rows.iter().map(Row::verdict);
        for (cells, verdict) in lines.iter().zip(std::iter::once("bar".to_owned()).chain(verdicts)) {
            write!(f, "  {:<width$}", cells[0], width = widths[0])?;
            for (cell, width) in cells.iter().zip(&widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f, "  {verdict}")?;
        }
        writeln!(f, "  load of the machine {} before, {} after", self.load_before, self.load_after)
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let compared = |other: &Option<Compared>| match other {
            Some(other) => (other.figure.to_string(), format!("{:.2}", other.ratio)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let ((limit, of_limit), (python, of_python)) = (compared(&self.limit), compared(&self.python));
        [self.case.clone(), self.longshore.to_string(), limit, of_limit, python, of_python]
    }

    fn verdict(&self) -> String {
        let told = self.bars.iter().map(|bar| {
            let verdict = match bar.held {
                Some(true) => "held",
                Some(false) => "MISSED",
                None => "not measured",
            };
            format!("{}: {verdict}", bar.asked)
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

/// The machine's load over the last minute.
fn load() -> f64 {
    let told = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    told.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
