//! The names of subjects, streams, consumers and buckets.

use crate::events::{EventFilter, EventKind};
use crate::nats::token;
use crate::task::{Priority, PriorityClass, QueueName, TaskId};

/// Names below one prefix. The version of the protocol stands in every subject.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

/// The class of that name.
pub(super) fn class_named(text: &str) -> Option<PriorityClass> {
    PriorityClass::ALL.into_iter().find(|class| class.as_str() == text)
}

/// What a message of `class` has that names no priority.
pub(super) fn usual_priority(class: PriorityClass) -> Priority {
    let number = match class {
        PriorityClass::High => 8,
        PriorityClass::Normal => 5,
        PriorityClass::Low => 2,
    };
    Priority::new(number).unwrap_or_default()
}

/// What one message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For a worker.
    Turn,
    /// For its time.
    Time,
}

impl Wait {
    fn as_str(self) -> &'static str {
        match self {
            Self::Turn => "task",
            Self::Time => "later",
        }
    }
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What all names begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The stream of what waits, for a worker or for its time. One for both, so that dedup ids are known to both.
    pub(super) fn work_stream(&self) -> String {
        format!("{}_work", self.prefix)
    }

    /// The stream of dead letters.
    pub(super) fn dead_stream(&self) -> String {
        format!("{}_dead", self.prefix)
    }

    /// The streams of events: status, and chatter, which must not evict it.
    pub(super) fn event_streams(&self) -> [String; 2] {
        ["status", "chatter"].map(|what| format!("{}_{what}", self.prefix))
    }

    /// The bucket of what steers queues and tasks.
    pub(super) fn control_bucket(&self) -> String {
        format!("{}_control", self.prefix)
    }

    /// The bucket of workers' presences.
    pub(super) fn workers_bucket(&self) -> String {
        format!("{}_workers", self.prefix)
    }

    /// Where messages of `queue` and `class` wait.
    pub(super) fn place(&self, wait: Wait, queue: &QueueName, class: PriorityClass) -> String {
        format!("{}.v1.{}.{}.{}", self.prefix, wait.as_str(), token(queue.as_str()), class.as_str())
    }

    /// All places of one way of waiting.
    pub(super) fn places(&self, wait: Wait) -> String {
        format!("{}.v1.{}.*.*", self.prefix, wait.as_str())
    }

    /// Everything in the stream of work.
    pub(super) fn all_places(&self) -> [String; 2] {
        [Wait::Turn, Wait::Time].map(|wait| self.places(wait))
    }

    /// What the subject of something that waits says.
    pub(super) fn read_place(&self, subject: &str) -> Option<(Wait, QueueName, PriorityClass)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".v1.")?;
        let mut tokens = rest.split('.');
        let (wait, queue, class) = (tokens.next()?, tokens.next()?, tokens.next()?);
        let wait = [Wait::Turn, Wait::Time].into_iter().find(|known| known.as_str() == wait)?;
        let queue = QueueName::new(crate::nats::name_of(queue)?).ok()?;
        if tokens.next().is_some() {
            return None;
        }
        Some((wait, queue, class_named(class)?))
    }

    /// The durable consumer of `queue` and `class`.
    pub(super) fn consumer(queue: &QueueName, class: PriorityClass) -> String {
        let token = token(queue.as_str());
        // A name of 255 bytes may become three times as long; servers take 255.
        if token.len() <= 200 {
            return format!("{token}_{}", class.as_str());
        }
        let digest: String = <sha2::Sha256 as sha2::Digest>::digest(queue.as_str().as_bytes())
            .iter()
            .take(16)
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        format!("{}_{digest}_{}", &token[..100], class.as_str())
    }

    /// The durable consumer of what waits for its time.
    pub(super) fn later_consumer() -> String {
        "later".to_owned()
    }

    /// Where dead letters of `queue` lie.
    pub(super) fn dead(&self, queue: &QueueName) -> String {
        format!("{}.v1.dead.{}", self.prefix, token(queue.as_str()))
    }

    /// Where all dead letters lie.
    pub(super) fn all_dead(&self) -> String {
        format!("{}.v1.dead.*", self.prefix)
    }

    /// The queue in the subject of a dead letter.
    pub(super) fn read_dead(&self, subject: &str) -> Option<QueueName> {
        let token = subject.strip_prefix(&self.prefix)?.strip_prefix(".v1.dead.")?;
        QueueName::new(crate::nats::name_of(token)?).ok()
    }

    /// Where an event is told.
    pub(super) fn event(&self, queue: &QueueName, task: &TaskId, kind: EventKind) -> String {
        let (queue, task) = (token(queue.as_str()), token(task.as_str()));
        format!("{}.v1.event.{queue}.{task}.{}", self.prefix, kind.as_str())
    }

    /// Where all events of a kind are told.
    pub(super) fn events_of(&self, kind: EventKind) -> String {
        format!("{}.v1.event.*.*.{}", self.prefix, kind.as_str())
    }

    /// A pattern of all subjects on which something comes that `filter` wants.
    pub(super) fn event_filter(&self, filter: &EventFilter) -> String {
        match filter.kinds[..] {
            [kind] => self.event_pattern(filter, kind.as_str()),
            _ => self.event_pattern(filter, "*"),
        }
    }

    /// What `filter` wants of one of the two streams of events, as patterns that lie within its subjects; nothing when it
    /// wants nothing of it, and one that is empty when it wants all.
    pub(super) fn event_filters(&self, filter: &EventFilter, chatter: bool) -> Vec<String> {
        let of_stream = EventKind::ALL.into_iter().filter(|kind| kind.is_chatter() == chatter);
        let wanted = |kind: &EventKind| filter.kinds.is_empty() || filter.kinds.contains(kind);
        let kinds: Vec<EventKind> = of_stream.filter(wanted).collect();
        if !kinds.is_empty() && filter.kinds.is_empty() && filter.queue.is_none() && filter.task.is_none() {
            return vec![String::new()];
        }
        kinds.into_iter().map(|kind| self.event_pattern(filter, kind.as_str())).collect()
    }

    fn event_pattern(&self, filter: &EventFilter, kind: &str) -> String {
        let of = |name: Option<&str>| name.map_or_else(|| "*".to_owned(), token);
        let queue = of(filter.queue.as_ref().map(QueueName::as_str));
        let task = of(filter.task.as_ref().map(TaskId::as_str));
        format!("{}.v1.event.{queue}.{task}.{kind}", self.prefix)
    }

    /// Where commands are told.
    pub(super) fn commands(&self) -> String {
        format!("{}.v1.command", self.prefix)
    }

    /// Where workers are asked what they hold.
    pub(super) fn roll_call(&self) -> String {
        format!("{}.v1.holding", self.prefix)
    }

    /// The key in the control bucket under which it is said why `task` was asked to be canceled.
    pub(super) fn cancel_key(task: &TaskId) -> String {
        format!("cancel.{}", token(task.as_str()))
    }

    /// A pattern of all keys of tasks that were asked to be canceled.
    pub(super) fn cancel_key_pattern() -> String {
        "cancel.*".to_owned()
    }

    /// The key in the control bucket that is there while `queue` is paused.
    pub(super) fn pause_key(queue: &QueueName) -> String {
        format!("pause.{}", token(queue.as_str()))
    }

    /// A pattern of all keys of paused queues.
    pub(super) fn pause_key_pattern() -> String {
        "pause.*".to_owned()
    }

    /// The key of a worker's presence.
    pub(super) fn worker_key(worker: &str) -> String {
        token(worker)
    }
}

/// The stream in which a bucket is kept, and the subject of a key in it, as all NATS clients have it (ADR-8).
pub(super) fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// See [`bucket_stream`].
pub(super) fn key_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_within_their_token() {
        let names = Names::new("p");
        let queue = QueueName::new("a.b>*/ä").unwrap();
        let place = names.place(Wait::Time, &queue, PriorityClass::Low);
        assert_eq!(place, "p.v1.later.a=2Eb=3E=2A=2F=C3=A4.low");
        assert_eq!(names.read_place(&place), Some((Wait::Time, queue.clone(), PriorityClass::Low)));
        assert_eq!(names.read_dead(&names.dead(&queue)), Some(queue));
        assert_eq!(names.read_place("p.v1.task.a.low.more"), None);
        let filter = EventFilter {
            task: Some(TaskId::new("x.*").unwrap()),
            kinds: vec![EventKind::Log],
            ..EventFilter::default()
        };
        assert_eq!(names.event_filter(&filter), "p.v1.event.*.x=2E=2A.log");
    }

    #[test]
    fn the_longest_names_still_name_a_consumer() {
        let (one, other) = (format!("{}.1", "ä".repeat(120)), format!("{}.2", "ä".repeat(120)));
        let name = |queue: &str| Names::consumer(&QueueName::new(queue).unwrap(), PriorityClass::High);
        assert!(name(&one).len() <= 255);
        assert_ne!(name(&one), name(&other));
    }
}
