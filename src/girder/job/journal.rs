//! What waits to be told to a job, on this host's disk: a file for each open line, from which the next process that has the
//! folder goes on when the line's own one dies. [`Waiting`](super::waiting::Waiting) writes; [`Journals`] finds and opens.
//!
//! A file holds whose job it is and how to reach it, then how things stood, then each change since in one short write, which
//! a kill leaves done or not done. It is not synced: what a machine forgets that crashes was a few moments of a log. Beyond
//! some length it is written anew, beside its name and renamed. Files are their owner's alone, since they hold tokens, as
//! the queue and the records do.
//!
//! # Decisions
//! - A file is locked by the process that tells from it, so that nobody tells what a living process tells.
//! - A journal that cannot be written is removed: from half of it lines would be told twice.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::script::Step;
use crate::events::EventData;
use crate::girder::file::hex;
use crate::task::{ArgMap, Fence, Secret, Task, TaskId, envelope};

/// The form of the files. A process that knows another one leaves them alone.
const VERSION: u32 = 1;
/// How the files' names end.
const SUFFIX: &str = "jsonl";
/// Bytes of changes beyond which a file is written anew, unless it was long to begin with.
const LONG: u64 = 64 << 10;
/// How often opening a file that somebody removes just now is tried again.
const RACES: usize = 8;

/// A line of a journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// The task, without what its job does not need.
    Whose { version: u32, task: Value },
    /// How things stood when the file was written anew.
    Stands(Stands),
    /// This happened.
    Told { fence: Fence, number: u64, data: EventData },
    /// The first of what waits is being told.
    Begun,
    /// It was not told after all.
    Back,
    /// It was.
    Done,
    /// A new token for the Girder with this base.
    Fresh { api_url: String, token: Secret },
}

/// How the telling stands.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stands {
    /// Place of the last event that was taken.
    pub(super) last: Option<(Fence, u64)>,
    /// Whether it was the end of the task.
    pub(super) ends: bool,
    /// What waits.
    pub(super) steps: Vec<Step>,
    /// Bytes of text that are left out behind it.
    pub(super) left_out: usize,
    /// What is being told.
    pub(super) begun: Option<Step>,
    /// A new token, and the base of the Girder that it is for.
    pub(super) fresh: Option<(String, Secret)>,
}

/// The journals of one folder. Clones are the same.
#[derive(Clone, Debug)]
pub struct Journals {
    folder: Arc<Path>,
}

/// The journal of one line, locked until it is dropped.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Its first line.
    whose: Vec<u8>,
    file: File,
    /// Bytes when it was written anew, and of changes since then.
    bytes: (u64, u64),
}

/// A journal that was found, with what stands in it.
pub(super) struct Found {
    pub(super) task: Task,
    pub(super) journal: Journal,
    pub(super) entries: Vec<Entry>,
}

impl Journals {
    /// The journals in `folder`, which is made when it is needed.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder: folder.into() }
    }

    /// The journal of `task`, with what an earlier process left in it. `None`: another process tells from it.
    pub(super) fn open(&self, task: &Task) -> io::Result<Option<(Journal, Vec<Entry>)>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.place(&task.id);
        let Some(file) = lock(&path)? else { return Ok(None) };
        let content = fs::read(&path)?;
        let mut journal = Journal { path, whose: whose(task)?, file, bytes: (content.len() as u64, 0) };
        let mut entries = read(&content);
        if let Some(Entry::Whose { version: VERSION, .. }) = entries.first() {
            entries.remove(0);
        } else {
            // New, or of a form that nobody here understands.
            entries.clear();
            journal.write_anew(&Stands::default())?;
        }
        Ok(Some((journal, entries)))
    }

    /// The journals from which no living process tells.
    pub(super) fn left_behind(&self) -> io::Result<Vec<Found>> {
        let folder = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            folder => folder?,
        };
        let mut left = Vec::new();
        for entry in folder {
            let path = entry?.path();
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                continue;
            }
            match find(&path) {
                Ok(Some(found)) => left.push(found),
                Ok(None) => {}
                Err(error) => tracing::error!(
                    file = %path.display(), %error,
                    "what waits for a job in Girder cannot be read: it is not told; remove the file"
                ),
            }
        }
        Ok(left)
    }

    fn place(&self, task: &TaskId) -> PathBuf {
        let name = hex(&Sha256::digest(task.as_str().as_bytes()));
        self.folder.join(format!("{}.{SUFFIX}", &name[..32]))
    }
}

impl Journal {
    /// Notes a change.
    pub(super) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let line = line(entry)?;
        self.file.write_all(&line)?;
        self.bytes.1 += line.len() as u64;
        Ok(())
    }

    /// Whether it is time to write it anew.
    pub(super) fn is_long(&self) -> bool {
        self.bytes.1 > LONG.max(2 * self.bytes.0)
    }

    /// Writes it anew, whole or not at all.
    pub(super) fn write_anew(&mut self, stands: &Stands) -> io::Result<()> {
        let mut content = self.whose.clone();
        content.extend(stands_line(stands)?);
        let draft = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&content)?;
        // Locked before anybody can find it.
        file.try_lock().map_err(io::Error::from)?;
        fs::rename(&draft, &self.path)?;
        self.file = file;
        self.bytes = (content.len() as u64, 0);
        Ok(())
    }

    /// Removes it: nothing waits any more, or it will never be told.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "what was told to a job stays behind");
        }
    }
}

/// Opens and locks the file at `path`, a new one if need be. `None`: another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..RACES {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had it may have removed or replaced it between the two calls.
        let (ours, there) = (file.metadata()?, fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(Some(file));
        }
    }
    Err(io::Error::other("others remove it again and again"))
}

fn find(path: &Path) -> io::Result<Option<Found>> {
    let Some(file) = lock(path)? else { return Ok(None) };
    let content = fs::read(path)?;
    let mut entries = read(&content);
    let first = if entries.is_empty() { None } else { Some(entries.remove(0)) };
    let task = match first {
        Some(Entry::Whose { version: VERSION, task: Value::Object(task) }) => {
            envelope::from_map(task).map_err(io::Error::other)?
        }
        _ if content.is_empty() => {
            fs::remove_file(path)?;
            return Ok(None);
        }
        _ => {
            return Err(io::Error::other(format!(
                "it does not begin as a journal of version {VERSION} does"
            )));
        }
    };
    let journal =
        Journal { path: path.to_owned(), whose: whose(&task)?, file, bytes: (content.len() as u64, 0) };
    Ok(Some(Found { task, journal, entries }))
}

/// What can be read of a journal; the last line may be torn.
fn read(content: &[u8]) -> Vec<Entry> {
    let lines = content.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.map_while(|line| serde_json::from_slice(line).ok()).collect()
}

/// The first line of the journal of `task`.
fn whose(task: &Task) -> io::Result<Vec<u8>> {
    let task =
        Task { args: ArgMap::new(), result_hooks: Vec::new(), extra: serde_json::Map::new(), ..task.clone() };
    line(&Entry::Whose { version: VERSION, task: serde_json::to_value(&task)? })
}

fn stands_line(stands: &Stands) -> io::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Line<'a> {
        Stands(&'a Stands),
    }
    line(&Line::Stands(stands))
}

fn line(entry: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task::new("docker_run", ArgMap::new())
    }
    fn said(text: &str) -> Entry {
        let data = EventData::Canceled { reason: text.to_owned() };
        Entry::Told { fence: Fence(1), number: 0, data }
    }
    fn texts(entries: &[Entry]) -> Vec<String> {
        let mut texts = Vec::new();
        for entry in entries {
            if let Entry::Told { data: EventData::Canceled { reason }, .. } = entry {
                texts.push(reason.clone());
            }
        }
        texts
    }

    #[test]
    fn what_a_process_left_is_found_by_the_next_and_not_while_the_first_lives() {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::at(folder.path().join("jobs"));
        assert!(journals.left_behind().unwrap().is_empty());
        let task = task();
        let (mut journal, entries) = journals.open(&task).unwrap().unwrap();
        assert!(entries.is_empty());
        journal.append(&said("a")).unwrap();
        assert!(journals.left_behind().unwrap().is_empty() && journals.open(&task).unwrap().is_none());
        drop(journal);

        let found = journals.left_behind().unwrap().pop().unwrap();
        assert_eq!((&found.task.id, texts(&found.entries)), (&task.id, vec!["a".to_owned()]));
        drop(found);
        let (mut journal, entries) = journals.open(&task).unwrap().unwrap();
        assert_eq!(texts(&entries), ["a"]);
        journal.append(&said("b")).unwrap();
        // Also the file that took the place of another is locked.
        journal.write_anew(&Stands::default()).unwrap();
        assert!(journals.open(&task).unwrap().is_none());
        journal.append(&said("c")).unwrap();
        drop(journal);
        let (journal, entries) = journals.open(&task).unwrap().unwrap();
        assert_eq!(texts(&entries), ["c"]);
        journal.remove();
        assert_eq!(fs::read_dir(folder.path().join("jobs")).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_line_ends_a_journal_and_a_foreign_form_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::at(folder.path().to_owned());
        let task = task();
        let (mut journal, _) = journals.open(&task).unwrap().unwrap();
        journal.append(&said("a")).unwrap();
        journal.file.write_all(b"{\"told\": {\"fe").unwrap();
        let path = journal.path.clone();
        drop(journal);
        let found = journals.left_behind().unwrap().pop().unwrap();
        assert_eq!(texts(&found.entries), ["a"]);
        drop(found);
        fs::write(&path, "{\"whose\": {\"version\": 9, \"task\": {}}}\n").unwrap();
        assert!(journals.left_behind().unwrap().is_empty() && path.exists());
    }

    #[test]
    fn only_what_the_job_needs_of_a_task_is_kept_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::at(folder.path().join("jobs"));
        let mut task = task();
        task.extra.insert("secret".to_owned(), "hunter2".into());
        let (journal, _) = journals.open(&task).unwrap().unwrap();
        let content = fs::read_to_string(&journal.path).unwrap();
        assert!(content.contains(task.id.as_str()) && !content.contains("hunter2"), "{content}");
        for (path, mode) in [(journal.path.as_path(), 0o600), (&folder.path().join("jobs"), 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, mode, "{}", path.display());
        }
    }
}
