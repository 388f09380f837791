//! The book of one attempt: two files in its workspace from which the worker's next process goes on.
//!
//! `begun.json` holds what the attempt is made of and is written whole before the container is created; `told.jsonl`
//! holds what is told of it, each event before it is sent. Appending is one short write, which a kill leaves done or not
//! done; neither file is synced, since no container outlives a crash of the machine. [`LogBook`] writes, [`find`] reads.
//!
//! # Decisions
//! - Only events that some sink may not have taken are kept; the file is written anew when it grows.
//! - A book that cannot be written is torn up, so that nobody goes on from half the truth: the container is then removed
//!   and its task run again.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::events::{Book, Event, EventData, Standing, Told};
use crate::handler::Attempt;
use crate::pipeline;
use crate::store::{Details, PhaseTimes};
use crate::task::{Fence, Task, TaskId};

/// The form of both files. A process that knows another one does not go on from them.
const VERSION: u32 = 1;
const BEGUN: &str = "begun.json";
const TOLD: &str = "told.jsonl";
/// Beyond this many bytes `told.jsonl` is written anew without what every sink has taken.
const LONG: u64 = 1 << 20;

/// What an attempt is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    version: u32,
    /// The task.
    pub(super) task: TaskId,
    /// The attempt's fence.
    pub(super) fence: Fence,
    /// Counts from 1.
    pub(super) attempt: u32,
    /// The image's name.
    pub(super) image: String,
    /// What the record will say.
    pub(super) details: Details,
    /// Which points were reached.
    pub(super) times: PhaseTimes,
    /// What the pipeline made.
    pub(super) made: pipeline::Made,
}

impl Begun {
    /// What is known of `attempt` now.
    pub(super) fn of(attempt: &Attempt, image: &str, made: pipeline::Made) -> Self {
        let (times, details) = attempt.report().snapshot();
        Self {
            version: VERSION,
            task: attempt.task().id.clone(),
            fence: attempt.fence(),
            attempt: attempt.number(),
            image: image.to_owned(),
            details: Details { log_tail: String::new(), ..details },
            times,
            made,
        }
    }

    /// The same of one whose container has ended, with what it said last: nobody reads that again.
    pub(super) fn ended(attempt: &Attempt, image: &str) -> Self {
        let (_, details) = attempt.report().snapshot();
        let begun = Self::of(attempt, image, pipeline::Made::default());
        Self { details, ..begun }
    }
}

/// A line of `told.jsonl`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// How things stood when the file was begun.
    Stands(Standing),
    /// An event that is being sent, and how things stand then.
    Telling { number: u64, time: Timestamp, data: EventData, after: Standing },
    /// Every sink has taken the events up to this number.
    Taken(u64),
}

/// Writes the book of one attempt.
pub(super) struct LogBook {
    inner: Mutex<Inner>,
}

struct Inner {
    folder: PathBuf,
    /// `None` once it could not be written.
    file: Option<File>,
    bytes: u64,
    standing: Standing,
    /// What some sink may not have taken, as it stands in the file.
    pending: VecDeque<(u64, String)>,
}

impl LogBook {
    /// Begins the book in `folder`, which only the worker may enter.
    pub(super) fn begin(folder: &Path, begun: &Begun, standing: Standing) -> io::Result<Self> {
        let book = Self::write(folder, standing, VecDeque::new())?;
        let text = serde_json::to_vec(begun).map_err(io::Error::other)?;
        replace(folder, BEGUN, &text)?;
        Ok(book)
    }

    /// Goes on with a book that was found.
    pub(super) fn go_on(folder: &Path, told: &Told) -> io::Result<Self> {
        let pending = told.pending.iter().map(|event| (event.number, telling(event, &told.standing)));
        Self::write(folder, told.standing.clone(), pending.collect())
    }

    fn write(folder: &Path, standing: Standing, pending: VecDeque<(u64, String)>) -> io::Result<Self> {
        let mut inner = Inner { folder: folder.to_owned(), file: None, bytes: 0, standing, pending };
        inner.write_anew()?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Whether another process could go on from it.
    pub(super) fn is_sound(&self) -> bool {
        self.lock().file.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book for LogBook {
    fn telling(&self, event: &Event, after: &Standing) {
        let mut inner = self.lock();
        if inner.file.is_none() {
            return;
        }
        let line = telling(event, after);
        inner.standing = after.clone();
        inner.append(&line);
        inner.pending.push_back((event.number, line));
        if inner.bytes > LONG {
            let anew = inner.write_anew();
            inner.tear_up_unless(anew);
        }
    }

    fn taken(&self, number: u64) {
        let mut inner = self.lock();
        while inner.pending.front().is_some_and(|(first, _)| *first <= number) {
            inner.pending.pop_front();
        }
        inner.append(&line(&Line::Taken(number)));
    }
}

impl Inner {
    fn append(&mut self, line: &str) {
        let Some(file) = &mut self.file else { return };
        self.bytes += line.len() as u64;
        let written = file.write_all(line.as_bytes());
        self.tear_up_unless(written);
    }

    fn write_anew(&mut self) -> io::Result<()> {
        let mut text = line(&Line::Stands(self.standing.clone()));
        text.extend(self.pending.iter().map(|(_, line)| line.as_str()));
        self.file = Some(replace(&self.folder, TOLD, text.as_bytes())?);
        // What is pending is written with every file, and must not make each too long at once.
        self.bytes = 0;
        Ok(())
    }

    fn tear_up_unless(&mut self, written: io::Result<()>) {
        let Err(error) = written else { return };
        tracing::debug!(folder = %self.folder.display(), %error, "nobody can go on from this book");
        self.file = None;
        self.pending.clear();
        if let Err(error) = fs::remove_file(self.folder.join(BEGUN)) {
            tracing::debug!(%error, "its beginning stays until its workspace goes");
        }
    }
}

fn telling(event: &Event, after: &Standing) -> String {
    let Event { number, time, ref data, .. } = *event;
    line(&Line::Telling { number, time, data: data.clone(), after: after.clone() })
}

fn line(line: &Line) -> String {
    let mut text =
        serde_json::to_string(line).expect("invariant: an event has text keys and finite numbers only");
    text.push('\n');
    text
}

/// Puts `bytes` in place of the file `name`, whole or not at all, and returns it open at its end.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<File> {
    let draft = folder.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    fs::rename(&draft, folder.join(name))?;
    Ok(file)
}

/// What the attempt of `task` with `fence` was made of; none when no book of it is in `folder` that this build can read.
pub(super) fn begun(folder: &Path, task: &TaskId, fence: Fence) -> Option<Begun> {
    let begun: Begun = serde_json::from_slice(&fs::read(folder.join(BEGUN)).ok()?).ok()?;
    ((begun.version, &begun.task, begun.fence) == (VERSION, task, fence)).then_some(begun)
}

/// The whole book of that attempt.
pub(super) fn find(folder: &Path, task: &Task, fence: Fence) -> Option<(Begun, Told)> {
    let begun = begun(folder, &task.id, fence)?;
    let text = String::from_utf8(fs::read(folder.join(TOLD)).ok()?).ok()?;
    let mut told: Option<Told> = None;
    for text in text.lines() {
        // What a kill cut short was not sent.
        let Ok(line) = serde_json::from_str::<Line>(text) else { break };
        match line {
            Line::Stands(standing) => told = Some(Told { standing, pending: Vec::new() }),
            Line::Telling { number, time, data, after } => {
                let told = told.as_mut()?;
                let (task, queue) = (task.id.clone(), task.queue.clone());
                told.pending.push(Event { task, queue, fence, number, time, data });
                told.standing = after;
            }
            Line::Taken(number) => told.as_mut()?.pending.retain(|event| event.number > number),
        }
    }
    Some((begun, told?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{LogStream, Mark};
    use crate::task::ArgMap;

    fn attempt() -> Attempt {
        Attempt::detached(Task::new("docker_run", ArgMap::new()))
    }
    fn said(attempt: &Attempt, number: u64) -> Event {
        Event {
            task: attempt.task().id.clone(),
            queue: attempt.task().queue.clone(),
            fence: attempt.fence(),
            number,
            time: "2026-11-23T10:00:00Z".parse().unwrap(),
            data: EventData::Log { stream: LogStream::Stdout, text: "x".repeat(100) },
        }
    }
    fn after(number: u64) -> Standing {
        let stdout = Mark { lines: number, within: 0 };
        Standing { next: number + 1, stdout, ..Standing::default() }
    }
    fn begin(folder: &Path, attempt: &Attempt) -> LogBook {
        let begun = Begun::of(attempt, "busybox", pipeline::Made::default());
        LogBook::begin(folder, &begun, Standing { next: 3, ..Standing::default() }).unwrap()
    }
    fn found(folder: &Path, attempt: &Attempt) -> Option<Told> {
        find(folder, attempt.task(), attempt.fence()).map(|(_, told)| told)
    }

    #[test]
    fn what_may_not_have_arrived_is_found_with_how_far_it_reached() {
        let (folder, attempt) = (tempfile::tempdir().unwrap(), attempt());
        let book = begin(folder.path(), &attempt);
        assert_eq!(found(folder.path(), &attempt).unwrap().standing.next, 3);
        for number in 3..6 {
            book.telling(&said(&attempt, number), &after(number));
        }
        book.taken(3);
        let told = found(folder.path(), &attempt).unwrap();
        assert_eq!(told.pending, [said(&attempt, 4), said(&attempt, 5)]);
        assert_eq!(told.standing, after(5));
        let next = LogBook::go_on(folder.path(), &told).unwrap();
        assert_eq!(found(folder.path(), &attempt), Some(told));
        next.taken(5);
        assert_eq!(found(folder.path(), &attempt).unwrap().pending, []);
    }

    #[test]
    fn a_line_that_a_kill_cut_short_counts_for_nothing_and_another_attempts_book_is_none() {
        let (folder, attempt) = (tempfile::tempdir().unwrap(), attempt());
        let book = begin(folder.path(), &attempt);
        book.telling(&said(&attempt, 3), &after(3));
        let path = folder.path().join(TOLD);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[whole.len() - 60..whole.len() - 9]].concat()).unwrap();
        assert_eq!(found(folder.path(), &attempt).unwrap().standing, after(3));
        assert!(find(folder.path(), attempt.task(), Fence(1)).is_none());
    }

    #[test]
    fn a_long_book_keeps_only_what_is_pending() {
        let (folder, attempt) = (tempfile::tempdir().unwrap(), attempt());
        let book = begin(folder.path(), &attempt);
        for number in 3..20_000 {
            book.telling(&said(&attempt, number), &after(number));
            if number > 3 {
                book.taken(number - 1);
            }
        }
        let bytes = fs::metadata(folder.path().join(TOLD)).unwrap().len();
        assert!(bytes < 2 * LONG, "{bytes}");
        let told = found(folder.path(), &attempt).unwrap();
        assert_eq!((told.pending, told.standing), (vec![said(&attempt, 19_999)], after(19_999)));
    }

    #[test]
    fn a_book_that_cannot_be_written_is_none() {
        let (folder, attempt) = (tempfile::tempdir().unwrap(), attempt());
        let book = begin(folder.path(), &attempt);
        fs::create_dir(folder.path().join(format!("{TOLD}.new"))).unwrap();
        for number in 3..20_000 {
            book.telling(&said(&attempt, number), &after(number));
        }
        assert!(!book.is_sound());
        assert!(found(folder.path(), &attempt).is_none());
    }
}
