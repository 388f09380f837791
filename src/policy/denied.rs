//! What was refused: [`Denied`], one per violation, and [`Refusal`], all of a task's together.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use crate::task::TaskId;

/// One thing that a task asked for and may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The setting that refuses it, such as `policy.privileged` or `policy.queue.gpu.privileged`.
    pub setting: String,
    /// What was asked for, such as `privileged=true`.
    pub asked: String,
    /// The value that the setting has, as it may stand in the settings.
    pub value: String,
    /// Who asked.
    pub task: TaskId,
    /// The file in which an administrator can change the setting.
    pub file: PathBuf,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, asked, value, task, file } = self;
        write!(
            f,
            "denied by policy: {asked} requested by task {task}; this worker sets {setting}={value}. \
             An administrator can change {setting} in {}.",
            file.display()
        )
    }
}

/// All violations of a task, one per line. Permanent: the task fails the same way until the settings change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal(pub Vec<Denied>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, denied) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            denied.fmt(f)?;
        }
        Ok(())
    }
}

/// A settings value on one line as TOML writes it; a long list shows its beginning.
pub(super) fn shown(value: &Value) -> String {
    const MOST: usize = 6;
    match value {
        Value::Array(items) => {
            let mut texts: Vec<String> = items.iter().take(MOST).map(shown).collect();
            if items.len() > MOST {
                texts.push("…".to_owned());
            }
            format!("[{}]", texts.join(", "))
        }
        other => other.to_string(),
    }
}

/// Something a task named, short enough for a message and on one line.
pub(super) fn quoted(text: &str) -> String {
    if text.chars().count() > 120 {
        format!("{:?}", format!("{}...", text.chars().take(117).collect::<String>()))
    } else {
        format!("{text:?}")
    }
}
