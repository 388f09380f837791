//! The tasks that may have been asked to be canceled, heard live: so no task that starts costs a question.
//!
//! # Decisions
//! - Only "nobody asked" is an answer from here. Whoever stands here is asked for at the server, which knows the reason, and
//!   whether the request was forgotten meanwhile.
//! - After anything that may have made us miss one nothing is an answer, until all requests were read again.
//! - A request is kept in its bucket before the command is told, and the command is noted here before it is obeyed: a task
//!   that starts either finds the request here, or is at work when the command is obeyed.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use tokio::sync::Notify;

use super::names::{Names, bucket_stream, key_subject};
use crate::nats::{Breaks, From, Link, LinkError, Scan, name_of};
use crate::task::TaskId;

/// Requests that are remembered here. Beyond them all are read again, since most were forgotten at the server.
const MOST: usize = 65_536;

/// What one client has heard.
pub(super) struct Cancels {
    known: Mutex<Known>,
    breaks: Breaks,
    /// Rung when all are to be read again: there are too many, or the first reading failed.
    pub(super) full: Notify,
}

#[derive(Default)]
struct Known {
    tasks: HashSet<TaskId>,
    /// Heard since the last reading began.
    recent: HashSet<TaskId>,
    /// How often the connection had broken when the last reading began; `None` while nothing is an answer.
    as_of: Option<u64>,
}

impl Cancels {
    pub(super) fn new(breaks: Breaks) -> Self {
        Self { known: Mutex::default(), breaks, full: Notify::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is known that nobody asked for the end of `task`.
    pub(super) fn exclude(&self, task: &TaskId) -> bool {
        let known = self.known();
        known.as_of == Some(*self.breaks.borrow()) && !known.tasks.contains(task)
    }

    /// Notes that somebody asked.
    pub(super) fn heard(&self, task: &TaskId) {
        let mut known = self.known();
        known.tasks.insert(task.clone());
        known.recent.insert(task.clone());
        if known.tasks.len() > MOST {
            *known = Known::default();
            self.full.notify_one();
        }
    }

    /// Notes what was told on a subject of `bucket`.
    pub(super) fn hear(&self, told: &Message, bucket: &str) {
        let removed = told.headers.as_ref().is_some_and(|headers| headers.get("KV-Operation").is_some());
        if let Some(task) = task_of(&told.subject, bucket).filter(|_| !removed) {
            self.heard(&task);
        }
    }

    /// Reads all requests that are kept in `bucket`. Whatever is told from now on must be heard already.
    pub(super) async fn read(&self, link: &Link, bucket: &str) -> Result<(), LinkError> {
        let as_of = *self.breaks.borrow();
        self.known().recent.clear();
        let filter = key_subject(bucket, &Names::cancel_key_pattern());
        let mut scan = Scan::headers(link, &bucket_stream(bucket), &filter, From::Oldest).await?;
        let mut kept = HashSet::new();
        while let Some(stored) = scan.next().await? {
            if stored.header("KV-Operation").is_none() {
                kept.extend(task_of(&stored.subject, bucket));
            }
            if kept.len() > MOST / 2 {
                // As if nothing were known: each task's is asked for, as it was before.
                *self.known() = Known::default();
                scan.end().await;
                return Ok(());
            }
        }
        scan.end().await;
        let mut known = self.known();
        kept.extend(std::mem::take(&mut known.recent));
        known.tasks = kept;
        known.as_of = Some(as_of);
        Ok(())
    }
}

fn task_of(subject: &str, bucket: &str) -> Option<TaskId> {
    let key = subject.strip_prefix("$KV.")?.strip_prefix(bucket)?.strip_prefix(".cancel.")?;
    TaskId::new(name_of(key)?).ok()
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    fn task(number: usize) -> TaskId {
        TaskId::new(number.to_string()).unwrap()
    }

    #[test]
    fn only_what_was_surely_not_asked_for_is_excluded() {
        let (broke, breaks) = watch::channel(0);
        let cancels = Cancels::new(breaks);
        assert!(!cancels.exclude(&task(1)), "nothing was read");
        cancels.known().as_of = Some(0);
        assert!(cancels.exclude(&task(1)));
        cancels.heard(&task(1));
        assert!(!cancels.exclude(&task(1)) && cancels.exclude(&task(2)));
        broke.send_replace(1);
        assert!(!cancels.exclude(&task(2)), "its request may have been missed");
    }

    #[tokio::test]
    async fn nothing_is_excluded_once_there_were_too_many_until_all_are_read_again() {
        let (_broke, breaks) = watch::channel(0);
        let cancels = Cancels::new(breaks);
        cancels.known().as_of = Some(0);
        for number in 0..=MOST {
            cancels.heard(&task(number));
        }
        assert!(!cancels.exclude(&task(MOST + 1)));
        cancels.full.notified().await;
    }

    #[test]
    fn keys_of_other_kinds_and_buckets_are_none() {
        assert_eq!(task_of("$KV.p_control.cancel.a=2Eb", "p_control"), TaskId::new("a.b").ok());
        assert_eq!(task_of("$KV.p_control.pause.a", "p_control"), None);
        assert_eq!(task_of("$KV.p_control2.cancel.a", "p_control"), None);
    }
}
