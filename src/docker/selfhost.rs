//! A worker that itself runs in a container: which one, where its files are on the engine's host, and its network.
//!
//! The engine mounts paths of its host. What the pipeline makes is therefore named as the host names it; what a task asks
//! for (`BindMountVolume`) is the host's own path already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::engine::{EngineError, Inspected, Survey};
use crate::error::TaskError;

/// The container that the worker runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Housing {
    /// Path in the worker's container → path on the engine's host.
    mounts: BTreeMap<PathBuf, PathBuf>,
    /// The user-defined network that it is on.
    network: Option<String>,
}

/// The networks that every engine has and on which no names resolve.
const BUILT_IN: &[&str] = &["bridge", "host", "none", "podman"];

impl Housing {
    /// Finds out whether this process runs in a container of this engine. Asks the engine only when it may.
    pub(super) async fn find(engine: &(impl Survey + ?Sized)) -> Result<Option<Self>, EngineError> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let named = container_id(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let Some(id) = named.or_else(container_name) else { return Ok(None) };
        Ok(engine.inspect(&id).await?.map(|found| Self::of(&found)))
    }

    /// What the engine says of the worker's container.
    fn of(found: &Inspected) -> Self {
        let mounts = found.mounts.iter().map(|(inside, host)| (inside.into(), host.into())).collect();
        let network = found.networks.iter().filter(|name| !BUILT_IN.contains(&name.as_str())).min().cloned();
        Self { mounts, network }
    }

    /// The user-defined network that the worker is on.
    pub(super) fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// How the engine's host names a path of the worker's.
    pub(super) fn host_path(&self, path: &Path) -> Result<PathBuf, TaskError> {
        let nearest = self
            .mounts
            .iter()
            .filter_map(|(inside, host)| Some((inside, host, path.strip_prefix(inside).ok()?)))
            .max_by_key(|(inside, ..)| inside.components().count());
        match nearest {
            Some((_, host, rest)) if rest.as_os_str().is_empty() => Ok(host.clone()),
            Some((_, host, rest)) => Ok(host.join(rest)),
            None => Err(TaskError::retryable(
                "path_not_shared",
                format!(
                    "the worker runs in a container and {} is not on a volume of it, so no other container can see it; \
                     mount a host folder into the worker's container and set work_dir to a folder in it",
                    path.display()
                ),
            )),
        }
    }
}

/// The id in what the kernel says of this process: of the files that engines mount into each container, else of its
/// control group.
fn container_id(mountinfo: &str, cgroup: &str) -> Option<String> {
    const GIVEN: &[&str] = &["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
    let mounted = mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if GIVEN.contains(&point) { root.split('/').find_map(as_id) } else { None }
    });
    mounted.or_else(|| cgroup.lines().find_map(|line| line.rsplit('/').find_map(as_id)))
}

/// A part of a path as an id: `<id>`, `docker-<id>.scope`, `libpod-<id>.scope`.
fn as_id(part: &str) -> Option<String> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let part = part.rsplit('-').next().unwrap_or(part);
    (part.len() == 64 && part.chars().all(|c| c.is_ascii_hexdigit())).then(|| part.to_owned())
}

/// The start of the id as the host name that engines give containers.
fn container_name() -> Option<String> {
    let marked = ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
    let name = std::fs::read_to_string("/etc/hostname").ok().filter(|_| marked)?;
    let name = name.trim();
    (name.len() == 12 && name.chars().all(|c| c.is_ascii_hexdigit())).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1396512fa44aa2ca4ace7d07a53be27db971c80174eaa26f8daf6ca8f6cc0190";

    #[test]
    fn docker_mounts_tell_the_container() {
        let mountinfo = format!(
            "72 48 0:39 / / rw,relatime master:2 - overlay overlay rw,upperdir=/var/lib/docker/overlay2/{}/diff\n\
             88 74 0:47 / /dev/shm rw - tmpfs shm rw\n\
             90 72 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/vda rw\n",
            "f".repeat(64)
        );
        assert_eq!(container_id(&mountinfo, "0::/\n").as_deref(), Some(ID));
    }

    #[test]
    fn podman_mounts_tell_the_container() {
        let mountinfo = format!(
            "90 72 0:25 /containers/overlay-containers/{ID}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(container_id(&mountinfo, "").as_deref(), Some(ID));
    }

    #[test]
    fn control_groups_tell_the_container_where_mounts_do_not() {
        for cgroup in [
            format!("9:name=systemd:/docker/{ID}\n0::/docker/{ID}\n"),
            format!("0::/system.slice/docker-{ID}.scope\n"),
            format!("0::/user.slice/libpod-{ID}.scope/container\n"),
        ] {
            assert_eq!(container_id("", &cgroup).as_deref(), Some(ID), "{cgroup}");
        }
    }

    #[test]
    fn a_process_on_a_host_is_in_no_container() {
        let mountinfo = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                         42 27 254:0 /var/lib/docker /var/lib/docker rw shared:1 - ext4 /dev/vda rw\n";
        assert_eq!(container_id(mountinfo, "4:memory:/process_api/08071d1ffe170cfc\n0::/\n"), None);
    }

    fn housing() -> Housing {
        // What `docker inspect` says of a worker in a Compose project.
        let mounts = [
            ("/var/lib/longshore", "/srv/longshore"),
            ("/var/lib/longshore/work", "/mnt/fast/work"),
            ("/var/run/docker.sock", "/var/run/docker.sock"),
        ];
        Housing::of(&Inspected {
            mounts: mounts.iter().map(|(inside, host)| ((*inside).to_owned(), (*host).to_owned())).collect(),
            networks: vec!["bridge".to_owned(), "girder_default".to_owned()],
            ..Inspected::default()
        })
    }

    #[test]
    fn a_path_is_named_by_the_innermost_mount_that_holds_it() {
        let host_path =
            |path: &str| housing().host_path(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(host_path("/var/lib/longshore/a/b").unwrap(), "/srv/longshore/a/b");
        assert_eq!(host_path("/var/lib/longshore/work/a").unwrap(), "/mnt/fast/work/a");
        assert_eq!(host_path("/var/lib/longshore/work").unwrap(), "/mnt/fast/work");
        let error = host_path("/var/lib/longshore2/a").unwrap_err();
        assert!(
            error.message.contains("/var/lib/longshore2/a") && error.message.contains("work_dir"),
            "{error}"
        );
    }

    #[test]
    fn the_network_is_a_user_defined_one() {
        assert_eq!(housing().network(), Some("girder_default"));
        let plain = Inspected { networks: vec!["bridge".to_owned()], ..Inspected::default() };
        assert_eq!(Housing::of(&plain).network(), None);
    }
}
