//! How big the storms are: a sample unless `make chaos` says otherwise.

use std::time::Duration;

/// The numbers of every storm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Tasks of each storm: `CHAOS_TASKS`.
    pub(super) tasks: usize,
    /// Storms of each fault, which differ in when it comes: `CHAOS_SEEDS`.
    pub(super) seeds: u64,
    /// How long servers and networks are away: `CHAOS_OUTAGE`, in seconds.
    pub(super) outage: Duration,
    /// Containers of each storm with real ones: `CHAOS_CONTAINERS`.
    pub(super) containers: usize,
}

impl Scale {
    pub(super) fn read() -> Self {
        Self {
            tasks: number("CHAOS_TASKS", 24),
            seeds: number("CHAOS_SEEDS", 1) as u64,
            outage: Duration::from_secs(number("CHAOS_OUTAGE", 3) as u64),
            containers: number("CHAOS_CONTAINERS", 4),
        }
    }

    /// How long all tasks of a storm may take once the weather is fine again.
    pub(super) fn calm_within(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_millis(200) * u32::try_from(self.tasks).unwrap()
    }
}

fn number(variable: &str, sample: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
        Err(_) => sample,
    }
}
