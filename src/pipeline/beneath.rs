//! Folders and files made beneath a volume's root without following any link, so that what an earlier container left in
//! a mounted folder cannot lead the worker elsewhere. Any user of a container may read what is made here.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::tree;
use super::workspace::open_folder;

/// The modes that `girder_worker` gives what it fetches (`girder_worker.docker.transforms.girder.setPermissions`).
const FOLDER_MODE: u32 = 0o777;
const FILE_MODE: u32 = 0o644;

/// Opens a volume's root.
pub(super) fn root(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(File::from(nix::fcntl::open(path, flags, Mode::empty())?))
}

/// Makes each folder of `path` below `root` that is not there.
pub(super) fn folder(root: &File, path: &[String]) -> io::Result<File> {
    let mut at = root.try_clone()?;
    for name in path {
        let made = match mkdirat(&at, name.as_str(), Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let next = open_folder(at.as_fd(), name)?;
        if made {
            // Apart from mkdir because the umask would take bits away.
            fchmod(&next, Mode::from_bits_truncate(FOLDER_MODE))?;
        }
        at = next;
    }
    Ok(at)
}

/// A new empty file at `path` below `root`; one that was there is replaced, a folder is not.
pub(super) fn file(root: &File, path: &[String]) -> io::Result<File> {
    let Some((name, parents)) = path.split_last() else {
        return Err(io::Error::other("a file needs a name"));
    };
    let parent = folder(root, parents)?;
    match unlinkat(&parent, name.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = File::from(openat(&parent, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    fchmod(&file, Mode::from_bits_truncate(FILE_MODE))?;
    Ok(file)
}

/// Removes the folder at `path` below `root` with everything in it.
pub(super) fn remove_folder(root: &File, path: &[String]) -> io::Result<()> {
    let Some((name, parents)) = path.split_last() else { return Ok(()) };
    let mut at = root.try_clone()?;
    for parent in parents {
        at = open_folder(at.as_fd(), parent)?;
    }
    tree::remove(at.as_fd(), name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn at(path: &[&str]) -> Vec<String> {
        path.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn any_user_may_read_what_is_made_and_an_older_file_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let root = root(base.path()).unwrap();
        for content in ["first, longer", "second"] {
            file(&root, &at(&["a", "b", "c.txt"])).unwrap().write_all(content.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(base.path().join("a/b/c.txt")).unwrap(), "second");
        assert_eq!(base.path().join("a/b").metadata().unwrap().mode() & 0o777, 0o777);
        assert_eq!(base.path().join("a/b/c.txt").metadata().unwrap().mode() & 0o777, 0o644);
        remove_folder(&root, &at(&["a", "b"])).unwrap();
        assert!(base.path().join("a").exists() && !base.path().join("a/b").exists());
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        let (base, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "untouched").unwrap();
        symlink(outside.path(), base.path().join("folder")).unwrap();
        symlink(&canary, base.path().join("file")).unwrap();
        let root = root(base.path()).unwrap();
        assert!(file(&root, &at(&["folder", "canary"])).is_err());
        assert!(folder(&root, &at(&["folder", "new"])).is_err());
        assert!(remove_folder(&root, &at(&["folder", "x"])).is_err());
        file(&root, &at(&["file"])).unwrap().write_all(b"inside").unwrap();
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}
