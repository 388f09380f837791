//! The names of kombu's keys and channels, as kombu 5 has them by default.

/// Separates the parts of names.
const SEPARATOR: &str = "\u{6}\u{16}";
/// Priorities are served in these steps; the first is served first and its list has the queue's own name.
const STEPS: [u8; 4] = [0, 3, 6, 9];

/// Names below one `global_keyprefix` in one database.
#[derive(Clone, Debug)]
pub(super) struct Kombu {
    global: String,
    database: i64,
}

impl Kombu {
    pub(super) fn new(global: &str, database: i64) -> Self {
        Self { global: global.to_owned(), database }
    }

    /// The lists of a queue, in the order in which they are served.
    pub(super) fn lists(&self, queue: &str) -> [String; 4] {
        STEPS.map(|step| self.list(queue, step))
    }

    /// The list of a queue for messages of kombu's `priority`, 0 being the best.
    pub(super) fn list(&self, queue: &str, priority: u8) -> String {
        match STEPS.into_iter().rfind(|step| *step <= priority) {
            Some(0) | None => format!("{}{queue}", self.global),
            Some(step) => format!("{}{queue}{SEPARATOR}{step}", self.global),
        }
    }

    /// A queue by its plain name.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.global)
    }

    /// What was taken and is not acknowledged, and since when.
    pub(super) fn unacked(&self) -> [String; 2] {
        ["unacked", "unacked_index"].map(|name| self.key(name))
    }

    /// The lock of whoever restores.
    pub(super) fn mutex(&self) -> String {
        self.key("unacked_mutex")
    }

    /// Where an exchange leads; and the part of it that stays without consumers.
    pub(super) fn bindings(&self, exchange: &str) -> [String; 2] {
        ["binding", "binding_permanent"].map(|table| self.key(&format!("_kombu.{table}.{exchange}")))
    }

    /// When tables of bindings without permanent ones are removed.
    pub(super) fn deadlines(&self) -> String {
        self.key("_kombu.binding_deadlines")
    }

    /// The channel of a fanout exchange.
    pub(super) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        let slash = if routing_key.is_empty() { "" } else { "/" };
        format!("{}/{}.{exchange}{slash}{routing_key}", self.global, self.database)
    }
}

/// A binding in a table of an exchange.
pub(super) fn binding(routing_key: &str, queue: &str) -> String {
    [routing_key, "", queue].join(SEPARATOR)
}

/// Routing key and queue of a binding.
pub(super) fn bound(member: &str) -> Option<(&str, &str)> {
    let mut parts = member.split(SEPARATOR);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(routing_key), Some(_), Some(queue), None) => Some((routing_key, queue)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_goes_to_the_list_of_the_step_below_it() {
        let kombu = Kombu::new("g-", 0);
        assert_eq!(kombu.lists("q"), ["g-q", "g-q\u{6}\u{16}3", "g-q\u{6}\u{16}6", "g-q\u{6}\u{16}9"]);
        for (priority, list) in [(0, 0), (2, 0), (3, 1), (7, 2), (9, 3), (200, 3)] {
            assert_eq!(kombu.list("q", priority), kombu.lists("q")[list], "{priority}");
        }
    }

    #[test]
    fn a_binding_comes_back() {
        assert_eq!(binding("celery", "celery"), "celery\u{6}\u{16}\u{6}\u{16}celery");
        assert_eq!(bound(&binding("a", "b")), Some(("a", "b")));
        assert_eq!(bound("a"), None);
    }
}
