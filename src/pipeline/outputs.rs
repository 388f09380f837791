//! Opens what a stopped container left in a volume, without ever leaving it: no link is followed, only regular files are
//! read, and a file that has names outside the volume is refused. Called by the transforms that upload; blocking.
//!
//! # Decisions
//! - Each component is opened on its own with `O_PATH | O_NOFOLLOW`, which touches neither a FIFO nor a device and works
//!   on every kernel; what is read is opened again below the same folder and compared.
//! - A hard link cannot be told from a file but by counting: one whose names are not all in the volume was planted.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::tree;
use crate::error::TaskError;

/// The most files that one upload takes.
const MAX_FILES: usize = 100_000;
/// The most folders inside one another that one upload takes.
const MAX_DEPTH: usize = 64;
/// The most entries that are looked at to find the other names of a file.
const MAX_LINK_SEARCH: usize = 1_000_000;

/// A volume whose content is not to be trusted.
#[derive(Debug)]
pub struct Outputs {
    root: OwnedFd,
    shown: PathBuf,
}

/// What lies at a path of a volume.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Missing,
    /// A regular file.
    File(Output),
    /// A folder.
    Folder(Listing),
}

/// A regular file of a volume as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its path below the volume.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    identity: (u64, u64),
}

/// What is in a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Regular files, by name; with those of folders below when asked for.
    pub files: Vec<Output>,
    /// Folders below, parents first.
    pub folders: Vec<PathBuf>,
    /// What was left out: links, pipes, sockets, devices.
    pub skipped: Vec<PathBuf>,
}

/// Whether a listing goes down into folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only what lies directly in it.
    Flat,
    /// All below it.
    Recursive,
}

impl Outputs {
    /// The volume whose folder on the host is `root`.
    pub fn below(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { root: open(root, flags, Mode::empty())?, shown: root.to_owned() })
    }

    /// What lies at `path`. A link, pipe, socket or device is an error that says so.
    pub fn find(&self, path: &str, depth: Depth) -> Result<Found, TaskError> {
        let path: PathBuf = Path::new(path).components().filter(is_normal).collect();
        let entry = match self.walk(&path) {
            Ok(entry) => entry,
            Err(Errno::ENOENT) => return Ok(Found::Missing),
            Err(error) => return Err(self.unusable(&path, error)),
        };
        let stat = fstat(&entry).map_err(|error| self.unusable(&path, error))?;
        match kind(&stat) {
            SFlag::S_IFREG => Ok(Found::File(Output::of(path, &stat))),
            SFlag::S_IFDIR => {
                let mut listing = Listing::default();
                self.list(&path, depth, &mut listing)?;
                listing.files.sort_by(|a, b| a.path.cmp(&b.path));
                Ok(Found::Folder(listing))
            }
            other => Err(refused(&path, &format!("is {}", named(other)))),
        }
    }

    /// Opens `output` for reading. An error when something else lies there by now.
    pub fn open(&self, output: &Output) -> Result<File, TaskError> {
        let unusable = |error| self.unusable(&output.path, error);
        let (folder, name) = self.parent(&output.path).map_err(unusable)?;
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let entry = open_path(&folder, &name, OFlag::empty()).map_err(unusable)?;
        let looked = fstat(&entry).map_err(unusable)?;
        if kind(&looked) != SFlag::S_IFREG {
            return Err(refused(&output.path, &format!("is {}", named(kind(&looked)))));
        }
        let file = openat(&folder, name.as_c_str(), flags, Mode::empty()).map_err(unusable)?;
        let stat = fstat(&file).map_err(unusable)?;
        if (stat.st_dev, stat.st_ino) != output.identity || (looked.st_dev, looked.st_ino) != output.identity
        {
            return Err(refused(&output.path, "was replaced while it was uploaded"));
        }
        let file = File::from(file);
        let names = file.metadata().map_or(u64::MAX, |found| found.nlink());
        if names > 1 {
            self.check_links(output, names)?;
        }
        Ok(file)
    }

    /// Removes what lies at `path`, a file or a folder with all in it. It is no error when there is nothing.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let path: PathBuf = Path::new(path).components().filter(is_normal).collect();
        let removed = self.parent(&path).and_then(|(folder, name)| {
            unlinkat(&folder, name.as_c_str(), UnlinkatFlags::NoRemoveDir).map(|()| None).or_else(|error| {
                match error {
                    Errno::EISDIR | Errno::EPERM => Ok(Some((folder, name))),
                    other => Err(other),
                }
            })
        });
        match removed {
            Ok(None) | Err(Errno::ENOENT) => Ok(()),
            Ok(Some((folder, name))) => tree::remove(folder.as_fd(), &name.to_string_lossy()),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves `output` to `target`, a path that only the worker can reach; copies it where it cannot be moved.
    pub fn take(&self, output: &Output, target: &Path, how: Taking) -> Result<(), TaskError> {
        let failed = |error: io::Error| {
            TaskError::retryable("spool", format!("cannot keep {} for later: {error}", output.path.display()))
        };
        let mut file = self.open(output)?;
        // Each further name of a file must be found in the volume, too.
        let named_once = file.metadata().is_ok_and(|found| found.nlink() == 1);
        if how == Taking::Move && named_once {
            let (folder, name) =
                self.parent(&output.path).map_err(|error| self.unusable(&output.path, error))?;
            let moved = nix::fcntl::renameat(&folder, name.as_c_str(), nix::fcntl::AT_FDCWD, target);
            match moved {
                Ok(()) => {
                    let there = target.symlink_metadata().map_err(failed)?.ino();
                    if there != output.identity.1 {
                        return Err(refused(&output.path, "was replaced while it was moved"));
                    }
                    return file.sync_all().map_err(failed);
                }
                // Another file system, or a folder that the container made its own.
                Err(Errno::EXDEV | Errno::EACCES | Errno::EPERM) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        let mut copy = File::create_new(target).map_err(failed)?;
        let copied = io::copy(&mut file, &mut copy).map_err(failed)?;
        if copied != output.size {
            return Err(refused(&output.path, "changed its length while it was copied"));
        }
        copy.sync_all().map_err(failed)
    }

    /// Takes all that `listing` tells of `folder`, when it is one, to the same paths below `place`, a folder that only the
    /// worker can reach.
    pub fn take_all(
        &self,
        listing: &Listing,
        folder: Option<&Path>,
        (place, how): (&Path, Taking),
    ) -> Result<(), TaskError> {
        let make = |path: &Path| {
            let below: PathBuf = path.components().filter(is_normal).collect();
            let path = place.join(below);
            std::fs::create_dir_all(&path).map_err(|error| {
                TaskError::retryable("spool", format!("cannot make {}: {error}", path.display()))
            })
        };
        folder.map_or(Ok(()), make)?;
        listing.folders.iter().try_for_each(|path| make(path))?;
        for file in &listing.files {
            make(file.path.parent().unwrap_or(Path::new("")))?;
            self.take(file, &place.join(&file.path), how)?;
        }
        Ok(())
    }

    fn list(&self, path: &Path, depth: Depth, listing: &mut Listing) -> Result<(), TaskError> {
        let base = path.components().count();
        let mut pending = vec![path.to_owned()];
        while let Some(path) = pending.pop() {
            let unusable = |error| self.unusable(&path, error);
            if path.components().count() - base > MAX_DEPTH {
                return Err(refused(&path, &format!("lies deeper than {MAX_DEPTH} folders")));
            }
            let folder = self.walk(&path).map_err(unusable)?;
            let mut names: Vec<CString> = Vec::new();
            tree::each_entry(&folder, |name, _| names.push(name.to_owned())).map_err(unusable)?;
            names.sort();
            for name in names {
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                let entry =
                    open_path(&folder, &name, OFlag::empty()).map_err(|error| self.unusable(&path, error))?;
                let stat = fstat(&entry).map_err(|error| self.unusable(&path, error))?;
                match kind(&stat) {
                    SFlag::S_IFREG => listing.files.push(Output::of(path, &stat)),
                    SFlag::S_IFDIR if depth == Depth::Recursive => {
                        listing.folders.push(path.clone());
                        pending.push(path);
                    }
                    // As girder_worker has it: a flat upload takes files only.
                    SFlag::S_IFDIR => {}
                    _ => listing.skipped.push(path),
                }
                if listing.files.len() + listing.folders.len() > MAX_FILES {
                    return Err(TaskError::permanent(
                        "upload_refused",
                        format!(
                            "the output holds more than {MAX_FILES} files and folders; pack them into an archive"
                        ),
                    ));
                }
            }
        }
        listing.folders.sort();
        Ok(())
    }

    /// Whether every name of the file lies in this volume.
    fn check_links(&self, output: &Output, all: u64) -> Result<(), TaskError> {
        let (mut names, mut looked) = (0_u64, 0);
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let folder = self.walk(&path).map_err(|error| self.unusable(&path, error))?;
            let mut inner: Vec<CString> = Vec::new();
            tree::each_entry(&folder, |name, told| {
                looked += 1;
                match told {
                    Type::Directory => inner.push(name.to_owned()),
                    Type::File => {
                        let same = open_path(&folder, name, OFlag::empty())
                            .and_then(|entry| fstat(&entry))
                            .is_ok_and(|found| (found.st_dev, found.st_ino) == output.identity);
                        names += u64::from(same);
                    }
                    _ => {}
                }
            })
            .map_err(|error| self.unusable(&path, error))?;
            if looked > MAX_LINK_SEARCH {
                break;
            }
            pending.extend(inner.iter().map(|name| path.join(OsStr::from_bytes(name.to_bytes()))));
        }
        if names == all {
            return Ok(());
        }
        let text = format!(
            "is a hard link with {all} names of which {names} lie in the volume; copy it instead of linking it"
        );
        Err(refused(&output.path, &text))
    }

    /// The folder in which `path` lies, and its name there.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, CString), Errno> {
        let name = path.file_name().ok_or(Errno::EISDIR)?;
        let folder = self.walk(path.parent().unwrap_or(Path::new("")))?;
        Ok((folder, CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?))
    }

    fn walk(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut here = open_path(&self.root, c".", OFlag::O_DIRECTORY)?;
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let name = CString::new(component.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
            let more = if components.peek().is_some() { OFlag::O_DIRECTORY } else { OFlag::empty() };
            here = open_path(&here, &name, more)?;
        }
        Ok(here)
    }

    fn unusable(&self, path: &Path, error: Errno) -> TaskError {
        let shown = self.shown.join(path);
        let shown = shown.display();
        match error {
            Errno::ENOTDIR | Errno::ELOOP => refused(
                path,
                "leads through something that is no folder of the volume; links are never followed",
            ),
            Errno::EACCES | Errno::EPERM => TaskError::permanent(
                "upload_refused",
                format!(
                    "the worker may not read {shown}: {}; let the container make its outputs readable",
                    error.desc()
                ),
            ),
            _ => TaskError::retryable("upload_unreadable", format!("cannot read {shown}: {}", error.desc())),
        }
    }
}

/// How a file gets out of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It leaves the volume.
    Move,
    /// It stays there as well.
    Copy,
}

impl Output {
    fn of(path: PathBuf, stat: &FileStat) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Self { path, size, identity: (stat.st_dev, stat.st_ino) }
    }

    /// Its name as Girder can keep it, and whether that had to be written otherwise than it is.
    pub fn name(&self) -> (String, bool) {
        told(self.path.file_name().unwrap_or_default())
    }
}

/// A file name as text: bytes that are no UTF-8 and control characters are written `\xNN`.
pub fn told(name: &OsStr) -> (String, bool) {
    use std::fmt::Write;
    let (mut text, mut changed) = (String::with_capacity(name.len()), false);
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                changed = true;
                // Writing to a text cannot fail.
                let _ = write!(text, "\\x{:02x}", u32::from(c));
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            changed = true;
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    (text, changed)
}

fn is_normal(component: &std::path::Component<'_>) -> bool {
    matches!(component, std::path::Component::Normal(_))
}

fn open_path(folder: &OwnedFd, name: &CStr, more: OFlag) -> Result<OwnedFd, Errno> {
    openat(folder, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | more, Mode::empty())
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn named(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFLNK => "a link, and links are never followed",
        SFlag::S_IFIFO => "a pipe and no regular file",
        SFlag::S_IFSOCK => "a socket and no regular file",
        SFlag::S_IFBLK | SFlag::S_IFCHR => "a device and no regular file",
        SFlag::S_IFDIR => "a folder and no regular file",
        _ => "no regular file",
    }
}

fn refused(path: &Path, what: &str) -> TaskError {
    let (shown, _) = told(path.as_os_str());
    TaskError::permanent("upload_refused", format!("the output {shown} {what}"))
}

/// The bytes of a path, for documents that must bring it back exactly.
pub fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// The path of these bytes.
pub fn path_from_bytes(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
#[path = "outputs_tests.rs"]
mod tests;
