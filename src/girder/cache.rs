//! Fetched files, kept for other tasks: contents by their sum, an index from what Girder says of a file to its sum.
//!
//! One process fetches a content while all others wait for it, whichever process they are of. Nobody outside is ever
//! given a content itself, only copies, in which the file system may share blocks until one of both is written.
//!
//! # Decisions
//! - A hit needs Girder's document first, asked with the task's own token: whoever may not read a file does not get it
//!   from here either, and a changed file has another key.
//! - The times of contents are the order of their last use, so that the order outlives the process and needs no journal.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use tokio::sync::Mutex as Turn;
use tokio::time::sleep;

use super::Client;
use super::fetch::{self, Fetched, Sum, Watch};
use super::file::FileDocument;
use super::settings::{self, CacheMode};
use crate::error::TaskError;

/// How often another process is asked whether it is done.
const LOOK: Duration = Duration::from_millis(50);
/// After which time what a dead process began is removed.
const STALE: Duration = Duration::from_secs(86_400);
/// The share of its file system, in percent, that the cache leaves free.
const LEFT_FREE: u64 = 10;
/// Bytes beyond which no more is left free: a tenth of a large disk would be a waste.
const LEFT_FREE_MOST: u64 = 5 << 30;

/// The cache of one folder. One per process; several processes may share the folder.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    mode: CacheMode,
    max_size: u64,
    turns: Mutex<HashMap<String, Weak<Turn<()>>>>,
}

/// Where a content came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// It was here.
    Cache,
    /// It was fetched.
    Girder,
}

impl Cache {
    /// The cache of the settings; none when it is off. The folder is made when it is used first.
    pub fn new(settings: &settings::Cache) -> Option<Self> {
        (settings.mode != CacheMode::Off && !settings.folder.as_os_str().is_empty()).then(|| Self {
            folder: settings.folder.clone(),
            mode: settings.mode,
            max_size: settings.max_size.bytes(),
            turns: Mutex::default(),
        })
    }

    /// Copies the content of `document` into `into`, which is empty, fetching it when it is not here. None when the
    /// cache cannot hold it or is itself in trouble: then it has to be fetched without.
    pub async fn provide(
        &self,
        client: &Client,
        document: &FileDocument,
        into: &File,
        watch: &dyn Watch,
    ) -> Result<Option<From>, TaskError> {
        let Some(size) = document.size.filter(|size| *size <= self.max_size) else { return Ok(None) };
        let key = document.content_key(&client.server());
        if self.copied(&key, size, into).await {
            watch.moved(size);
            return Ok(Some(From::Cache));
        }
        if self.mode == CacheMode::ReadOnly {
            return Ok(None);
        }
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        let Some(_lock) = self.lock(&key).await else { return Ok(None) };
        // Whoever had the turn before may have brought it.
        if self.copied(&key, size, into).await {
            watch.moved(size);
            return Ok(Some(From::Cache));
        }
        self.make_room(size).await;
        let Some((path, begun)) = self.begin(&key) else { return Ok(None) };
        let fetched = fetch::fetch(client, document.clone(), begun, Sum::Always, watch).await;
        let kept = fetched.and_then(|fetched| self.keep(&path, &fetched, client).map(|()| fetched));
        let Fetched { document, size, .. } = match kept {
            Ok(fetched) => fetched,
            Err(error) => {
                remove(&path);
                return Err(error);
            }
        };
        let key = document.content_key(&client.server());
        Ok(self.copied(&key, size, into).await.then_some(From::Girder))
    }

    /// Whether the content was here and is now in `into`.
    async fn copied(&self, key: &str, size: u64, into: &File) -> bool {
        let (index, contents) = (self.path("index", key), self.folder.join("contents"));
        let Ok(into) = into.try_clone() else { return false };
        let copied = tokio::task::spawn_blocking(move || copy(&index, &contents, size, &into)).await;
        match copied {
            Ok(Ok(())) => true,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a cached file cannot be used");
                false
            }
            Err(_) => false,
        }
    }

    /// The turn of this process's tasks for one content.
    fn turn(&self, key: &str) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::new(()));
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// The turn among processes; it ends with the process at the latest.
    async fn lock(&self, key: &str) -> Option<Flock<File>> {
        if let Err(error) = self.make_folders() {
            tracing::warn!(folder = %self.folder.display(), %error, "the cache of fetched files cannot be used");
            return None;
        }
        let path = self.path("locks", key);
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).ok()?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Another process may have removed it between the opening and the locking.
                Ok(lock) if same_file(&lock, &path) => return Some(lock),
                Ok(_) => {}
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => sleep(LOOK).await,
                Err((_, error)) => {
                    tracing::warn!(%error, "the cache of fetched files cannot be locked");
                    return None;
                }
            }
        }
    }

    /// Folders that only the worker may enter: contents are of all tasks together.
    fn make_folders(&self) -> io::Result<()> {
        for folder in [self.folder.clone(), self.folder.join("contents")]
            .into_iter()
            .chain(["index", "locks", "begun"].map(|name| self.folder.join(name)))
        {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let metadata = folder.symlink_metadata()?;
            if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
                return Err(io::Error::other("it is no folder of the worker's own user"));
            }
            if metadata.mode() & 0o077 != 0 {
                std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
            }
        }
        Ok(())
    }

    /// An empty file for a content under way.
    fn begin(&self, key: &str) -> Option<(PathBuf, File)> {
        let path = self.path("begun", key);
        remove(&path);
        let mut options = OpenOptions::new();
        match options.create_new(true).read(true).write(true).mode(0o600).open(&path) {
            Ok(file) => Some((path, file)),
            Err(error) => {
                tracing::warn!(%error, "nothing can be kept in the cache of fetched files");
                None
            }
        }
    }

    /// Moves what was fetched to where it is found.
    fn keep(&self, begun: &Path, fetched: &Fetched, client: &Client) -> Result<(), TaskError> {
        let failed = |error: io::Error| {
            TaskError::retryable(
                "workspace",
                format!("cannot keep a fetched file in girder.cache.folder: {error}"),
            )
        };
        let sum = fetched.sha512.as_deref().unwrap_or_default();
        std::fs::rename(begun, self.folder.join("contents").join(sum)).map_err(failed)?;
        let key = fetched.document.content_key(&client.server());
        let written = self.path("begun", &format!("{key}.index"));
        std::fs::write(&written, sum).map_err(failed)?;
        std::fs::rename(&written, self.path("index", &key)).map_err(failed)
    }

    /// Removes what was not used for longest, until `more` bytes fit below the cap and the file system keeps a rest.
    async fn make_room(&self, more: u64) {
        let (folder, cap) = (self.folder.clone(), self.max_size);
        let made = tokio::task::spawn_blocking(move || make_room(&folder, cap, more)).await;
        if let Ok(Err(error)) = made {
            tracing::warn!(%error, "the cache of fetched files cannot be tidied");
        }
    }

    fn path(&self, folder: &str, key: &str) -> PathBuf {
        self.folder.join(folder).join(key)
    }
}

fn copy(index: &Path, contents: &Path, size: u64, into: &File) -> io::Result<()> {
    let sum = std::fs::read_to_string(index)?;
    if sum.len() != 128 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        remove(index);
        return Err(io::ErrorKind::NotFound.into());
    }
    let content = File::open(contents.join(&sum))?;
    if content.metadata()?.len() != size {
        // A file system that lost bytes in a crash: neither is of use any more.
        remove(&contents.join(&sum));
        remove(index);
        return Err(io::ErrorKind::NotFound.into());
    }
    // As of now it is the one used last.
    content.set_modified(SystemTime::now())?;
    into.set_len(0)?;
    // Within the kernel, by shared blocks where the file system can.
    let copied = io::copy(&mut &content, &mut &*into)?;
    if copied == size { Ok(()) } else { Err(io::Error::other("it was cut while it was copied")) }
}

fn make_room(folder: &Path, cap: u64, more: u64) -> io::Result<()> {
    let mut contents = Vec::new();
    for entry in std::fs::read_dir(folder.join("contents"))? {
        let entry = entry?;
        // Another process may remove it meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        contents.push((metadata.modified()?, metadata.len(), entry.path()));
    }
    contents.sort();
    let mut used: u64 = contents.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in contents {
        if used.saturating_add(more) <= cap && is_roomy(folder, more)? {
            break;
        }
        remove(&path);
        used -= size;
    }
    for entry in std::fs::read_dir(folder.join("begun"))? {
        let entry = entry?;
        let age = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age > STALE) {
            remove(&entry.path());
        }
    }
    Ok(())
}

fn is_roomy(folder: &Path, more: u64) -> io::Result<bool> {
    let disk = statvfs(folder)?;
    let free = disk.blocks_available() * disk.fragment_size();
    let whole = disk.blocks() * disk.fragment_size();
    Ok(free.saturating_sub(more) >= (whole / 100 * LEFT_FREE).min(LEFT_FREE_MOST))
}

fn same_file(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!(
        (file.metadata().map(identity), path.symlink_metadata().map(identity)),
        (Ok(a), Ok(b)) if a == b
    )
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "a cached file cannot be removed"),
    }
}
