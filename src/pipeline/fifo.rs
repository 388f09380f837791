//! FIFOs between the worker and a container: how they are made and opened so that nobody can put something else in
//! their place. They lie in a folder that only the worker can enter and are mounted one by one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, openat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::mkfifoat;

/// What a pipe may hold in the kernel, where the limits of the system allow: most of its speed.
pub const PIPE_SIZE: i32 = 1 << 20;

/// A FIFO that we made. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fifo {
    folder: Arc<File>,
    name: String,
    path: PathBuf,
    identity: (u64, u64),
}

impl Fifo {
    /// Makes `name` in `folder`, whose path is `path`. Any user may read and write it: whoever reaches it was given it.
    pub fn make(folder: &Arc<File>, path: &Path, name: &str) -> io::Result<Self> {
        mkfifoat(folder, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let fifo = Self {
            folder: folder.clone(),
            name: name.to_owned(),
            path: path.join(name),
            identity: (stat.st_dev, stat.st_ino),
        };
        // Through a descriptor that was checked, and not by the umask's leave.
        fchmod(fifo.open(OFlag::O_RDWR)?, Mode::from_bits_truncate(0o666))?;
        Ok(fifo)
    }

    /// Its path on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for reading, at once, whether somebody writes or not.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        self.open(OFlag::O_RDONLY)
    }

    /// Opens it for writing. Fails with `ENXIO` while nobody reads.
    pub fn writer(&self) -> io::Result<OwnedFd> {
        self.open(OFlag::O_WRONLY)
    }

    /// Opens it for both, which never waits and keeps either side from seeing an end.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        self.open(OFlag::O_RDWR)
    }

    /// Tells of everybody who opens or closes it from now on.
    pub fn watch(&self) -> io::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_OPEN
            | AddWatchFlags::IN_CLOSE_NOWRITE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DONT_FOLLOW;
        inotify.add_watch(&self.path, flags)?;
        // The path is in our own folder, but what is watched must be what is opened.
        self.check(&fstatat(&self.folder, self.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?)?;
        Ok(inotify)
    }

    fn open(&self, mode: OFlag) -> io::Result<OwnedFd> {
        let flags = mode | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let fd = openat(&self.folder, self.name.as_str(), flags, Mode::empty())?;
        self.check(&fstat(&fd)?)?;
        grow(&fd);
        Ok(fd)
    }

    /// Whether it is the very FIFO that we made.
    fn check(&self, stat: &FileStat) -> io::Result<()> {
        let is_fifo = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        if is_fifo && (stat.st_dev, stat.st_ino) == self.identity {
            return Ok(());
        }
        let text =
            format!("{} is no longer the FIFO that was made there; it was replaced", self.path.display());
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// Lets a pipe hold [`PIPE_SIZE`] bytes. A system that allows less only makes it slower.
pub(super) fn grow(pipe: &OwnedFd) {
    if let Err(error) = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE))
        && error != Errno::EBUSY
    {
        tracing::debug!(%error, "a pipe keeps its size");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, Arc<File>) {
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(File::open(folder.path()).unwrap());
        (folder, file)
    }

    #[test]
    fn it_is_a_fifo_that_every_container_user_may_use() {
        let (path, folder) = folder();
        let fifo = Fifo::make(&folder, path.path(), "a").unwrap();
        let meta = fifo.path().symlink_metadata().unwrap();
        assert!(meta.file_type().is_fifo());
        assert_eq!(meta.mode() & 0o777, 0o666);
        assert_eq!(fifo.writer().unwrap_err().raw_os_error(), Some(Errno::ENXIO as i32));
        let reader = fifo.reader().unwrap();
        fifo.writer().unwrap();
        drop(reader);
    }

    #[test]
    fn a_link_another_fifo_or_a_file_in_its_place_is_refused() {
        let (path, folder) = folder();
        let canary = path.path().join("canary");
        std::fs::write(&canary, "secret").unwrap();
        let fifo = Fifo::make(&folder, path.path(), "a").unwrap();
        std::fs::rename(fifo.path(), path.path().join("moved")).unwrap();
        symlink(&canary, fifo.path()).unwrap();
        assert!(fifo.reader().is_err() && fifo.hold().is_err() && fifo.watch().is_err());
        std::fs::remove_file(fifo.path()).unwrap();
        std::fs::copy(&canary, fifo.path()).unwrap();
        assert!(fifo.reader().unwrap_err().to_string().contains("replaced"));
        std::fs::remove_file(fifo.path()).unwrap();
        Fifo::make(&folder, path.path(), "a").unwrap();
        assert!(fifo.reader().unwrap_err().to_string().contains("replaced"));
        std::fs::remove_file(fifo.path()).unwrap();
        std::fs::rename(path.path().join("moved"), fifo.path()).unwrap();
        assert!(fifo.reader().is_ok());
    }
}
