//! What of an attempt's outputs was brought away, written down as it happens: from it a later try, or a later process, goes
//! on without sending twice. Called by the transforms that upload.
//!
//! One file of lines in a folder that only the worker can enter. Each line is one short write, which a kill leaves done or
//! not done. It is not synced: after a crash of the machine a file that was just sent may be sent again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::outputs::path_bytes;
use super::workspace::hex;
use crate::girder::upload::Begun;

const NAME: &str = "sent.jsonl";

/// Which output: the number of its hook, and its path's bytes in hexadecimal.
type Key = (usize, String);

/// The outputs of one attempt. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Opened with the first line.
    file: Option<File>,
    known: HashMap<Key, Known>,
}

/// What is known of one output.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    begun: Option<Begun>,
    done: Option<Value>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    hook: usize,
    path: String,
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Begun(Begun),
    Acknowledged(u64),
    Done(Value),
}

/// One output of [`Sent`].
#[derive(Clone, Debug)]
pub(super) struct Item {
    sent: Sent,
    key: Key,
}

impl Sent {
    /// What is written in `folder`, if anything, and will be.
    pub(super) fn at(folder: &Path) -> Self {
        let path = folder.join(NAME);
        let text = std::fs::read(&path).unwrap_or_default();
        let mut known: HashMap<Key, Known> = HashMap::new();
        for line in text.split(|byte| *byte == b'\n') {
            // What a kill cut short had not happened.
            let Ok(Line { hook, path, what }) = serde_json::from_slice(line) else { continue };
            known.entry((hook, path)).or_default().note(what);
        }
        Self { inner: Arc::new(Mutex::new(Inner { path, file: None, known })) }
    }

    /// The output at `path` of the hook numbered `hook`.
    pub(super) fn item(&self, hook: usize, path: &Path) -> Item {
        Item { sent: self.clone(), key: (hook, hex(&path_bytes(path))) }
    }

    /// What was told of every file that went to an item or a folder, in the words of a record.
    pub(super) fn uploads(&self) -> Vec<Value> {
        let done = |known: &Known| known.done.clone().filter(|told| told.get("upload").is_some());
        self.lock().known.values().filter_map(done).collect()
    }

    /// The same in another folder, which must be there.
    pub(super) fn copy_to(&self, folder: &Path) -> io::Result<()> {
        let inner = self.lock();
        let mut text = Vec::new();
        for ((hook, path), known) in &inner.known {
            let begun = known.begun.clone().map(What::Begun);
            for what in begun.into_iter().chain(known.done.clone().map(What::Done)) {
                serde_json::to_writer(&mut text, &Line { hook: *hook, path: path.clone(), what })?;
                text.push(b'\n');
            }
        }
        let mut file = open(&folder.join(NAME))?;
        file.write_all(&text)?;
        file.sync_all()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Item {
    /// What was told of it, when it was brought away before.
    pub(super) fn done(&self) -> Option<Value> {
        self.sent.lock().known.get(&self.key)?.done.clone()
    }

    /// How far an earlier try came.
    pub(super) fn begun(&self) -> Option<Begun> {
        self.sent.lock().known.get(&self.key)?.begun.clone()
    }

    /// A try began.
    pub(super) fn note_begun(&self, begun: Begun) {
        self.note(What::Begun(begun));
    }

    /// It came so far.
    pub(super) fn note_acknowledged(&self, offset: u64) {
        self.note(What::Acknowledged(offset));
    }

    /// It was brought away, of which this is told.
    pub(super) fn note_done(&self, told: Value) {
        self.note(What::Done(told));
    }

    fn note(&self, what: What) {
        let (hook, path) = self.key.clone();
        let line = Line { hook, path, what };
        let written = serde_json::to_vec(&line);
        let mut inner = self.sent.lock();
        inner.known.entry(self.key.clone()).or_default().note(line.what);
        let written = written.map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            inner.append(&text)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "what is uploaded cannot be written down: a later process may send it again");
        }
    }
}

impl Inner {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(line))
    }
}

impl Known {
    fn note(&mut self, what: What) {
        match what {
            What::Begun(begun) => self.begun = Some(begun),
            What::Acknowledged(offset) => {
                if let Some(begun) = &mut self.begun {
                    begun.offset = offset;
                }
            }
            What::Done(told) => *self = Self { begun: None, done: Some(told) },
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn begun() -> Begun {
        Begun {
            upload: "u".to_owned(),
            at: "2026-11-23T10:00:00Z".parse().unwrap(),
            replaces: None,
            offset: 0,
        }
    }

    #[test]
    fn what_was_sent_is_known_to_the_next_process_by_hook_and_path() {
        let folder = tempfile::tempdir().unwrap();
        let odd = Path::new(OsStr::from_bytes(b"a\xff/b"));
        let sent = Sent::at(folder.path());
        sent.item(0, odd).note_begun(begun());
        sent.item(0, odd).note_acknowledged(7);
        let told = serde_json::json!({"upload": "new"});
        sent.item(1, odd).note_done(told.clone());
        let elsewhere = tempfile::tempdir().unwrap();
        sent.copy_to(elsewhere.path()).unwrap();
        for place in [&folder, &elsewhere] {
            let next = Sent::at(place.path());
            assert_eq!(next.item(0, odd).begun(), Some(Begun { offset: 7, ..begun() }));
            assert_eq!((next.item(0, odd).done(), next.item(1, odd).done()), (None, Some(told.clone())));
            assert_eq!(next.uploads(), std::slice::from_ref(&told));
            next.item(0, odd).note_done(Value::from("also"));
            assert_eq!(Sent::at(place.path()).item(0, odd).begun(), None);
        }
    }

    #[test]
    fn a_line_that_a_kill_cut_short_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new("a");
        Sent::at(folder.path()).item(0, path).note_done(Value::from("told"));
        let file = folder.path().join(NAME);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(Sent::at(folder.path()).item(0, path).done(), None);
    }
}
