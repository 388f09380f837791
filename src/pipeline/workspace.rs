//! Folders of one attempt on the host: `<base>/longshore-<instance>/<attempt>/`, of mode 0700, so that no other local
//! user can reach what is inside, whatever modes the folders in it have. Removed with all their content.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use super::volumes::real_work_dir;
use super::{Cleaner, tree};
use crate::error::TaskError;
use crate::handler::Attempt;
use crate::task::{Fence, TaskId};

/// The folder of one attempt below one base folder.
#[derive(Debug)]
pub struct Workspace {
    parent: File,
    name: String,
    path: PathBuf,
    folder: File,
    removed: bool,
}

/// The name of the folder below the base that holds every workspace of `instance`.
pub fn parent_name(instance: &str) -> String {
    let safe: String =
        instance.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("longshore-{safe}")
}

/// The name of an attempt's folder: fence and task id, both of a form that fits a file name.
pub fn attempt_name(task: &TaskId, fence: Fence) -> String {
    let sum = Sha256::digest(task.as_str().as_bytes());
    format!("{}-{}", fence.0, hex(&sum[..8]))
}

/// Where the workspace of an attempt lies below `base`.
pub fn place(base: &Path, instance: &str, (task, fence): (&TaskId, Fence)) -> PathBuf {
    real_work_dir(base).join(parent_name(instance)).join(attempt_name(task, fence))
}

/// The names of all workspaces of `instance` below `base`.
pub fn list(base: &Path, instance: &str) -> Vec<String> {
    let folder = real_work_dir(base).join(parent_name(instance));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes the workspace `name` of `instance` below `base`, which no attempt uses any more. What is not the worker's to
/// unlink stays.
pub fn remove(base: &Path, instance: &str, name: &str) -> io::Result<()> {
    let folder = real_work_dir(base).join(parent_name(instance));
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let parent = open(&folder, flags, Mode::empty())?;
    tree::remove(parent.as_fd(), name)
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Workspace {
    /// Makes the folder of `attempt` below `base`, which must exist.
    pub fn make(base: &Path, attempt: &Attempt) -> Result<Self, TaskError> {
        Self::enter(base, attempt, |parent, name| mkdirat(parent, name, Mode::S_IRWXU))
    }

    /// Goes on with the folder that an earlier process made for `attempt` below `base`.
    pub fn open(base: &Path, attempt: &Attempt) -> Result<Self, TaskError> {
        Self::enter(base, attempt, |_, _| Ok(()))
    }

    fn enter(
        base: &Path,
        attempt: &Attempt,
        prepare: impl Fn(&File, &str) -> Result<(), Errno>,
    ) -> Result<Self, TaskError> {
        let shared = base.join(parent_name(attempt.instance()));
        let name = attempt_name(&attempt.task().id, attempt.fence());
        let path = shared.join(&name);
        let failed = |path: &Path, error: Errno| {
            TaskError::retryable(
                "workspace",
                format!(
                    "cannot make {}: {}; give the worker a work_dir it may write to",
                    path.display(),
                    error.desc()
                ),
            )
        };
        let parent = private_parent(base, &parent_name(attempt.instance())).map_err(|error| match error {
            ParentError::Io(error) => failed(&shared, error),
            ParentError::NotOurs => TaskError::retryable(
                "workspace",
                format!(
                    "{} is not a folder of mode 0700 that belongs to the worker; remove it or choose another work_dir",
                    shared.display()
                ),
            ),
        })?;
        prepare(&parent, &name).map_err(|error| failed(&path, error))?;
        let folder = open_folder(parent.as_fd(), &name).map_err(|error| failed(&path, error))?;
        Ok(Self { parent, name, path, folder, removed: false })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder `name` with exactly the permission bits `mode` in it.
    pub fn folder(&self, name: &str, mode: u32) -> Result<(PathBuf, File), TaskError> {
        let make = || {
            mkdirat(&self.folder, name, Mode::S_IRWXU)?;
            let folder = open_folder(self.folder.as_fd(), name)?;
            // Apart from mkdir because the umask would take bits away. Neither setuid nor setgid: they have no use here.
            fchmod(&folder, Mode::from_bits_truncate(mode & 0o1777))?;
            Ok(folder)
        };
        let path = self.path.join(name);
        make().map(|folder| (path.clone(), folder)).map_err(|error: Errno| {
            TaskError::retryable("workspace", format!("cannot make {}: {}", path.display(), error.desc()))
        })
    }

    /// Makes the file `name` in it, which anybody who gets to it may read.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf, TaskError> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let readable = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IROTH;
        let path = self.path.join(name);
        let make = || -> io::Result<()> {
            let mut file = File::from(openat(&self.folder, name, flags, readable)?);
            // Apart from open because the umask would take bits away.
            fchmod(&file, readable)?;
            file.write_all(content.as_bytes())
        };
        make().map(|()| path.clone()).map_err(|error| {
            TaskError::retryable("workspace", format!("cannot make {}: {error}", path.display()))
        })
    }

    /// Lets go of it: it stays where it is.
    pub fn leave(mut self) {
        self.removed = true;
    }

    /// Removes it with everything in it, with `cleaner`'s help only where the worker may not. Idempotent.
    pub async fn remove(&mut self, cleaner: &dyn Cleaner) -> Result<(), TaskError> {
        match self.remove_alone().await {
            Ok(()) => return Ok(()),
            Err(error)
                if !matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EACCES | Errno::EPERM)
                ) =>
            {
                return Err(self.not_removed(&error));
            }
            Err(_) => cleaner.clean(&self.path).await?,
        }
        self.remove_alone().await.map_err(|error| self.not_removed(&error))
    }

    /// The same without help.
    async fn remove_alone(&mut self) -> io::Result<()> {
        if self.removed {
            return Ok(());
        }
        let (parent, name) = (self.parent.try_clone()?, self.name.clone());
        tokio::task::spawn_blocking(move || tree::remove(parent.as_fd(), &name))
            .await
            .map_err(io::Error::other)??;
        self.removed = true;
        Ok(())
    }

    fn not_removed(&self, error: &io::Error) -> TaskError {
        TaskError::retryable("workspace", format!("cannot remove {}: {error}", self.path.display()))
    }
}

impl Drop for Workspace {
    /// For attempts whose staging was dropped half way. What a container wrote is removed by [`Workspace::remove`].
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = tree::remove(self.parent.as_fd(), &self.name)
        {
            tracing::warn!(path = %self.path.display(), %error, "a workspace is left behind");
        }
    }
}

enum ParentError {
    Io(Errno),
    NotOurs,
}
impl From<Errno> for ParentError {
    fn from(error: Errno) -> Self {
        Self::Io(error)
    }
}

/// Opens or makes `base/name` and checks that it is a folder of ours that nobody else may enter: in a shared `/tmp`
/// anybody may have made it before.
fn private_parent(base: &Path, name: &str) -> Result<File, ParentError> {
    let base = open(base, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match mkdirat(&base, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let folder = match open_folder(base.as_fd(), name) {
        Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(ParentError::NotOurs),
        other => other?,
    };
    let stat = fstat(&folder)?;
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(ParentError::NotOurs);
    }
    Ok(folder)
}

/// Opens the folder `name` in `parent`, never through a link.
pub(super) fn open_folder(parent: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::task::{ArgMap, Task};

    fn attempt() -> Attempt {
        Attempt::detached(Task::new("docker_run", ArgMap::new()))
    }

    struct NoHelp;
    #[async_trait::async_trait]
    impl Cleaner for NoHelp {
        async fn clean(&self, folder: &Path) -> Result<(), TaskError> {
            panic!("help was asked for {}", folder.display())
        }
    }

    #[tokio::test]
    async fn nobody_else_may_enter_and_the_mode_is_the_one_asked() {
        let base = tempfile::tempdir().unwrap();
        let mut workspace = Workspace::make(base.path(), &attempt()).unwrap();
        let (path, _) = workspace.folder("volume", 0o2777).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o777);
        assert_eq!(workspace.path().metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(workspace.path().parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        workspace.remove(&NoHelp).await.unwrap();
        assert!(!workspace.path().exists());
        workspace.remove(&NoHelp).await.unwrap();
    }

    #[test]
    fn a_parent_that_others_may_enter_or_that_is_a_link_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let parent = base.path().join(parent_name("detached"));
        std::fs::create_dir(&parent).unwrap();
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Workspace::make(base.path(), &attempt()).unwrap_err();
        assert!(error.message.contains("0700"), "{error}");
        std::fs::remove_dir(&parent).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), &parent).unwrap();
        assert!(Workspace::make(base.path(), &attempt()).unwrap_err().message.contains("0700"));
    }

    #[test]
    fn a_workspace_that_is_dropped_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::make(base.path(), &attempt()).unwrap();
        let (folder, _) = workspace.folder("volume", 0o777).unwrap();
        std::fs::write(folder.join("file"), "x").unwrap();
        let path = workspace.path().to_owned();
        drop(workspace);
        assert!(!path.exists());
    }
}
