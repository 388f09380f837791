//! Which parts of the host a container may see, and what is remembered to compare after its start.
//!
//! Every source is judged twice, by the path that was given and by where its links lead now, and its device and inode
//! are handed back: Docker follows links again at the start, so [`MountIdentity`] is compared with what the started
//! container really has.
//!
//! # Decisions
//! - A path that *holds* a denied one is denied like one below it: a mount of `/var` shows `/var/lib/docker`.
//! - What cannot be followed (no permission, a loop) is denied, unless the rules deny nothing at all.

use std::fmt;
use std::path::{Path, PathBuf};

use bollard::models::{HostConfig, Mount, MountType};
use serde::{Deserialize, Serialize};

use super::denied::quoted;
use super::path::{HostFiles, Resolved, clean};
use super::terms::TermError;
use super::{Judging, image};

/// A path at or below which host paths may be mounted: `/data`, or `/data:ro` for reading only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root {
    path: PathBuf,
    access: Access,
}

/// What a mount may do, or wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Root {
    /// The whole file system.
    pub fn whole() -> Self {
        Self { path: PathBuf::from("/"), access: Access::Write }
    }
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
    fn holds(&self, real: &Path, access: Access, files: HostFiles) -> bool {
        real.starts_with(files.real(&self.path)) && (self.access == Access::Write || access == Access::Read)
    }
}

impl TryFrom<String> for Root {
    type Error = TermError;
    fn try_from(text: String) -> Result<Self, TermError> {
        let (path, access) = match text.rsplit_once(':') {
            Some((path, "ro")) => (path, Access::Read),
            Some((path, "rw")) => (path, Access::Write),
            _ => (text.as_str(), Access::Write),
        };
        if !path.starts_with('/') || path.contains(':') {
            return Err(TermError::new(text, "write an absolute path such as \"/data\" or \"/data:ro\""));
        }
        Ok(Self { path: clean(Path::new(path)), access })
    }
}
impl From<Root> for String {
    fn from(root: Root) -> String {
        root.to_string()
    }
}
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.access == Access::Read { ":ro" } else { "" };
        write!(f, "{}{suffix}", self.path.display())
    }
}

/// A path of which no part may be mounted; `*` at its end stands for any rest of the last name. `/` is itself only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeniedPath(String);

impl DeniedPath {
    /// Whether a mount of `path` would show something of this one.
    fn concerns(&self, path: &Path, files: HostFiles) -> bool {
        let Some(stem) = self.0.strip_suffix('*') else {
            let own = Path::new(&self.0);
            return overlaps(own, path) || overlaps(&files.real(own), path);
        };
        let (folder, start) = stem.rsplit_once('/').unwrap_or(("", stem));
        let folder = Path::new(if folder.is_empty() { "/" } else { folder });
        match path.strip_prefix(folder).map(|rest| rest.components().next()) {
            Ok(Some(first)) => first.as_os_str().to_string_lossy().starts_with(start),
            Ok(None) => true,
            Err(_) => folder.starts_with(path),
        }
    }
}

/// Whether one path lies in the other. The root holds everything, so only the root itself is meant by it.
fn overlaps(denied: &Path, path: &Path) -> bool {
    if denied == Path::new("/") {
        path == denied
    } else {
        path.starts_with(denied) || denied.starts_with(path)
    }
}

impl TryFrom<String> for DeniedPath {
    type Error = TermError;
    fn try_from(text: String) -> Result<Self, TermError> {
        let stem = text.strip_suffix('*').unwrap_or(&text);
        if !text.starts_with('/')
            || stem.contains('*')
            || clean(Path::new(stem)) != Path::new(stem) && stem != text
        {
            return Err(TermError::new(text, "write an absolute path such as \"/etc\" or \"/lib*\""));
        }
        let path = if stem == text { clean(Path::new(&text)).display().to_string() } else { text };
        Ok(Self(path))
    }
}
impl From<DeniedPath> for String {
    fn from(path: DeniedPath) -> String {
        path.0
    }
}

/// What a mounted path was when it was judged; the container that was started must show the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountIdentity {
    /// The path on the host as it was given.
    pub source: PathBuf,
    /// The path in the container.
    pub target: String,
    /// Device and inode of what it led to.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
}

/// A host path that led elsewhere when the container started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host path {source_path} was replaced between its check and the container's start: the container was stopped"
)]
pub struct MountSwapped {
    source_path: String,
}

impl MountIdentity {
    /// Compares with what the started container has at its target.
    pub fn compare(&self, device: u64, inode: u64) -> Result<(), MountSwapped> {
        if (device, inode) == (self.device, self.inode) {
            Ok(())
        } else {
            Err(MountSwapped { source_path: self.source.display().to_string() })
        }
    }
}

/// Judges every way in which a container can see something that is not its own.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let Some(host) = judging.host else { return };
    judge_binds(judging, host);
    for mount in host.mounts.iter().flatten() {
        judge_mount(judging, mount);
    }
    for folder in judging.request.written {
        judge_path(judging, folder, None, Access::Write, "host folder");
    }
    let containers = host.volumes_from.as_deref().unwrap_or_default();
    if !containers.is_empty() && !judging.rules().volumes_from {
        judging.deny("volumes_from", format!("volumes_from={}", quoted(&containers.join(", "))));
    }
    if let Some(driver) = host.volume_driver.as_deref().filter(|driver| !driver.is_empty()) {
        judge_driver(judging, driver);
    }
}

/// `source:target[:mode]`, `name:target[:mode]` or `target`.
fn judge_binds(judging: &mut Judging<'_>, host: &HostConfig) {
    for bind in host.binds.iter().flatten() {
        let parts: Vec<&str> = bind.split(':').collect();
        let (source, target, mode) = match parts[..] {
            [_] => continue,
            [source, target] => (source, target, ""),
            [source, target, mode] => (source, target, mode),
            _ => {
                judging.deny("binds.roots", format!("bind {} of more than three parts", quoted(bind)));
                continue;
            }
        };
        if source.starts_with('/') {
            let access = if mode.split(',').any(|word| word == "ro") { Access::Read } else { Access::Write };
            judge_path(judging, Path::new(source), Some(target), access, "bind");
        } else {
            judge_named(judging, source);
        }
    }
}

fn judge_mount(judging: &mut Judging<'_>, mount: &Mount) {
    let source = mount.source.as_deref().unwrap_or_default();
    let target = mount.target.as_deref().unwrap_or_default();
    match mount.typ {
        Some(MountType::TMPFS) => {}
        Some(MountType::IMAGE) => image::judge_name(judging, source, "image mount"),
        Some(MountType::VOLUME) if !source.starts_with('/') => {
            if !source.is_empty() {
                judge_named(judging, source);
            }
            let driver = mount.volume_options.as_ref().and_then(|options| options.driver_config.as_ref());
            if let Some(driver) = driver {
                let name = driver.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("local");
                judge_driver(judging, name);
                let options = driver.options.as_ref().is_some_and(|options| !options.is_empty());
                if options && !judging.rules().volume_drivers.is_any() {
                    judging.deny("volume_drivers", format!("options of volume driver {}", quoted(name)));
                }
            }
        }
        Some(MountType::BIND | MountType::VOLUME) | None => {
            let access = if mount.read_only == Some(true) { Access::Read } else { Access::Write };
            judge_path(judging, Path::new(source), Some(target), access, "mount");
        }
        Some(kind @ (MountType::CLUSTER | MountType::NPIPE)) => {
            if !judging.rules().fields.is_any() {
                judging.deny("fields", format!("mount of type {kind}"));
            }
        }
    }
}

fn judge_named(judging: &mut Judging<'_>, name: &str) {
    if !judging.rules().named_volumes.matches(name) {
        judging.deny("named_volumes", format!("volume {}", quoted(name)));
    }
}

fn judge_driver(judging: &mut Judging<'_>, driver: &str) {
    if !judging.rules().volume_drivers.matches(driver) {
        judging.deny("volume_drivers", format!("volume driver {}", quoted(driver)));
    }
}

fn judge_path(judging: &mut Judging<'_>, source: &Path, target: Option<&str>, access: Access, role: &str) {
    let (binds, files) = (&judging.rules().binds, judging.files);
    let asked = format!("{role} {}", quoted(&source.to_string_lossy()));
    let limited = binds.protect_worker
        || !binds.denied.is_empty()
        || !binds.roots.iter().any(|root| root.holds(Path::new("/"), Access::Write, files));
    if limited && !source.is_absolute() {
        return judging.deny("binds.roots", format!("{asked}, which is no absolute path,"));
    }
    let resolved = match files.resolve(source) {
        Ok(resolved) => resolved,
        Err(error) if limited => {
            return judging
                .deny("binds.denied", format!("{asked}, which cannot be followed here ({error}),"));
        }
        Err(_) => return,
    };
    if !judging.request.made.iter().any(|made| made == source) {
        judge_resolved(judging, &resolved, &asked, access);
    }
    if let (Some(target), Some((device, inode))) = (target, resolved.identity) {
        judging.mounts.push(MountIdentity {
            source: source.to_owned(),
            target: target.to_owned(),
            device,
            inode,
        });
    }
}

fn judge_resolved(judging: &mut Judging<'_>, resolved: &Resolved, asked: &str, access: Access) {
    let (binds, files) = (&judging.rules().binds, judging.files);
    let led = if resolved.real == resolved.given {
        String::new()
    } else {
        format!(", which leads to {},", quoted(&resolved.real.to_string_lossy()))
    };
    let wants = if access == Access::Write { " for writing" } else { "" };
    let in_root = binds.roots.iter().any(|root| root.holds(&resolved.real, access, files));
    let concerned =
        |path: &DeniedPath| path.concerns(&resolved.given, files) || path.concerns(&resolved.real, files);
    let denied = binds.denied.iter().find(|path| concerned(path)).cloned();
    let protected = binds.protect_worker.then(|| {
        judging
            .protected
            .iter()
            .find(|path| overlaps(path, &resolved.given) || overlaps(&files.real(path), &resolved.real))
    });
    let protected = protected.flatten().map(|path| path.display().to_string());
    if !in_root {
        judging.deny("binds.roots", format!("{asked}{led}{wants}"));
    }
    if let Some(path) = denied {
        judging.deny_with("binds.denied", format!("{asked}{led}"), format!("[…, {:?}, …]", path.0));
    } else if let Some(path) = protected {
        judging.deny("binds.protect_worker", format!("{asked}{led}, of which {path} is the worker's own,"));
    }
}
