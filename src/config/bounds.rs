//! What values must keep beyond their type, so that no worker starts with settings under which it cannot work.

use super::celery;
use super::types::Settings;
use crate::units::Span;

/// A rule for one setting.
pub(super) struct Bound {
    pub(super) key: &'static str,
    /// Reads after "must be".
    pub(super) wants: &'static str,
    pub(super) holds: fn(&Settings) -> bool,
}

const fn bound(key: &'static str, wants: &'static str, holds: fn(&Settings) -> bool) -> Bound {
    Bound { key, wants, holds }
}

const SECOND: Span = Span::seconds(1);

/// Every rule, in the order of the template.
pub(super) const BOUNDS: &[Bound] = &[
    bound("connect_timeout", "more than 0", |s| s.connect_timeout > Span::seconds(0)),
    bound("worker.queues", "a list of at least one queue", |s| !s.worker.queues.is_empty()),
    bound(
        "worker.queues",
        "without \"local\" on AMQP and on Celery's Redis: Girder itself runs what it puts there, which needs its Python; leave that queue to a Python worker",
        |s| {
            let speaks_celery = s.brokers.iter().any(celery::is_spoken);
            !speaks_celery || s.worker.queues.iter().all(|queue| queue != "local")
        },
    ),
    bound("worker.lease", "at least 1s: workers prolong it at a third of it", |s| s.worker.lease >= SECOND),
    bound("worker.poison_limit", "at least 1", |s| s.worker.poison_limit >= 1),
    bound("worker.presence_interval", "at least 1s", |s| s.worker.presence_interval >= SECOND),
    bound("worker.upkeep_interval", "at least 1s", |s| s.worker.upkeep_interval >= SECOND),
    bound("worker.disk_high_water", "more than 0 and at most 1", |s| {
        s.worker.disk_high_water > 0.0 && s.worker.disk_high_water <= 1.0
    }),
    bound("resources.cpus", "0 or more", |s| s.resources.cpus.is_finite() && s.resources.cpus >= 0.0),
    bound("retry.max_attempts", "at least 1 (1: no second attempt)", |s| s.retry.max_attempts >= 1),
    bound("events.chatter_per_second", "more than 0", |s| {
        s.events.chatter_per_second.is_finite() && s.events.chatter_per_second > 0.0
    }),
    bound("message.max_bytes", "at least 1KiB", |s| s.message.max_bytes.bytes() >= 1 << 10),
    bound("message.max_depth", "at least 8", |s| s.message.max_depth >= 8),
    bound("message.max_nodes", "at least 100", |s| s.message.max_nodes >= 100),
    bound("girder.connect_timeout", "more than 0", |s| s.girder.connect_timeout > Span::seconds(0)),
    bound("girder.stall_timeout", "at least 1s", |s| s.girder.stall_timeout >= SECOND),
    bound("girder.job_look", "at least 1s", |s| s.girder.job_look >= SECOND),
    bound("girder.parallel_downloads", "at least 1", |s| s.girder.parallel_downloads >= 1),
    bound("girder.parallel_uploads", "at least 1", |s| s.girder.parallel_uploads >= 1),
    bound("girder.upload_chunk", "at least 5MiB", |s| s.girder.upload_chunk.bytes() >= 5 << 20),
    bound("girder.max_depth", "at least 1", |s| s.girder.max_depth >= 1),
    bound("girder.direct_paths", "a list of absolute folders", |s| {
        s.girder.direct_paths.iter().all(|folder| folder.is_absolute())
    }),
];
