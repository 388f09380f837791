//! What the pipeline is told by its owner: places, bounds and what it may reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::conduit::HostStreams;
use crate::girder;
use crate::http::{Anything, Judge, Timeouts};

/// Settings of every pipeline of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Settings {
    /// The folder in which temporary volumes and FIFOs are made.
    pub work_dir: PathBuf,
    /// How long an output pipe may stay without a writer before its sink is ended.
    pub linger: Duration,
    /// The longest line of a progress pipe, in bytes; what is longer is skipped.
    pub progress_line_max: usize,
    /// Where `HostStdOut` and `HostStdErr` go.
    pub host: HostStreams,
    /// Limits on HTTP streams.
    pub http: Timeouts,
    /// Which hosts HTTP streams may reach.
    pub judge: Arc<dyn Judge>,
    /// How much one task may fetch.
    pub download: girder::Ceilings,
    /// What Girder clients share.
    pub girder: Arc<girder::Site>,
    /// The folder in which outputs are kept that nobody takes; none: they are not kept.
    pub spool: Option<PathBuf>,
}

impl Settings {
    /// Settings with `work_dir` and everything else as `config/longshore.toml` has it: a linger of 200 ms, lines of
    /// 64 KiB, the process's own output, any host,
    /// no cache of what Girder gives, no spool.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self {
            work_dir: work_dir.into(),
            linger: Duration::from_millis(200),
            progress_line_max: 64 << 10,
            host: HostStreams::process(),
            http: Timeouts::default(),
            judge: Arc::new(Anything),
            download: girder::Ceilings::NONE,
            girder: Arc::new(girder::Site::plain(girder::Settings::default())),
            spool: None,
        }
    }
}
