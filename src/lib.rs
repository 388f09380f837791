//! The map of the rooms; `docs/design.md` says who may know whom.

pub mod retry;
pub mod task;
pub mod units;
