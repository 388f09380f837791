//! The names and labels by which our containers are told from everybody else's.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::engine::Listed;
use crate::handler::Attempt;
use crate::task::{Fence, TaskId};

/// Whose container it is: the worker's stable instance.
pub const INSTANCE: &str = "longshore.instance";
/// The task.
pub const TASK: &str = "longshore.task";
/// The attempt's number.
pub const ATTEMPT: &str = "longshore.attempt";
/// The attempt's fence.
pub const FENCE: &str = "longshore.fence";
/// The worker's name.
pub const WORKER: &str = "longshore.worker";
/// The name that the task asked for.
pub const NAME: &str = "longshore.name";
/// Stands on a container that the task wants kept after its end.
pub const KEEP: &str = "longshore.keep";
/// Stands on a container that removes files.
pub const CLEANER: &str = "longshore.cleaner";

/// What becomes of a container once it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is removed.
    Remove,
    /// It stays for whoever wants to look at it.
    Keep,
}

/// The name of an attempt's container: a second one of the same attempt cannot be made.
pub fn name(task: &TaskId, fence: Fence) -> String {
    let sum = Sha256::digest(task.as_str().as_bytes());
    let hash = sum.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("longshore-{hash}-{fence}")
}

/// The labels of an attempt's container.
pub fn labels(
    attempt: &Attempt,
    wished_name: Option<&str>,
    afterwards: Afterwards,
) -> HashMap<String, String> {
    let own = [
        (INSTANCE, attempt.instance().to_owned()),
        (TASK, attempt.task().id.to_string()),
        (ATTEMPT, attempt.number().to_string()),
        (FENCE, attempt.fence().to_string()),
        (WORKER, attempt.worker().to_owned()),
    ];
    let mut labels: HashMap<String, String> =
        own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if let Some(name) = wished_name {
        labels.insert(NAME.to_owned(), name.to_owned());
    }
    match afterwards {
        Afterwards::Keep => labels.insert(KEEP.to_owned(), "true".to_owned()),
        Afterwards::Remove => None,
    };
    labels
}

/// Whether these are the labels of what `instance` made for the attempt of `task` with `fence`.
pub(super) fn belong_to(
    labels: &HashMap<String, String>,
    instance: &str,
    (task, fence): (&TaskId, Fence),
) -> bool {
    let says = |key: &str, value: &str| labels.get(key).is_some_and(|said| said == value);
    says(INSTANCE, instance) && says(TASK, task.as_str()) && says(FENCE, &fence.to_string())
}

/// What becomes of a container with these labels once it ended.
pub(super) fn afterwards(labels: &HashMap<String, String>) -> Afterwards {
    if labels.contains_key(KEEP) { Afterwards::Keep } else { Afterwards::Remove }
}

/// The task and fence that a container of ours was made for; none when its labels do not say.
pub fn owner(container: &Listed) -> Option<(TaskId, Fence)> {
    let task = TaskId::new(container.labels.get(TASK)?.as_str()).ok()?;
    let fence = container.labels.get(FENCE)?.parse().ok()?;
    Some((task, Fence(fence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_the_task_and_the_fence() {
        let task = TaskId::new("a:task/with,anything").unwrap();
        let name = name(&task, Fence(7));
        assert!(name.starts_with("longshore-") && name.ends_with("-7"), "{name}");
        assert_eq!(name.len(), "longshore-".len() + 16 + 2);
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
    }
}
