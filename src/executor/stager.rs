//! Prepares attempts ahead of the lanes, while there is disk to do it on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::Context;
use crate::broker::Disk;
use crate::cancel::CancelScope;
use crate::error::TaskError;
use crate::events::Phase;
use crate::handler::{Attempt, Handler, Staged};

/// Between two looks at a full disk.
const DISK_LOOK: Duration = Duration::from_secs(5);

/// Prepares `attempt`. A panic of the handler fails the attempt, not the worker.
pub(super) async fn stage(handler: &dyn Handler, attempt: &Attempt) -> Result<Box<dyn Staged>, TaskError> {
    let staging = AssertUnwindSafe(handler.stage(attempt.clone())).catch_unwind();
    match staging.await {
        Ok(Ok(staged)) => {
            attempt.report().reached(Phase::Staged);
            Ok(staged)
        }
        Ok(Err(error)) => Err(error),
        Err(panic) => Err(super::lane::panicked(&*panic)),
    }
}

/// Waits while the file system of the work folder is too full. `false`: `stop` ended first.
pub(super) async fn disk_has_room(context: &Arc<Context>, stop: &CancelScope) -> bool {
    let settings = &context.settings;
    let mut told = false;
    loop {
        let Some(used) = disk_used(&settings.work_dir) else { return true };
        if used <= settings.disk_high_water {
            if told {
                tracing::info!("there is disk again: intake goes on");
            }
            return true;
        }
        if !told {
            told = true;
            tracing::warn!(
                folder = %settings.work_dir.display(),
                used = format!("{:.0}%", used * 100.0),
                "intake pauses until there is disk again: free some, or raise worker.disk_high_water"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(DISK_LOOK) => {}
            _ = stop.canceled() => return false,
        }
    }
}

/// The file system of `folder`; `None` where that cannot be told.
pub(super) fn disk(folder: &std::path::Path) -> Option<Disk> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    let block = found.fragment_size();
    Some(Disk {
        path: folder.display().to_string(),
        total: block.saturating_mul(found.blocks()),
        free: block.saturating_mul(found.blocks_available()),
    })
}

/// Whether intake pauses for want of disk.
pub(super) fn is_short_of_disk(settings: &super::Settings) -> bool {
    disk_used(&settings.work_dir).is_some_and(|used| used > settings.disk_high_water)
}

/// Share of the file system of `folder` that is used; `None` where that cannot be told.
fn disk_used(folder: &std::path::Path) -> Option<f64> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    // As `df` counts: what only root may use is neither used nor free.
    let used = found.blocks().saturating_sub(found.blocks_free());
    let usable = used + found.blocks_available();
    #[expect(clippy::cast_precision_loss, reason = "a share needs no exact block counts")]
    let share = used as f64 / usable.max(1) as f64;
    Some(share)
}
