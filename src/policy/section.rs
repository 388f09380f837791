//! The rules of one queue, or of all others: values, where each comes from, and how it is called.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::Value;

use super::denied::shown;
use super::mount::Root;
use super::profile::Profile;
use super::rules::{Mode, PolicySettings, Rules};
use super::terms::TermError;
use crate::task::QueueName;

/// Settings that are no rules.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A section of a queue inside of a section of a queue.
    #[error("policy.queue.{0}.queue: a queue's section has no sections of queues, move it up")]
    Nested(QueueName),
    /// A user that is none.
    #[error("{setting}: {source}")]
    User {
        /// The key.
        setting: String,
        /// What is wrong.
        source: TermError,
    },
    /// A root that others can put something else in place of.
    #[error(
        "{setting}: {root} lies in {folder}, in which everyone may replace it: take the right to write from others, \
         or name another root"
    )]
    Root {
        /// The key.
        setting: String,
        /// The root.
        root: PathBuf,
        /// The folder above it.
        folder: PathBuf,
    },
    /// Values that do not fit together; the settings' own types leave none.
    #[error("policy: {0}")]
    Rules(#[from] serde_json::Error),
}

/// Rules, and what is needed to name them.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) rules: Rules,
    pub(super) mode: Mode,
    profile: Profile,
    /// The rules as JSON, to show values by their keys.
    values: Value,
    /// The queue, and what its own section writes.
    queue: Option<(QueueName, Value)>,
}

impl Section {
    pub(super) fn base(settings: &PolicySettings) -> Result<Self, PolicyError> {
        let profile = settings.profile.unwrap_or_default();
        let values = overlaid(serde_json::to_value(profile.rules())?, written(settings)?);
        Self::checked(values, settings.mode.unwrap_or_default(), profile, None)
    }

    pub(super) fn of_queue(
        settings: &PolicySettings,
        queue: &QueueName,
        own: &PolicySettings,
    ) -> Result<Self, PolicyError> {
        if !own.queue.is_empty() {
            return Err(PolicyError::Nested(queue.clone()));
        }
        let profile = own.profile.or(settings.profile).unwrap_or_default();
        let mut values = serde_json::to_value(profile.rules())?;
        if own.profile.is_none() {
            values = overlaid(values, written(settings)?);
        }
        let own_values = written(own)?;
        let values = overlaid(values, own_values.clone());
        let mode = own.mode.or(settings.mode).unwrap_or_default();
        // A queue with a profile of its own takes nothing from the worker's keys: all of them are the queue's.
        let owned = if own.profile.is_some() { values.clone() } else { own_values };
        Self::checked(values, mode, profile, Some((queue.clone(), owned)))
    }

    fn checked(
        values: Value,
        mode: Mode,
        profile: Profile,
        queue: Option<(QueueName, Value)>,
    ) -> Result<Self, PolicyError> {
        let section = Self { rules: serde_json::from_value(values.clone())?, mode, profile, values, queue };
        let user = &section.rules.user;
        if user.is_empty() || user.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let source = TermError::new(user.clone(), "write \"image\", or a user such as \"65534:65534\"");
            return Err(PolicyError::User { setting: section.setting("user"), source });
        }
        for root in &section.rules.binds.roots {
            if let Some(folder) = replaceable(root) {
                let setting = section.setting("binds.roots");
                return Err(PolicyError::Root { setting, root: root.path().to_owned(), folder });
            }
        }
        Ok(section)
    }

    /// The full name of a key such as `binds.roots`: the queue's own where the queue's section decides it.
    pub(super) fn setting(&self, key: &str) -> String {
        match &self.queue {
            Some((queue, own)) if at(own, key).is_some() => format!("policy.queue.{queue}.{key}"),
            _ => format!("policy.{key}"),
        }
    }

    /// The value of a key as it may stand in the settings.
    pub(super) fn value(&self, key: &str) -> String {
        at(&self.values, key).map_or_else(String::new, shown)
    }

    pub(super) fn warnings(&self, who: &str) -> Vec<String> {
        let open = (self.profile == Profile::Open).then(|| {
            format!(
                "{who} uses policy profile \"open\": tasks may ask for everything that the engine can do, such as \
                 privileged containers and any host path; set policy.profile = \"standard\" unless every producer is trusted"
            )
        });
        let audit = (self.mode == Mode::Audit).then(|| {
            format!("{who} only audits its policy: violations are told and run; set policy.mode = \"enforce\" to refuse them")
        });
        open.into_iter().chain(audit).collect()
    }
}

/// What a section writes of rules.
fn written(settings: &PolicySettings) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(settings)?;
    if let Value::Object(map) = &mut value {
        for key in ["profile", "mode", "queue"] {
            map.shift_remove(key);
        }
    }
    Ok(value)
}

/// `base` with the values of `over` in place of its own, map by map.
fn overlaid(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match base.shift_remove(&key) {
                    Some(old) => overlaid(old, value),
                    None => value,
                };
                base.insert(key, merged);
            }
            Value::Object(base)
        }
        (_, over) => over,
    }
}

fn at<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(value, |value, part| value.get(part))
}

/// The folder above a root in which everyone may rename and replace what is not theirs.
fn replaceable(root: &Root) -> Option<PathBuf> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o002;
    root.path().ancestors().skip(1).find_map(|folder| {
        let mode = std::fs::metadata(folder).ok()?.mode();
        (mode & OTHERS_WRITE != 0 && mode & STICKY == 0).then(|| folder.to_owned())
    })
}
