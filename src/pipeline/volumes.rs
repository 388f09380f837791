//! The volumes of one attempt: which mentions are one volume, and where each lies on the host and in the container.
//! Called by `staging`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::made::{Made, MadeVolume};
use super::workspace::Workspace;
use super::{Cleaner, Mount, MountKind, MountMode};
use crate::error::TaskError;
use crate::handler::Attempt;
use crate::task::transform::{TemporaryVolume, Volume};

/// Below it every temporary volume is mounted, as `girder_worker` has it.
const MOUNT_PREFIX: &str = "/mnt/girder_worker";
/// Permission bits of a volume that asks for none: any user of the container may write.
const OPEN_TO_THE_CONTAINER: u32 = 0o777;

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// On the host.
    pub host: PathBuf,
    /// In the container.
    pub container: String,
}

/// The volumes of one attempt.
pub(super) struct Volumes {
    described: BTreeMap<String, TemporaryVolume>,
    known: Vec<(Volume, Mounted)>,
    asked: Vec<Mount>,
    /// One for each base folder.
    workspaces: Vec<(PathBuf, Workspace)>,
    folders: usize,
}

impl Volumes {
    /// No volumes yet, but a workspace below `work_dir`. `mentioned` are all volumes that the request names anywhere.
    pub(super) fn new(attempt: &Attempt, work_dir: &Path, mentioned: &[Volume]) -> Result<Self, TaskError> {
        let described = describe(mentioned)?;
        let workspace = Workspace::make(work_dir, attempt)?;
        let workspaces = vec![(work_dir.to_owned(), workspace)];
        Ok(Self { described, known: Vec::new(), asked: Vec::new(), workspaces, folders: 0 })
    }

    /// The volumes that an earlier process of the worker made for `attempt`.
    pub(super) fn adopted(attempt: &Attempt, made: &Made, mentioned: &[Volume]) -> Result<Self, TaskError> {
        let open = |base: &PathBuf| Ok((base.clone(), Workspace::open(base, attempt)?));
        let workspaces: Vec<_> = made.bases.iter().map(open).collect::<Result<_, TaskError>>()?;
        if workspaces.is_empty() {
            return Err(TaskError::retryable("not_adopted", "the attempt had no workspace"));
        }
        let known = made.volumes.iter().map(|volume| {
            let mounted = Mounted { host: volume.host.clone(), container: volume.container.clone() };
            (volume.volume.clone(), mounted)
        });
        let folders = made.folders;
        Ok(Self {
            described: describe(mentioned)?,
            known: known.collect(),
            asked: Vec::new(),
            workspaces,
            folders,
        })
    }

    /// What was made, for a later process.
    pub(super) fn made(&self) -> Made {
        let volumes = self.known.iter().map(|(volume, mounted)| MadeVolume {
            volume: volume.clone(),
            host: mounted.host.clone(),
            container: mounted.container.clone(),
        });
        let bases = self.workspaces.iter().map(|(base, _)| base.clone());
        Made { volumes: volumes.collect(), bases: bases.collect(), folders: self.folders }
    }

    /// Lets go of every folder: all stay where they are.
    pub(super) fn leave(self) {
        for (_, workspace) in self.workspaces {
            workspace.leave();
        }
    }

    /// The workspace in the worker's own work_dir.
    pub(super) fn workspace(&self) -> &Workspace {
        &self.workspaces[0].1
    }

    /// Where `volume` lies; made and mounted when it is mentioned for the first time.
    pub(super) fn get(&mut self, attempt: &Attempt, volume: &Volume) -> Result<Mounted, TaskError> {
        let volume = match volume {
            Volume::TemporaryVolume(TemporaryVolume { id: Some(id), .. }) => {
                Volume::TemporaryVolume(self.described.get(id).cloned().unwrap_or_default())
            }
            other => other.clone(),
        };
        if let Some((_, mounted)) = self.known.iter().find(|(known, _)| *known == volume) {
            return Ok(mounted.clone());
        }
        let (mounted, mode, kind) = match &volume {
            Volume::BindMountVolume(bind) => {
                let host = real_path(Path::new(&bind.host_path), |path| path.canonicalize().ok());
                let mounted = Mounted { host, container: bind.container_path.clone() };
                (mounted, MountMode::parse(&bind.mode), MountKind::AskedBind)
            }
            Volume::TemporaryVolume(temporary) => {
                let host = self.make(attempt, temporary)?;
                let container = format!("{MOUNT_PREFIX}/{}", Uuid::now_v7().simple());
                (Mounted { host, container }, MountMode::ReadWrite, MountKind::Folder)
            }
        };
        self.asked.push(Mount {
            source: mounted.host.clone(),
            target: mounted.container.clone(),
            mode,
            kind,
        });
        self.known.push((volume, mounted.clone()));
        Ok(mounted)
    }

    /// Everything to mount so far.
    pub(super) fn mounts(&self) -> &[Mount] {
        &self.asked
    }

    /// Removes every folder that was made.
    pub(super) async fn remove(&mut self, cleaner: &dyn Cleaner) -> Result<(), TaskError> {
        let mut first = Ok(());
        for (_, workspace) in self.workspaces.iter_mut().rev() {
            let removed = workspace.remove(cleaner).await;
            first = first.and(removed);
        }
        first
    }

    fn make(&mut self, attempt: &Attempt, volume: &TemporaryVolume) -> Result<PathBuf, TaskError> {
        let mode = volume.mode.unwrap_or(OPEN_TO_THE_CONTAINER);
        let name = format!("volume-{}", self.folders);
        self.folders += 1;
        let at = match &volume.host_dir {
            None => 0,
            Some(host_dir) => self.workspace_in(attempt, Path::new(host_dir))?,
        };
        // A mode that locks the worker out of its own folder would only keep transforms from filling it.
        self.workspaces[at].1.folder(&name, mode | 0o700).map(|(path, _)| path)
    }

    /// The index of the workspace below `base`, which is made when it does not exist.
    fn workspace_in(&mut self, attempt: &Attempt, base: &Path) -> Result<usize, TaskError> {
        if !base.is_absolute() {
            return Err(TaskError::permanent(
                "bad_argument",
                format!("TemporaryVolume.host_dir is {}; it must be an absolute path", base.display()),
            ));
        }
        if let Some(at) = self.workspaces.iter().position(|(known, _)| known == base) {
            return Ok(at);
        }
        std::fs::create_dir_all(base).map_err(|error| {
            TaskError::permanent(
                "bad_argument",
                format!("TemporaryVolume.host_dir: cannot make {}: {error}; name a folder that the worker may write to", base.display()),
            )
        })?;
        self.workspaces.push((base.to_owned(), Workspace::make(base, attempt)?));
        Ok(self.workspaces.len() - 1)
    }
}

/// What each id stands for: a mention may leave out what another one says, but two may not differ.
fn describe(mentioned: &[Volume]) -> Result<BTreeMap<String, TemporaryVolume>, TaskError> {
    let mut described: BTreeMap<String, TemporaryVolume> = BTreeMap::new();
    for volume in mentioned {
        let Volume::TemporaryVolume(volume @ TemporaryVolume { id: Some(id), .. }) = volume else { continue };
        let known = described.entry(id.clone()).or_insert_with(|| volume.clone());
        let differs = |field: &str| {
            TaskError::permanent(
                "bad_argument",
                format!(
                    "the TemporaryVolume {id:?} is mentioned with two different values of {field}; two volumes need two ids"
                ),
            )
        };
        if known.host_dir.is_some() && volume.host_dir.is_some() && known.host_dir != volume.host_dir {
            return Err(differs("host_dir"));
        }
        if known.mode.is_some() && volume.mode.is_some() && known.mode != volume.mode {
            return Err(differs("mode"));
        }
        known.host_dir = known.host_dir.take().or_else(|| volume.host_dir.clone());
        known.mode = known.mode.or(volume.mode);
    }
    Ok(described)
}

/// `/var/…` as `/private/var/…` where `/var` is a link to it: Docker on macOS shares only the real place.
fn real_path(path: &Path, resolve: impl Fn(&Path) -> Option<PathBuf>) -> PathBuf {
    let (var, real) = (Path::new("/var"), Path::new("/private/var"));
    match path.strip_prefix(var) {
        Ok(rest) if resolve(var).as_deref() == Some(real) => {
            if rest.as_os_str().is_empty() {
                real.to_owned()
            } else {
                real.join(rest)
            }
        }
        _ => path.to_owned(),
    }
}

/// The same for the folder in which the worker makes its own.
pub(super) fn real_work_dir(path: &Path) -> PathBuf {
    real_path(path, |path| path.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::transform::BindMountVolume;
    use crate::task::{ArgMap, Task};

    fn temporary(id: Option<&str>, mode: Option<u32>) -> Volume {
        Volume::TemporaryVolume(TemporaryVolume { id: id.map(str::to_owned), host_dir: None, mode })
    }

    #[test]
    fn var_is_private_var_only_where_it_is_a_link_to_it() {
        let mac = |path: &Path| Some(Path::new("/private").join(path.strip_prefix("/").unwrap()));
        let linux = |path: &Path| Some(path.to_owned());
        for (given, on_mac) in [
            ("/var/folders/x", "/private/var/folders/x"),
            ("/var", "/private/var"),
            ("/variable/x", "/variable/x"),
            ("/private/var/x", "/private/var/x"),
            ("name-of-a-volume", "name-of-a-volume"),
        ] {
            assert_eq!(real_path(Path::new(given), mac), Path::new(on_mac));
            assert_eq!(real_path(Path::new(given), linux), Path::new(given));
        }
    }

    #[test]
    fn mentions_with_one_id_are_one_volume_and_the_default_is_one() {
        let base = tempfile::tempdir().unwrap();
        let attempt = Attempt::detached(Task::new("docker_run", ArgMap::new()));
        let mentioned = [temporary(Some("a"), None), temporary(Some("a"), Some(0o750))];
        let mut volumes = Volumes::new(&attempt, base.path(), &mentioned).unwrap();
        let first = volumes.get(&attempt, &mentioned[0]).unwrap();
        assert_eq!(first, volumes.get(&attempt, &mentioned[1]).unwrap());
        let default = volumes.get(&attempt, &temporary(None, None)).unwrap();
        assert_ne!(first, default);
        assert_eq!(default, volumes.get(&attempt, &temporary(None, None)).unwrap());
        assert_eq!(volumes.mounts().len(), 2);
        let name = default.container.strip_prefix("/mnt/girder_worker/").unwrap();
        assert!(name.len() == 32 && name.chars().all(|c| c.is_ascii_hexdigit()), "{name}");
    }

    #[test]
    fn one_id_with_two_modes_is_refused() {
        let error =
            describe(&[temporary(Some("a"), Some(0o700)), temporary(Some("a"), Some(0o755))]).unwrap_err();
        assert!(error.message.contains("two different values of mode"), "{error}");
    }

    #[test]
    fn a_bind_is_mounted_as_asked() {
        let base = tempfile::tempdir().unwrap();
        let attempt = Attempt::detached(Task::new("docker_run", ArgMap::new()));
        let mut volumes = Volumes::new(&attempt, base.path(), &[]).unwrap();
        let bind = BindMountVolume {
            host_path: "/data".to_owned(),
            container_path: "/mnt/data".to_owned(),
            mode: "ro".to_owned(),
        };
        volumes.get(&attempt, &Volume::BindMountVolume(bind)).unwrap();
        let [mount] = volumes.mounts() else { panic!() };
        assert_eq!(
            (mount.target.as_str(), &mount.mode, mount.kind),
            ("/mnt/data", &MountMode::ReadOnly, MountKind::AskedBind)
        );
    }
}
