//! Exact moments of a task's way, for tests that kill or freeze a worker in one of them and count what it did.
//!
//! Only debug builds have it: in a release build [`reached`] is empty and [`VARIABLES`] are unknown like any misspelt one.
//!
//! - `LONGSHORE_FAILPOINT=recorded:kill@3` kills the process, as `kill -9` does, when it comes to that moment for the third
//!   time; `freeze` stops it, as `SIGSTOP` does. Several are separated by commas.
//! - `LONGSHORE_WITNESS=<file>` adds a line `<moment> <task> <fence> <process id>` to that file each time.

use std::fmt;

/// A moment of a task's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Its message was read; nothing is recorded yet.
    Received,
    /// Its attempt is charged, its inputs come next.
    Staging,
    /// It runs.
    Running,
    /// It ran; what it made is to be brought where it belongs.
    Uploading,
    /// The fence has let its effect pass. `longshore.ping` has no other effect than this line.
    Effect,
    /// Its end is recorded and nobody was told.
    Recorded,
    /// Everybody was told of its end, and its message is not settled.
    Published,
}

impl Moment {
    /// Every moment, in the order in which a task comes to them.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Staging,
        Self::Running,
        Self::Uploading,
        Self::Effect,
        Self::Recorded,
        Self::Published,
    ];

    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Staging => "staging",
            Self::Running => "running",
            Self::Uploading => "uploading",
            Self::Effect => "effect",
            Self::Recorded => "recorded",
            Self::Published => "published",
        }
    }

    /// The moment of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|moment| moment.as_str() == name)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(debug_assertions)]
pub use armed::{VARIABLES, reached};

/// Environment variables that are no settings although they look like some.
#[cfg(not(debug_assertions))]
pub const VARIABLES: &[&str] = &[];

/// A task with this fence has come to `moment`.
#[cfg(not(debug_assertions))]
#[inline]
pub fn reached(_: Moment, _task: &str, _fence: u64) {}

#[cfg(debug_assertions)]
mod armed {
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Moment;

    const FAILPOINT: &str = "LONGSHORE_FAILPOINT";
    const WITNESS: &str = "LONGSHORE_WITNESS";

    /// Environment variables that are no settings although they look like some.
    pub const VARIABLES: &[&str] = &[FAILPOINT, WITNESS];

    /// What happens to the process, and when.
    #[derive(Debug)]
    pub(super) struct Fail {
        pub(super) moment: Moment,
        pub(super) signal: Signal,
        /// How many more times it has to come to the moment.
        pub(super) left: AtomicU32,
    }

    /// A task with this fence has come to `moment`.
    pub fn reached(moment: Moment, task: &str, fence: u64) {
        if let Some(mut witness) = witness() {
            let line = format!("{moment} {task} {fence} {}\n", std::process::id());
            // One write to the file's end, so that the lines of several processes do not mix.
            if let Err(error) = witness.write_all(line.as_bytes()) {
                tracing::error!(%error, "{WITNESS}: a moment could not be noted");
            }
        }
        for fail in fails().iter().filter(|fail| fail.moment == moment) {
            if fail.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                // Cannot fail for one's own process.
                let _ = kill(Pid::this(), fail.signal);
            }
        }
    }

    fn witness() -> Option<&'static File> {
        static OPENED: OnceLock<Option<File>> = OnceLock::new();
        let opened = OPENED.get_or_init(|| {
            let path = std::env::var_os(WITNESS)?;
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.inspect_err(|error| tracing::error!(%error, "{WITNESS}: the file cannot be opened")).ok()
        });
        opened.as_ref()
    }

    fn fails() -> &'static [Fail] {
        static READ: OnceLock<Vec<Fail>> = OnceLock::new();
        READ.get_or_init(|| {
            let text = std::env::var(FAILPOINT).unwrap_or_default();
            let parts = text.split(',').filter(|part| !part.is_empty());
            parts.filter_map(|part| read(part).or_else(|| misspelt(part))).collect()
        })
    }

    fn misspelt(part: &str) -> Option<Fail> {
        tracing::error!("{FAILPOINT}: {part:?} is not such as recorded:kill@3 or running:freeze@1");
        None
    }

    pub(super) fn read(part: &str) -> Option<Fail> {
        let (moment, what) = part.split_once(':')?;
        let (action, count) = what.split_once('@').unwrap_or((what, "1"));
        let signal = match action {
            "kill" => Signal::SIGKILL,
            "freeze" => Signal::SIGSTOP,
            _ => return None,
        };
        let left = count.parse().ok().filter(|count| *count > 0)?;
        Some(Fail { moment: Moment::parse(moment)?, signal, left: AtomicU32::new(left) })
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::sync::atomic::Ordering;

    use nix::sys::signal::Signal;

    use super::armed::read;
    use super::*;

    #[test]
    fn a_failpoint_names_moment_action_and_count() {
        let fail = read("recorded:kill@3").unwrap();
        assert_eq!((fail.moment, fail.signal), (Moment::Recorded, Signal::SIGKILL));
        assert_eq!(fail.left.load(Ordering::Relaxed), 3);
        let fail = read("running:freeze").unwrap();
        assert_eq!((fail.signal, fail.left.load(Ordering::Relaxed)), (Signal::SIGSTOP, 1));
        for wrong in ["recorded", "recorded:kill@0", "recorded:kill@x", "never:kill@1", "running:sleep@1"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }
}
