//! Where a FIFO is mounted: a plain file that stands at its path when that path lies inside another mount. Without it
//! the engine would make one itself, as root and for good, or fail where the mount is read-only. Called by `staging`.
//!
//! No component of the path is followed when it is a link: what is in a mounted folder may be another's work.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Mount, MountKind, workspace};
use crate::error::TaskError;

/// How many attempts of this worker use a target in a folder that is not ours: the last one removes it.
static IN_USE: Mutex<BTreeMap<PathBuf, usize>> = Mutex::new(BTreeMap::new());

/// The plain files that one attempt's FIFOs are mounted on.
#[derive(Default)]
pub(super) struct Targets {
    made: Vec<Made>,
}

struct Made {
    root: File,
    path: PathBuf,
    relative: PathBuf,
}

impl Targets {
    /// Makes the file for a FIFO at `target` in the container, when one of `mounts` covers that path.
    pub(super) fn make(&mut self, target: &str, mounts: &[Mount]) -> Result<(), TaskError> {
        let covering = mounts
            .iter()
            .filter(|mount| mount.kind != MountKind::Fifo && mount.source.is_absolute())
            .filter_map(|mount| Path::new(target).strip_prefix(&mount.target).ok().map(|rest| (mount, rest)))
            .min_by_key(|(_, rest)| rest.components().count());
        let Some((mount, relative)) = covering else { return Ok(()) };
        match place(&mount.source, relative) {
            Ok(root) => {
                if mount.kind != MountKind::Folder {
                    let path = mount.source.join(relative);
                    *in_use().entry(path.clone()).or_default() += 1;
                    self.made.push(Made { root, path, relative: relative.to_owned() });
                }
                Ok(())
            }
            // The engine runs as root and can do what the worker cannot; in a read-only mount neither can.
            Err(Errno::EACCES | Errno::EPERM) if mount.mode.is_writable() => Ok(()),
            Err(error) => Err(TaskError::permanent(
                "bad_pipe_path",
                format!(
                    "cannot put the pipe {} into {}: {}; choose another name or volume for it",
                    relative.display(),
                    mount.source.display(),
                    if error == Errno::ELOOP { "a part of its path is a link" } else { error.desc() }
                ),
            )),
        }
    }

    /// Removes what was made in folders that are not ours, unless another attempt still uses it or wrote to it.
    pub(super) fn remove(&mut self) {
        for made in self.made.drain(..).rev() {
            let mut in_use = in_use();
            let last = in_use.get_mut(&made.path).is_none_or(|users| {
                *users -= 1;
                *users == 0
            });
            if last {
                in_use.remove(&made.path);
                if let Err(error) = take_back(&made.root, &made.relative) {
                    tracing::debug!(path = %made.path.display(), %error, "a pipe's place is left behind");
                }
            }
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.remove();
    }
}

fn in_use() -> MutexGuard<'static, BTreeMap<PathBuf, usize>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an empty file at `relative` below `root`, with the folders above it, unless there is something to mount upon.
fn place(root: &Path, relative: &Path) -> Result<File, Errno> {
    let root = File::from(open(root, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?);
    let (folder, name) =
        descend(&root, relative, &|folder, name| match mkdirat(folder, name, Mode::S_IRWXU) {
            Ok(()) => fchmod(workspace::open_folder(folder.as_fd(), name)?, Mode::from_bits_truncate(0o777)),
            Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error),
        })?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&folder, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(_) => Ok(root),
        Err(Errno::EEXIST) => match kind(&folder, &name)? {
            SFlag::S_IFDIR => Err(Errno::EISDIR),
            SFlag::S_IFLNK => Err(Errno::ELOOP),
            _ => Ok(root),
        },
        Err(error) => Err(error),
    }
}

/// Removes an empty plain file at `relative` below `root`.
fn take_back(root: &File, relative: &Path) -> Result<(), Errno> {
    let (folder, name) = descend(root, relative, &|_, _| Ok(()))?;
    let stat = fstatat(&folder, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG && stat.st_size == 0 {
        unlinkat(&folder, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// Opens the folder that holds the last component, calling `before` for each folder on the way.
fn descend(
    root: &File,
    relative: &Path,
    before: &dyn Fn(&File, &str) -> Result<(), Errno>,
) -> Result<(File, String), Errno> {
    let mut parts: Vec<&str> = relative.to_str().ok_or(Errno::EILSEQ)?.split('/').collect();
    parts.retain(|part| !part.is_empty() && *part != ".");
    let name = parts.pop().ok_or(Errno::EISDIR)?;
    let mut folder = root.try_clone().map_err(|_| Errno::EMFILE)?;
    for part in parts {
        before(&folder, part)?;
        folder = match workspace::open_folder(folder.as_fd(), part) {
            Err(Errno::ENOTDIR) if kind(&folder, part)? == SFlag::S_IFLNK => return Err(Errno::ELOOP),
            other => other?,
        };
    }
    Ok((folder, name.to_owned()))
}

fn kind(folder: &File, name: &str) -> Result<SFlag, Errno> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::MountMode;
    use super::*;

    fn mount(source: &Path, target: &str, kind: MountKind) -> Mount {
        Mount { source: source.to_owned(), target: target.to_owned(), mode: MountMode::ReadWrite, kind }
    }

    #[test]
    fn the_innermost_mount_gets_the_file_and_it_goes_again() {
        let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounts = [
            mount(outer.path(), "/data", MountKind::AskedBind),
            mount(inner.path(), "/data/in", MountKind::AskedBind),
        ];
        let mut first = Targets::default();
        first.make("/data/in/sub/pipe", &mounts).unwrap();
        assert!(inner.path().join("sub/pipe").is_file());
        assert_eq!(outer.path().read_dir().unwrap().count(), 0);
        let mut second = Targets::default();
        second.make("/data/in/sub/pipe", &mounts).unwrap();
        first.remove();
        assert!(inner.path().join("sub/pipe").is_file(), "another attempt uses it");
        drop(second);
        assert!(!inner.path().join("sub/pipe").exists());
    }

    #[test]
    fn a_path_outside_of_every_mount_needs_nothing() {
        Targets::default().make("/elsewhere/pipe", &[]).unwrap();
    }

    #[test]
    fn links_on_the_way_or_at_its_end_are_refused_and_files_of_others_stay() {
        let (folder, canary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounts = [mount(folder.path(), "/data", MountKind::AskedBind)];
        symlink(canary.path(), folder.path().join("link")).unwrap();
        let error = Targets::default().make("/data/link/pipe", &mounts).unwrap_err();
        assert!(error.message.contains("is a link"), "{error}");
        assert!(Targets::default().make("/data/link", &mounts).unwrap_err().message.contains("is a link"));
        assert_eq!(canary.path().read_dir().unwrap().count(), 0);
        std::fs::write(folder.path().join("kept"), "content").unwrap();
        Targets::default().make("/data/kept", &mounts).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("kept")).unwrap(), "content");
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        assert!(Targets::default().make("/data/dir", &mounts).is_err());
    }
}
