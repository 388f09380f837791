//! The `[docker]` table of the settings. Every default stands in `config/longshore.toml`.

use std::path::PathBuf;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::units::{Size, Span};

/// How containers are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `unix:///path`, `tcp://host:port` or `http://host:port`; empty finds the local Docker or Podman. `DOCKER_HOST` sets it.
    pub host: String,
    /// How long one request to the engine may take. `DOCKER_CLIENT_TIMEOUT` sets it, in seconds.
    pub client_timeout: Span,
    /// The network of containers whose task names none: `auto` is the worker's own user-defined one when it runs in a
    /// container, else the engine's default; empty is the engine's default; anything else is the name of a network.
    pub network: String,
    /// How long an image may take to arrive, all tries together.
    pub pull_timeout: Span,
    /// How often a pull is tried.
    pub pull_attempts: u32,
    /// Whether `pull = "always"` runs the local image when the registry cannot be reached.
    pub fall_back_to_local: bool,
    /// The folder of Docker's `config.json` with registry logins; empty is `~/.docker`. `DOCKER_CONFIG` sets it.
    pub config_dir: PathBuf,
    /// How long a container may take to end after its stop signal before it is killed.
    pub stop_grace: Span,
    /// The longest line of output; longer ones are told in pieces.
    pub line_max: Size,
    /// The engine's own log of each container, for `docker logs` and for taking containers over.
    pub log: LogDriver,
    /// The image that removes files which the worker may not remove itself; empty is the task's own.
    pub cleaner_image: String,
    /// docker-py keywords for every container whose task does not name them. `GIRDER_WORKER_DOCKER_RUN_OPTIONS` sets them.
    pub default_options: IndexMap<String, Value>,
    /// How often containers without an attempt are looked for.
    pub reap_every: Span,
    /// How old such a container must be before it is removed.
    pub reap_grace: Span,
    /// How long an engine that went away under a running container is waited for.
    pub engine_patience: Span,
}

/// The engine's own log of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogDriver {
    /// Its driver; empty is the engine's default.
    pub driver: String,
    /// The driver's options.
    pub options: IndexMap<String, String>,
}
