//! What a container took: its processor time and the most memory it held, as the kernel counted them.
//!
//! # Decisions
//! - Read once, from the files of the container's control group, at the moment its first process ends: the kernel tells of
//!   that through the process's descriptor, and the engine takes the group away some milliseconds later, before it tells of
//!   the end itself. It costs neither a request to the engine nor a look at a running container.
//! - Both are therefore given where they can be had: not of a container that ends before its start is answered, from an
//!   engine on another machine, where the worker's own container hides the groups, or with a parent group of the task's own.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::events::Reporter;

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Waits for the end of the container `id`, or until `ended` is canceled, and adds what it took to what `report` tells.
pub(super) async fn meter(id: &str, report: &Reporter, ended: &CancellationToken) {
    let mount = Path::new(MOUNT);
    let Some((group, first)) = find(mount, id) else { return };
    let Ok(process) = pidfd_open(first, PidfdFlags::empty()).map_err(std::io::Error::from).and_then(readable)
    else {
        return;
    };
    tokio::select! {
        biased;
        _ = process.readable() => {}
        () = ended.cancelled() => {}
    }
    Usage::of(mount, &group).tell(report);
}

/// Lets the runtime tell when the process has ended.
#[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned and never changed")]
fn readable(process: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(process, Interest::READABLE)
}

/// The control group of the container `id`, below the mount or one of its controllers', and its first process.
fn find(mount: &Path, id: &str) -> Option<(PathBuf, Pid)> {
    // It becomes part of a path.
    if !id.chars().all(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    groups(id).into_iter().find_map(|group| {
        let listed = ["", "cpuacct"].iter().find_map(|controller| {
            std::fs::read_to_string(mount.join(controller).join(&group).join("cgroup.procs")).ok()
        })?;
        // Those of another pid namespace are listed as 0.
        let first = listed.lines().filter_map(|line| line.parse().ok()).min().and_then(Pid::from_raw)?;
        Some((group, first))
    })
}

/// Where Docker and Podman put the group of a container, with either of their drivers.
fn groups(id: &str) -> [PathBuf; 4] {
    [
        PathBuf::from("docker").join(id),
        PathBuf::from(format!("system.slice/docker-{id}.scope")),
        PathBuf::from(format!("machine.slice/libpod-{id}.scope")),
        PathBuf::from(format!("libpod_parent/libpod-{id}")),
    ]
}

/// What a container took. Absent is what the kernel did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    cpu: Option<Duration>,
    /// Bytes, page cache included.
    peak_memory: Option<u64>,
}

impl Usage {
    fn tell(self, report: &Reporter) {
        if self == Self::default() {
            return;
        }
        report.describe(|details| {
            let cpu = self.cpu.map(|cpu| cpu.as_secs_f64());
            details.cpu_seconds = cpu.or(details.cpu_seconds);
            details.peak_memory = self.peak_memory.max(details.peak_memory);
        });
    }

    fn of(mount: &Path, group: &Path) -> Self {
        let read = |controller: &str, file: &str| {
            std::fs::read_to_string(mount.join(controller).join(group).join(file)).ok()
        };
        let number = |text: String| text.trim().parse::<u64>().ok();
        // Version 2 has one tree, version 1 one for each controller.
        let unified = read("", "cpu.stat").and_then(|stat| {
            let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            line.trim().parse().ok().map(Duration::from_micros)
        });
        let cpu =
            unified.or_else(|| read("cpuacct", "cpuacct.usage").and_then(number).map(Duration::from_nanos));
        let peak_memory =
            read("", "memory.peak").or_else(|| read("memory", "memory.max_usage_in_bytes")).and_then(number);
        Self { cpu, peak_memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        mount
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let first = written(&[
            ("cpuacct/docker/ab12/cgroup.procs", "77\n12\n"),
            ("cpuacct/docker/ab12/cpuacct.usage", "1500000000\n"),
            ("memory/docker/ab12/memory.max_usage_in_bytes", "4096\n"),
        ]);
        let second = written(&[
            ("system.slice/docker-ab12.scope/cgroup.procs", "12\n"),
            ("system.slice/docker-ab12.scope/cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
            ("system.slice/docker-ab12.scope/memory.peak", "4096\n"),
        ]);
        let both = Usage { cpu: Some(Duration::from_millis(1_500)), peak_memory: Some(4_096) };
        for mount in [first, second] {
            let (group, process) = find(mount.path(), "ab12").unwrap();
            assert_eq!((Usage::of(mount.path(), &group), process), (both, Pid::from_raw(12).unwrap()));
        }
    }

    #[test]
    fn what_is_not_there_or_no_number_is_left_out() {
        let old_kernel = written(&[
            ("docker/ab12/cgroup.procs", "12\n"),
            ("docker/ab12/cpu.stat", "usage_usec 7\n"),
            ("docker/ab12/memory.peak", "max\n"),
            ("docker/empty/cgroup.procs", ""),
            ("docker/hidden/cgroup.procs", "0\n0\n"),
        ]);
        let (group, _) = find(old_kernel.path(), "ab12").unwrap();
        let half = Usage { cpu: Some(Duration::from_micros(7)), peak_memory: None };
        assert_eq!(Usage::of(old_kernel.path(), &group), half);
        for id in ["ffff", "empty", "hidden", "../docker/ab12"] {
            assert_eq!(find(old_kernel.path(), id), None, "{id}");
        }
    }
}
