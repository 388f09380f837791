//! Two clocks: the wall's for times that people gave, and the machine's own for leases.
//!
//! # Decisions
//! Leases end on `CLOCK_BOOTTIME`, which all processes of a host share and no clock adjustment moves. After a reboot it
//! starts anew; then nobody who held a lease lives, and `schema` ends them all.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Microseconds since the machine was started, suspended time included.
pub(crate) fn machine() -> i64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("invariant: Linux has CLOCK_BOOTTIME");
    time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_nsec() / 1_000)
}

/// Microseconds since 1970.
pub(crate) fn wall() -> i64 {
    Timestamp::now().as_microsecond()
}

/// In microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// How long from `now` to `due`, both in microseconds.
pub(crate) fn until(due: i64, now: i64) -> Duration {
    Duration::from_micros(u64::try_from(due.saturating_sub(now)).unwrap_or(0))
}

/// The wall-clock time of so many microseconds since 1970.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
}

/// Changes with each start of the machine.
pub(super) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
