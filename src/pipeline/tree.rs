//! Removes a folder with everything in it, whatever a container put there. Never follows a link, never leaves the
//! folder, and needs neither memory nor descriptors in proportion to what is inside: nested folders are moved up
//! before they are emptied. Called by `workspace`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Removes the folder `name` in `parent`. It is no error when there is none.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let top = match open_folder(parent, &name) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    loop {
        let pass = empty_top(&top, &mut moved)?;
        if pass.left == 0 {
            break;
        }
        if !pass.progress {
            return Err(pass.error.unwrap_or(Errno::ENOTEMPTY).into());
        }
    }
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What one look through the top folder came to.
#[derive(Default)]
struct Pass {
    left: usize,
    progress: bool,
    error: Option<Errno>,
}

/// Removes what it can of the top folder. Folders found inside its folders are moved into it for the next pass.
fn empty_top(top: &OwnedFd, moved: &mut u64) -> Result<Pass, Errno> {
    let mut pass = Pass::default();
    each_entry(top, |name, kind| {
        pass.left += 1;
        let result = if kind == Type::Directory {
            empty_nested(top, name, moved, &mut pass.progress)
        } else {
            unlink(top, name, UnlinkatFlags::NoRemoveDir)
        };
        match result {
            Ok(()) => pass.progress = true,
            Err(error) => pass.error = Some(worse(pass.error, error)),
        }
    })?;
    Ok(pass)
}

/// Empties and removes the folder `name` of `top`, moving the folders in it up to `top`.
fn empty_nested(top: &OwnedFd, name: &CStr, moved: &mut u64, progress: &mut bool) -> Result<(), Errno> {
    if unlink(top, name, UnlinkatFlags::RemoveDir).is_ok() {
        return Ok(());
    }
    let folder = open_folder(top.as_fd(), name)?;
    let mut failed = None;
    each_entry(&folder, |entry, kind| {
        let result = if kind == Type::Directory {
            move_up(&folder, entry, top, moved)
        } else {
            unlink(&folder, entry, UnlinkatFlags::NoRemoveDir)
        };
        match result {
            Ok(()) => *progress = true,
            Err(error) => failed = Some(worse(failed, error)),
        }
    })?;
    failed.map_or_else(|| unlink(top, name, UnlinkatFlags::RemoveDir), Err)
}

fn move_up(folder: &OwnedFd, entry: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    if unlink(folder, entry, UnlinkatFlags::RemoveDir).is_ok() {
        return Ok(());
    }
    loop {
        *moved += 1;
        let target = format!(".longshore-removing-{moved}");
        // A folder of mode 0000 cannot be moved by its owner: its `..` entry changes.
        let _ = fchmodat(folder, entry, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
        // Whatever a container has put at the target's name is skipped: a folder is never moved onto an entry.
        match fstatat(top, target.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return renameat(folder, entry, top, target.as_str()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

/// Unlinks an entry; when the folder's own mode forbids it and the folder is ours, changes the mode and tries again.
fn unlink(folder: &OwnedFd, entry: &CStr, flag: UnlinkatFlags) -> Result<(), Errno> {
    match unlinkat(folder, entry, flag) {
        Err(Errno::EACCES) if fchmod(folder, Mode::S_IRWXU).is_ok() => unlinkat(folder, entry, flag),
        other => other,
    }
}

fn open_folder(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::EACCES)
            if fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink).is_ok() =>
        {
            openat(parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

pub(super) fn each_entry(folder: &OwnedFd, mut visit: impl FnMut(&CStr, Type)) -> Result<(), Errno> {
    let mut entries =
        Dir::openat(folder, c".", OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = entry.file_type().unwrap_or_else(|| kind_of(folder, name));
        visit(name, kind);
    }
    Ok(())
}

/// For file systems that do not tell the kind of an entry.
fn kind_of(folder: &OwnedFd, name: &CStr) -> Type {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR => {
            Type::Directory
        }
        _ => Type::File,
    }
}

/// Being forbidden is what a cleaner can help with, so it is told rather than what follows from it.
fn worse(known: Option<Errno>, new: Errno) -> Errno {
    match known {
        Some(known @ (Errno::EACCES | Errno::EPERM)) => known,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use nix::sys::stat::mkdirat;

    use super::*;

    fn remove_in(base: &Path) -> io::Result<()> {
        remove(File::open(base).unwrap().as_fd(), "top")
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let base = tempfile::tempdir().unwrap();
        let canary = base.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "stays").unwrap();
        fs::create_dir_all(base.path().join("top/inner")).unwrap();
        symlink(&canary, base.path().join("top/link")).unwrap();
        symlink(&canary, base.path().join("top/inner/link")).unwrap();
        symlink("/", base.path().join("top/inner/root")).unwrap();
        fs::write(base.path().join("top/inner/file"), "goes").unwrap();
        remove_in(base.path()).unwrap();
        assert!(!base.path().join("top").exists());
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "stays");
    }

    #[test]
    fn a_top_that_is_a_link_is_refused_and_one_that_is_missing_is_fine() {
        let base = tempfile::tempdir().unwrap();
        remove_in(base.path()).unwrap();
        let canary = tempfile::tempdir().unwrap();
        fs::write(canary.path().join("file"), "stays").unwrap();
        symlink(canary.path(), base.path().join("top")).unwrap();
        assert!(remove_in(base.path()).is_err());
        assert!(canary.path().join("file").exists());
    }

    #[test]
    fn very_deep_folders_and_ones_of_mode_zero_are_removed() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("top")).unwrap();
        let mut here: OwnedFd = File::open(base.path().join("top")).unwrap().into();
        for _ in 0..1_000 {
            mkdirat(&here, "d", Mode::S_IRWXU).unwrap();
            here = open_folder(here.as_fd(), c"d").unwrap();
        }
        let closed = base.path().join("top/closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::write(closed.join("inner/file"), "x").unwrap();
        fs::write(base.path().join("top/.longshore-removing-1"), "in the way").unwrap();
        fs::set_permissions(closed.join("inner"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
        remove_in(base.path()).unwrap();
        assert!(!base.path().join("top").exists());
    }
}
