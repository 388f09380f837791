//! The names of keys and channels. `lua/common.lua` says what is in a queue's keys.

use crate::events::{EventFilter, EventKind};
use crate::task::{Priority, PriorityClass, QueueName, TaskId};

/// Names below one prefix.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Keys {
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

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What the keys of `queue` begin with; the name is their hash tag.
    pub(in crate::broker) fn stem(&self, queue: &QueueName) -> String {
        format!("{}:queue:{{{}}}", self.prefix, token(queue.as_str()))
    }

    /// The names of queues.
    pub(super) fn queues(&self) -> String {
        format!("{}:queues", self.prefix)
    }

    /// The channel on which fetchers hear of what no blocking read tells them: ms until something is due.
    pub(in crate::broker) fn bell(&self) -> String {
        format!("{}:bell", self.prefix)
    }

    /// The channel of commands.
    pub(super) fn commands(&self) -> String {
        format!("{}:commands", self.prefix)
    }

    /// Why `task` was asked to be canceled.
    pub(super) fn cancel(&self, task: &TaskId) -> String {
        format!("{}:cancel:{{{}}}", self.prefix, token(task.as_str()))
    }

    /// The tasks that were asked to be canceled, by when.
    pub(super) fn cancels(&self) -> String {
        format!("{}:cancels", self.prefix)
    }

    /// Streams of status and chatter, and the newest id of both.
    pub(super) fn events(&self) -> [String; 3] {
        ["status", "chatter", "newest"].map(|what| format!("{}:{{events}}:{what}", self.prefix))
    }

    /// What the channels of events begin with.
    pub(super) fn event_channels(&self) -> String {
        format!("{}:event:", self.prefix)
    }

    /// The rest of the channel of one event.
    pub(super) fn event_channel(queue: &QueueName, task: &TaskId, kind: EventKind) -> String {
        format!("{}:{}:{}", token(queue.as_str()), token(task.as_str()), kind.as_str())
    }

    /// A pattern of all channels on which something comes that `filter` wants.
    pub(super) fn event_pattern(&self, filter: &EventFilter) -> String {
        let of = |name: Option<&str>| name.map_or_else(|| "*".to_owned(), |name| literal(&token(name)));
        let kind = match filter.kinds[..] {
            [kind] => kind.as_str(),
            _ => "*",
        };
        format!(
            "{}{}:{}:{kind}",
            literal(&self.event_channels()),
            of(filter.queue.as_ref().map(QueueName::as_str)),
            of(filter.task.as_ref().map(TaskId::as_str)),
        )
    }

    /// When each worker's presence ends, and what it said.
    pub(super) fn workers(&self) -> [String; 2] {
        ["deadlines", "presences"].map(|what| format!("{}:{{workers}}:{what}", self.prefix))
    }
}

/// A name without what separates names and tags.
fn token(name: &str) -> String {
    if !name.contains(['%', ':', '{', '}']) {
        return name.to_owned();
    }
    name.replace('%', "%25").replace(':', "%3A").replace('{', "%7B").replace('}', "%7D")
}

/// A text as a pattern that matches it alone.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_within_their_part_of_a_key() {
        let keys = Keys::new("p");
        assert_eq!(keys.stem(&QueueName::new("a}b{c:d%").unwrap()), "p:queue:{a%7Db%7Bc%3Ad%25}");
        let filter = EventFilter {
            task: Some(TaskId::new("x*[y]").unwrap()),
            kinds: vec![EventKind::Log],
            ..EventFilter::default()
        };
        assert_eq!(keys.event_pattern(&filter), r"p:event:*:x\*\[y\]:log");
    }

    #[test]
    fn the_usual_priority_of_a_class_is_of_it() {
        for class in PriorityClass::ALL {
            assert_eq!(usual_priority(class).class(), class);
            assert_eq!(class_named(class.as_str()), Some(class));
        }
    }
}
