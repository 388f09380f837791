//! What this machine has for tasks to share.

use crate::broker::Pool;
use crate::config::types::Resources;
use crate::docker::gpu;
use crate::units::Size;

/// What tasks share: what the settings say, else the machine's.
pub fn pool(resources: &Resources) -> Pool {
    let cpus = if resources.cpus > 0.0 { resources.cpus } else { processors() };
    let memory =
        if resources.memory == Size(0) { memory().unwrap_or(u64::MAX) } else { resources.memory.bytes() };
    let gpus = match resources.gpus.as_slice() {
        [only] if only == "auto" => gpu::found(),
        listed => listed.to_vec(),
    };
    let platform = format!("linux/{}", architecture());
    Pool { cpus, memory, gpus, platform, custom: resources.custom.clone() }
}

/// The machine's processors.
pub fn processors() -> f64 {
    let found = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[expect(clippy::cast_precision_loss, reason = "no machine has that many processors")]
    let processors = found as f64;
    processors
}

/// The machine's memory in bytes, where the kernel tells it.
pub fn memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// The machine's architecture in Docker's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
