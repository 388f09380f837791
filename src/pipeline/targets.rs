//! Where a FIFO is mounted: a plain file that stands at its path when that path lies inside another mount. Without it
//! the engine would make one itself, as root and for good, or fail where the mount is read-only. Called by `staging`.
//!
//! No component of the path is followed when it is a link: what is in a mounted folder may be another's work.
//!
//! # Decisions
//! - Attempts of several workers, on several hosts, may use one such file at a time, and unlinking it would take away the
//!   mount of every other (rename(2) and unlink(2) detach what is mounted there in other namespaces). So each user holds
//!   a shared lock (flock(2), which NFS passes on to other hosts), and only who gets it for itself alone removes the file.
//! - What is ours is known by its modification time, so that an empty file of somebody else stays, and one that a crashed
//!   worker left goes with its next user.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use uuid::Uuid;

use super::{Mount, MountKind, workspace};
use crate::error::TaskError;

/// The modification time of what we make, in seconds since 1970: no file gets it by being used.
const OURS: i64 = 5_551_212;
/// How often a file that goes while we come is made again, and the pause while another holds it alone.
const TRIES: u32 = 1_000;
const PAUSE: Duration = Duration::from_millis(1);
/// How a file is opened only to hold it.
const FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOCTTY);

/// The plain files that one attempt's FIFOs are mounted on.
#[derive(Default)]
pub(super) struct Targets {
    made: Vec<Made>,
}

struct Made {
    root: File,
    path: PathBuf,
    relative: PathBuf,
    used: Flock<File>,
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
            Ok((root, Some(used))) if mount.kind != MountKind::Folder => {
                let path = mount.source.join(relative);
                self.made.push(Made { root, path, relative: relative.to_owned(), used });
                Ok(())
            }
            // In a folder of our own it goes with the folder; what is another's stays.
            Ok(_) => Ok(()),
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

    /// Removes what was made in folders that are not ours, unless another attempt, of whatever worker, still uses it.
    pub(super) fn remove(&mut self) {
        for Made { root, path, relative, used } in self.made.drain(..).rev() {
            // Ours is given up first, so that of several that end at once one gets it alone.
            let removed = match used.unlock().map_err(|(_, error)| error) {
                Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(alone) => take_back(&root, &relative, &alone),
                    Err(_) => Ok(()),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::debug!(path = %path.display(), %error, "a pipe's place is left behind");
            }
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes an empty file at `relative` below `root`, with the folders above it, unless there is something to mount upon.
/// When it is one of ours, it is held until the lock is dropped.
fn place(root: &Path, relative: &Path) -> Result<(File, Option<Flock<File>>), Errno> {
    let root = File::from(open(root, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?);
    let (folder, name) =
        descend(&root, relative, &|folder, name| match mkdirat(folder, name, Mode::S_IRWXU) {
            Ok(()) => fchmod(workspace::open_folder(folder.as_fd(), name)?, Mode::from_bits_truncate(0o777)),
            Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error),
        })?;
    for _ in 0..TRIES {
        match hold(&folder, &name) {
            // Another user removed it between our finding and our holding it.
            Err(Errno::ENOENT | Errno::ESTALE) => {}
            held => return held.map(|used| (root, used)),
        }
    }
    Err(Errno::EBUSY)
}

/// Makes or finds the file and holds it; nothing is held when it is another's. `ENOENT` when it went meanwhile.
fn hold(folder: &File, name: &str) -> Result<Option<Flock<File>>, Errno> {
    let file = match kind(folder, name) {
        Err(Errno::ENOENT) => return make(folder, name).map(Some),
        Err(error) => return Err(error),
        Ok(SFlag::S_IFDIR) => return Err(Errno::EISDIR),
        Ok(SFlag::S_IFLNK) => return Err(Errno::ELOOP),
        Ok(SFlag::S_IFREG) => match openat(folder, name, FLAGS, Mode::empty()) {
            Ok(found) => File::from(found),
            // Enough to mount upon, and its owner's to remove.
            Err(Errno::EACCES | Errno::EPERM) => return Ok(None),
            Err(error) => return Err(error),
        },
        Ok(_) => return Ok(None),
    };
    let used = match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(used) => used,
        Err((_, Errno::EWOULDBLOCK)) => {
            // Its last user is about to remove it, which takes no time.
            std::thread::sleep(PAUSE);
            return Err(Errno::ENOENT);
        }
        // A file system without locks: nobody could tell who is the last.
        Err(_) => return Ok(None),
    };
    let stat = fstat(&*used)?;
    if !is_at(folder, name, &stat)? {
        return Err(Errno::ENOENT);
    }
    Ok(is_ours(&stat).then_some(used))
}

/// Makes the file under another name and gives it its own only when it is held and known for ours: whoever finds it
/// finds it so. `ENOENT` when somebody else was faster.
fn make(folder: &File, name: &str) -> Result<Flock<File>, Errno> {
    let draft = format!(".longshore-{}", Uuid::now_v7().simple());
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = File::from(openat(folder, draft.as_str(), FLAGS | OFlag::O_CREAT | OFlag::O_EXCL, mode)?);
    let named = || {
        let ours = TimeSpec::new(OURS, 0);
        futimens(&file, &ours, &ours)?;
        let used = Flock::lock(file, FlockArg::LockShared).map_err(|(_, error)| error)?;
        match linkat(folder, draft.as_str(), folder, name, AtFlags::empty()) {
            Ok(()) => Ok(used),
            Err(Errno::EEXIST) => Err(Errno::ENOENT),
            Err(error) => Err(error),
        }
    };
    let made = named();
    unlinkat(folder, draft.as_str(), UnlinkatFlags::NoRemoveDir)?;
    made
}

/// Removes the file at `relative` below `root` if it is the very one that is held alone, and nobody wrote to it.
fn take_back(root: &File, relative: &Path, alone: &Flock<File>) -> Result<(), Errno> {
    let (folder, name) = descend(root, relative, &|_, _| Ok(()))?;
    let stat = fstat(&**alone)?;
    if is_ours(&stat) && is_at(&folder, &name, &stat)? {
        unlinkat(&folder, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

fn is_ours(stat: &FileStat) -> bool {
    let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    regular && stat.st_size == 0 && stat.st_mtime == OURS
}

fn is_at(folder: &File, name: &str, stat: &FileStat) -> Result<bool, Errno> {
    let there = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok((there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino))
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
        for (name, content) in [("kept", "content"), ("empty", "")] {
            std::fs::write(folder.path().join(name), content).unwrap();
            Targets::default().make(&format!("/data/{name}"), &mounts).unwrap();
            assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), content);
        }
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        assert!(Targets::default().make("/data/dir", &mounts).is_err());
    }
    /// Several workers share a folder, each with locks of its own: threads stand for them, since a lock belongs to an
    /// opening of the file and not to a process.
    #[test]
    fn whoever_uses_a_place_finds_it_there_until_its_end_and_the_last_one_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let mounts = [mount(folder.path(), "/data", MountKind::AskedBind)];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mut targets = Targets::default();
                        targets.make("/data/pipe", &mounts).unwrap();
                        assert!(folder.path().join("pipe").is_file());
                        std::thread::yield_now();
                        assert!(folder.path().join("pipe").is_file());
                        targets.remove();
                    }
                });
            }
        });
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_a_crashed_worker_left_goes_with_its_next_user() {
        let folder = tempfile::tempdir().unwrap();
        let mounts = [mount(folder.path(), "/data", MountKind::AskedBind)];
        let mut crashed = Targets::default();
        crashed.make("/data/pipe", &mounts).unwrap();
        // Its locks end with the process, its files do not.
        crashed.made.clear();
        assert!(folder.path().join("pipe").is_file());
        Targets::default().make("/data/pipe", &mounts).unwrap();
        assert!(!folder.path().join("pipe").exists());
    }
}
