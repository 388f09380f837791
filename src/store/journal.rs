//! Ends of attempts that wait for a store that is away: a file for each, on this host's disk.
//!
//! An attempt that ended while the store does not answer keeps its lease and tries again; the journal only matters when
//! its process dies meanwhile, or is stopped: the next process of the worker brings what it finds here to the store, under the
//! fence that the attempt had, so that finished work is not done again. What another attempt has overtaken is dropped.
//!
//! A file is written beside its name, synced and renamed: it is there whole or not at all. Files are their owner's alone,
//! as a record may hold the task's envelope.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Record;
use crate::task::TaskId;

/// How the files' names end.
const SUFFIX: &str = "json";

/// The ends that wait, in one folder. Clones are the same journal.
#[derive(Clone, Debug)]
pub struct Journal {
    folder: Arc<Path>,
}

impl Journal {
    /// The journal in `folder`, which is made when something is kept.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder: folder.into() }
    }

    /// Keeps `record`, instead of what was kept of its task before; on disk when it returns.
    pub async fn keep(&self, record: &Record) -> io::Result<()> {
        let (folder, name) = (self.folder.clone(), self.file(&record.id));
        let content = serde_json::to_vec(record)?;
        blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let beside = name.with_extension("new");
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&content)?;
            file.sync_all()?;
            std::fs::rename(&beside, &name)?;
            File::open(&folder)?.sync_all()
        })
        .await
    }

    /// Forgets what was kept of `task`.
    pub async fn forget(&self, task: &TaskId) -> io::Result<()> {
        let name = self.file(task);
        blocking(move || match std::fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    /// All that is kept. A file that cannot be read is told in the log and left where it is.
    pub async fn kept(&self) -> io::Result<Vec<Record>> {
        let folder = self.folder.clone();
        blocking(move || {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut kept = Vec::new();
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                    match read(&path) {
                        Ok(record) => kept.push(record),
                        Err(error) => tracing::error!(
                            file = %path.display(), %error,
                            "an end that waited for the store cannot be read: its task will be run again; remove the file"
                        ),
                    }
                }
            }
            Ok(kept)
        })
        .await
    }

    /// Ids may be any text; names of files may not.
    fn file(&self, task: &TaskId) -> PathBuf {
        let sum = Sha256::digest(task.as_str().as_bytes());
        let name = u128::from_be_bytes(std::array::from_fn(|at| sum[at]));
        self.folder.join(format!("{name:032x}.{SUFFIX}"))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ArgMap, Task};

    fn record() -> Record {
        Record::empty(&Task::new("longshore.ping", ArgMap::new()))
    }

    #[tokio::test]
    async fn what_is_kept_is_read_by_the_next_and_forgotten_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("journal");
        assert!(Journal::at(place.clone()).kept().await.unwrap().is_empty(), "no folder is no error");
        let (first, second) = (record(), record());
        let journal = Journal::at(place.clone());
        journal.keep(&first).await.unwrap();
        journal.keep(&second).await.unwrap();
        journal.keep(&first).await.unwrap();
        let next = Journal::at(place);
        assert_eq!(next.kept().await.unwrap().len(), 2);
        next.forget(&first.id).await.unwrap();
        next.forget(&first.id).await.unwrap();
        assert_eq!(next.kept().await.unwrap(), [second]);
    }

    #[tokio::test]
    async fn only_whole_files_count_and_only_their_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("journal");
        let journal = Journal::at(place.clone());
        let kept = record();
        journal.keep(&kept).await.unwrap();
        std::fs::write(place.join("half.new"), b"{").unwrap();
        std::fs::write(place.join("torn.json"), b"{").unwrap();
        assert_eq!(journal.kept().await.unwrap(), std::slice::from_ref(&kept));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&journal.file(&kept.id))), (0o700, 0o600));
    }
}
