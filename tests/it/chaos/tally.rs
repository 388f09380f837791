//! What a storm came to, and the table of all of them.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use super::witness::Starts;

/// What a storm came to.
pub(super) struct Tally {
    pub(super) broker: &'static str,
    pub(super) fault: String,
    pub(super) seed: u64,
    pub(super) tasks: usize,
    /// Without their good end.
    pub(super) lost: usize,
    pub(super) starts: Starts,
    /// Whose end nobody was told.
    pub(super) untold: usize,
    /// Ends that were told and that the record does not know.
    pub(super) wrong: usize,
    /// Ends that were told once more, under their number.
    pub(super) again: usize,
    pub(super) took: Duration,
}

impl Tally {
    pub(super) fn holds(&self) -> bool {
        self.lost == 0
            && self.untold == 0
            && self.wrong == 0
            && self.starts.stale == 0
            && self.starts.extra <= self.starts.cut_short
    }

    pub(super) fn write(&self) {
        write_row(&self.to_string());
    }
}

/// Adds a row to the table: broker, fault, seed, tasks, lost, extra starts and how many a fault excuses, stale effects,
/// ends untold or wrong, ends told again, seconds.
pub(super) fn write_row(row: &str) {
    eprintln!("{row}");
    if let Some(path) = std::env::var_os("CHAOS_TABLE") {
        let mut table = std::fs::File::options().append(true).create(true).open(path).unwrap();
        // One write, so that rows of several processes do not mix.
        table.write_all(format!("{row}\n").as_bytes()).unwrap();
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { broker, fault, seed, tasks, lost, starts, untold, wrong, again, took } = self;
        let Starts { extra, cut_short, stale } = starts;
        let untold = untold + wrong;
        write!(
            f,
            "{broker}\t{fault}\t{seed}\t{tasks}\t{lost}\t{extra}/{cut_short}\t{stale}\t{untold}\t{again}\t{:.1}",
            took.as_secs_f64()
        )
    }
}
