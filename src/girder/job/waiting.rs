//! What waits for one job: in memory, and in its journal, where every change is noted before it counts. What a later process
//! finds there it takes in the same order, and so comes to the very same updates.

use std::time::Duration;

use tokio::time::Instant;

use super::journal::{Entry, Journal, Stands};
use super::script::{Script, State, Step};
use super::told;
use crate::events::{Event, EventData};
use crate::task::{Fence, Secret};

/// What waits for one job.
pub(super) struct Waiting {
    script: Script,
    /// Whether the container's own output belongs in the log.
    output: bool,
    /// Place of the last event that was taken.
    last: Option<(Fence, u64)>,
    ends: bool,
    /// It began with the end of a task: an earlier process may have told some of it.
    unsure: bool,
    /// What is being told.
    begun: Option<Step>,
    fresh: Option<(String, Secret)>,
    journal: Option<Journal>,
}

/// What becomes of the update that is being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// Girder has it, or will never take it.
    Done,
    /// It is the next again.
    Back,
}

impl Waiting {
    /// Nothing, kept in memory only.
    pub(super) fn new(output: bool, interval: Duration) -> Self {
        Self {
            script: Script::new(interval),
            output,
            last: None,
            ends: false,
            unsure: false,
            begun: None,
            fresh: None,
            journal: None,
        }
    }

    /// From now on in `journal` too; `entries` are what an earlier process left there.
    pub(super) fn keep(&mut self, journal: Journal, entries: Vec<Entry>) {
        for entry in entries {
            match entry {
                Entry::Whose { .. } => {}
                Entry::Stands(stands) => self.stand(stands),
                Entry::Told { fence, number, data } => self.take((fence, number), &data),
                Entry::Begun => self.begun = self.script.take(Instant::now()),
                Entry::Back => self.put_back(),
                Entry::Done => self.begun = None,
                Entry::Fresh { api_url, token } => self.fresh = Some((api_url, token)),
            }
        }
        self.journal = Some(journal);
    }

    /// Takes an event; what was taken before is left out.
    pub(super) fn push(&mut self, event: &Event) {
        let place = (event.fence, event.number);
        if self.last.is_some_and(|last| place <= last) {
            return;
        }
        self.unsure |= self.last.is_none() && event.kind().is_terminal();
        self.note(&Entry::Told { fence: event.fence, number: event.number, data: event.data.clone() });
        self.take(place, &event.data);
        self.shorten();
    }

    /// When the first update may go out; `None`: there is none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.script.due(now).or(self.begun.as_ref().map(|_| now))
    }

    /// Takes the first update to tell it; [`Waiting::became`] says what came of it.
    pub(super) fn begin(&mut self) -> Option<Step> {
        self.note(&Entry::Begun);
        self.begun = self.script.take(Instant::now());
        self.begun.clone()
    }

    /// The update that an earlier process had begun to tell.
    pub(super) fn begun(&self) -> Option<&Step> {
        self.begun.as_ref()
    }

    /// What came of the update that was being told.
    pub(super) fn became(&mut self, became: Became) {
        match became {
            Became::Done => {
                self.note(&Entry::Done);
                self.begun = None;
            }
            Became::Back => {
                self.note(&Entry::Back);
                self.put_back();
            }
        }
        self.shorten();
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.script.is_empty() && self.begun.is_none()
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.script.clear();
        self.begun = None;
    }

    /// Whether the task's end was taken.
    pub(super) fn ends(&self) -> bool {
        self.ends
    }

    /// Of the attempt that told last.
    pub(super) fn fence(&self) -> Fence {
        self.last.map_or(Fence(0), |(fence, _)| fence)
    }

    /// Whether some of what waits may have been told by an earlier process; asked once.
    pub(super) fn is_unsure(&mut self) -> bool {
        std::mem::take(&mut self.unsure)
    }

    /// A new token for the Girder at `api_url`.
    pub(super) fn renew(&mut self, api_url: &str, token: &Secret) {
        if self.fresh.as_ref().is_some_and(|(known, old)| (known.as_str(), old) == (api_url, token)) {
            return;
        }
        self.note(&Entry::Fresh { api_url: api_url.to_owned(), token: token.clone() });
        self.fresh = Some((api_url.to_owned(), token.clone()));
    }

    /// The newest token, and the base of the Girder that it is for.
    pub(super) fn fresh(&self) -> Option<&(String, Secret)> {
        self.fresh.as_ref()
    }

    /// Nothing will be told any more: the journal goes.
    pub(super) fn end(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }

    fn take(&mut self, place: (Fence, u64), data: &EventData) {
        self.last = Some(place);
        if let Some(text) = told::text(data, self.output) {
            if data.kind().is_chatter() {
                self.script.say(&text);
            } else {
                self.script.say_surely(&text);
            }
        }
        let state = match data {
            EventData::Staging { .. } => Some(State::Running),
            EventData::Progress(progress) => {
                self.script.progress(progress.clone());
                None
            }
            EventData::Succeeded { .. } => Some(State::Success),
            EventData::Failed { .. } | EventData::Dead { .. } => Some(State::Error),
            EventData::Canceled { .. } => Some(State::Canceled),
            EventData::Queued
            | EventData::Running { .. }
            | EventData::Log { .. }
            | EventData::Retrying { .. } => None,
        };
        if let Some(state) = state {
            self.script.become_state(state);
        }
        self.ends |= data.kind().is_terminal();
    }

    fn put_back(&mut self) {
        if let Some(step) = self.begun.take() {
            self.script.put_back(step);
        }
    }

    fn stand(&mut self, stands: Stands) {
        let Stands { last, ends, steps, left_out, begun, fresh } = stands;
        self.script.stand(steps, left_out);
        (self.last, self.ends, self.begun, self.fresh) = (last, ends, begun, fresh);
    }

    fn note(&mut self, entry: &Entry) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.append(entry)
        {
            self.give_up(&error);
        }
    }

    fn shorten(&mut self) {
        if self.journal.as_ref().is_none_or(|journal| !journal.is_long()) {
            return;
        }
        let (steps, left_out) = self.script.stands();
        let stands = Stands {
            last: self.last,
            ends: self.ends,
            steps,
            left_out,
            begun: self.begun.clone(),
            fresh: self.fresh.clone(),
        };
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.write_anew(&stands)
        {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "what waits for a job is lost if this process dies: it cannot be journaled");
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::LogStream;
    use crate::girder::job::journal::Journals;
    use crate::task::{ArgMap, QueueName, Task};

    fn event(task: &Task, number: u64, data: EventData) -> Event {
        let queue = QueueName::default();
        Event {
            task: task.id.clone(),
            queue,
            fence: Fence(7),
            number,
            time: jiff::Timestamp::UNIX_EPOCH,
            data,
        }
    }
    fn line(task: &Task, number: u64) -> Event {
        event(task, number, EventData::Log { stream: LogStream::Stdout, text: format!("line {number}") })
    }
    fn opened(journals: &Journals, task: &Task) -> Waiting {
        let mut waiting = Waiting::new(true, Duration::from_millis(500));
        let (journal, entries) = journals.open(task).unwrap().unwrap();
        waiting.keep(journal, entries);
        waiting
    }
    fn rest(waiting: &mut Waiting) -> Vec<Step> {
        std::iter::from_fn(|| {
            let step = waiting.begin();
            waiting.became(Became::Done);
            step
        })
        .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_moment_a_process_dies_at_the_next_comes_to_the_same_updates() {
        let folder = tempfile::tempdir().unwrap();
        let task = Task::new("docker_run", ArgMap::new());
        let acts: [fn(&mut Waiting); 6] = [
            |waiting| drop(waiting.begin()),
            |waiting| waiting.became(Became::Back),
            |waiting| drop(waiting.begin()),
            |waiting| waiting.became(Became::Done),
            |waiting| waiting.renew("http://a", &Secret::new("new")),
            |waiting| drop(waiting.begin()),
        ];
        for moment in 0..=acts.len() {
            let journals = Journals::at(folder.path().join(moment.to_string()));
            let (mut kept, mut alone) = (opened(&journals, &task), Waiting::new(true, Duration::ZERO));
            for waiting in [&mut kept, &mut alone] {
                let mut number = 0;
                waiting.push(&event(&task, number, EventData::Staging { attempt: 1, worker: String::new() }));
                for act in &acts[..moment] {
                    for _ in 0..3 {
                        number += 1;
                        waiting.push(&line(&task, number));
                    }
                    act(waiting);
                }
            }
            drop(kept);
            let mut found = opened(&journals, &task);
            assert_eq!(found.begun(), alone.begun(), "{moment}");
            assert_eq!((found.last, found.ends, &found.fresh), (alone.last, alone.ends, &alone.fresh));
            assert_eq!(rest(&mut found), rest(&mut alone), "{moment}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_stays_about_as_long_as_what_waits_and_goes_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::at(folder.path().join("jobs"));
        let task = Task::new("docker_run", ArgMap::new());
        let length = || -> u64 {
            let files = std::fs::read_dir(folder.path().join("jobs")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let mut waiting = opened(&journals, &task);
        for number in 1..=20_000 {
            waiting.push(&line(&task, number));
            waiting.begin();
            waiting.became(Became::Done);
        }
        assert!(length() < 70 << 10, "{}", length());
        let text = "x".repeat(32 << 10);
        for number in 20_001..=21_000 {
            let data = EventData::Log { stream: LogStream::Stdout, text: text.clone() };
            waiting.push(&event(&task, number, data));
        }
        // 32 MiB came, of which 4 wait.
        assert!(length() < 14 << 20, "{}", length());
        drop(waiting);
        let mut waiting = opened(&journals, &task);
        waiting.push(&event(&task, 20_500, EventData::Succeeded { exit_code: None }));
        assert!(!waiting.ends(), "it was taken before");
        waiting.push(&event(&task, 21_001, EventData::Canceled { reason: "so".to_owned() }));
        let told = rest(&mut waiting);
        let [.., Step::Say { text, .. }, Step::Become(State::Canceled)] = &told[..] else { panic!() };
        assert!(text.ends_with("Girder did not take them in time]\ncanceled: so\n"), "{text}");
        waiting.end();
        assert_eq!(length(), 0);
    }
}
