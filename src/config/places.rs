//! Defaults that depend on the machine and the user: folders, names, the number of processors.

use std::path::{Path, PathBuf};

use super::celery;
use super::layers::Sources;
use super::problem::Problem;
use super::types::{Address, Settings};

/// Least number of tasks that are prepared ahead.
const LEAST_AHEAD: usize = 2;

/// Fills in what the settings leave to the machine.
pub(super) fn resolve(settings: &mut Settings, sources: &Sources) -> Result<(), Problem> {
    if settings.state_dir.as_os_str().is_empty() {
        settings.state_dir = state_dir(sources)?;
    }
    // Containers get these paths: relative ones would mean something else to the engine.
    settings.state_dir = absolute(&settings.state_dir);
    if settings.work_dir.as_os_str().is_empty() {
        settings.work_dir = settings.state_dir.join("work");
    }
    settings.work_dir = absolute(&settings.work_dir);
    let cache = &mut settings.girder.cache.folder;
    *cache = if cache.as_os_str().is_empty() { settings.state_dir.join("cache") } else { absolute(cache) };
    if settings.brokers.is_empty() {
        let file = settings.state_dir.join("longshore.db");
        settings.brokers = vec![Address::new(format!("sqlite://{}", file.display()))];
    }
    if settings.store.is_empty() {
        settings.store = store_beside(&settings.brokers[0], settings);
    }
    let speaks_celery = celery::is_spoken(&settings.brokers[0]);
    let worker = &mut settings.worker;
    if speaks_celery && worker.queues == ["default"] {
        worker.queues = vec!["celery".to_owned()];
    }
    if worker.name.is_empty() {
        worker.name = host_name()?;
    }
    if worker.concurrency == 0 {
        worker.concurrency = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    }
    if worker.staging_ahead == 0 {
        worker.staging_ahead = worker.concurrency.max(LEAST_AHEAD);
    }
    Ok(())
}

/// Where the records of workers are whose first broker is `broker`, unless the settings name a store.
pub fn store_beside(broker: &Address, settings: &Settings) -> Address {
    if let Some(same_server) = celery::store(broker) {
        return same_server;
    }
    let speaks_celery = celery::is_spoken(broker);
    let results = &settings.celery.result_backend;
    match results.expose().split(':').next() {
        Some("redis" | "rediss") if speaks_celery => results.clone(),
        // RabbitMQ keeps no records.
        _ if speaks_celery => {
            Address::new(format!("sqlite://{}", settings.state_dir.join("longshore.db").display()))
        }
        _ => broker.clone(),
    }
}

fn state_dir(sources: &Sources) -> Result<PathBuf, Problem> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/longshore"));
    }
    let variable = |name: &str| sources.variable(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("longshore"))
        .ok_or_else(|| Problem::Default {
            key: "state_dir",
            reason: "neither XDG_STATE_HOME nor HOME is set".to_owned(),
        })
}

fn host_name() -> Result<String, Problem> {
    let refused = |reason: String| Problem::Default { key: "worker.name", reason };
    let name = nix::unistd::gethostname().map_err(|error| refused(error.to_string()))?;
    name.into_string().map_err(|name| refused(format!("the host's name {} is no text", name.display())))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
