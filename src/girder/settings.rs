//! The `[girder]` and `[tls]` tables of the settings; `config/longshore.toml` holds their defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::{Size, Span};

/// How Girder is talked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Instead of the address that tasks give, for their jobs and their transforms; empty: as they say.
    pub api_url: String,
    /// Instead of the address that tasks give, for their jobs only; empty: as they say. `GIRDER_WORKER_API_URL` sets it.
    pub job_api_url: String,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long Girder may stand still in an answer or a transfer.
    pub stall_timeout: Span,
    /// How long one call may be tried again while Girder fails.
    pub retry_budget: Span,
    /// How often a task that says nothing looks whether its job was canceled.
    pub job_look: Span,
    /// Files that one task fetches at once.
    pub parallel_downloads: usize,
    /// Files of one result hook that are brought to Girder at once.
    pub parallel_uploads: usize,
    /// Bytes of one chunk of an upload.
    pub upload_chunk: Size,
    /// Folders inside one another that are fetched.
    pub max_depth: usize,
    /// Host folders in which files that Girder tells to lie there are mounted instead of fetched.
    pub direct_paths: Vec<PathBuf>,
    /// The cache of fetched files.
    pub cache: Cache,
}

impl Default for Settings {
    /// As `config/longshore.toml` has it, but without a cache: for pipelines that no settings were read for.
    fn default() -> Self {
        Self {
            api_url: String::new(),
            job_api_url: String::new(),
            connect_timeout: Span::seconds(10),
            stall_timeout: Span::seconds(60),
            retry_budget: Span::seconds(120),
            job_look: Span::seconds(10),
            parallel_downloads: 4,
            parallel_uploads: 2,
            upload_chunk: Size(64 << 20),
            max_depth: 64,
            direct_paths: Vec::new(),
            cache: Cache { mode: CacheMode::Off, folder: PathBuf::new(), max_size: Size(10 << 30) },
        }
    }
}

/// The cache of fetched files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Whether it is used.
    pub mode: CacheMode,
    /// Where it lies; never empty once the settings are loaded. Copies cost nothing where it shares a file system with
    /// the folders of running tasks and that can share blocks.
    pub folder: PathBuf,
    /// Most bytes in it; the least recently used go first.
    pub max_size: Size,
}

/// Whether fetched files are kept for other tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Every task fetches for itself.
    Off,
    /// What is there is used, nothing is added.
    ReadOnly,
    /// What is fetched is kept.
    ReadWrite,
}

/// Who is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM certificates trusted beside the system's; empty: none. `REQUESTS_CA_BUNDLE` sets it.
    pub ca_file: PathBuf,
}
