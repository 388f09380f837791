//! What staging made, as a later process of the worker needs it to go on: plain data that can be written down. Only of
//! pipelines without streams, which live in their process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::task::transform::Volume;

/// What staging made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Every volume, in the order of their first mentions.
    pub volumes: Vec<MadeVolume>,
    /// The folders below which there is a workspace, the worker's own work_dir first.
    pub bases: Vec<PathBuf>,
    /// How many folders were made.
    pub folders: usize,
}

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MadeVolume {
    /// Which.
    pub volume: Volume,
    /// On the host.
    pub host: PathBuf,
    /// In the container.
    pub container: String,
}
