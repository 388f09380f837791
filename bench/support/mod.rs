//! What the questions share: how an answer is told, a worker to measure, the Python worker, and a look into `/proc`.

pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod rig;

/// A bench ends with the first thing that goes wrong; nobody acts on which it was.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
