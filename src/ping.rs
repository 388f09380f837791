//! The task kind `longshore.ping`: does nothing, or as its arguments say. For probes, benches and tests of the whole road.
//!
//! Like a task with outputs it asks the fence at its end, before it has its effect: that tests can see that it had one.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::error::TaskError;
use crate::events::Progress;
use crate::failpoint::{self, Moment};
use crate::handler::{Admit, Attempt, Demand, Handler, Slot, Staged};
use crate::task::{Arg, Task};
use crate::units::Span;

/// The handler of `longshore.ping`.
///
/// Arguments, all optional: `payload` (anything, ignored), `sleep` (a duration that it runs for), `progress` (so many
/// progress reports on the way), `fail` (`retryable` or `permanent`), `fail_attempts` (only the first so many fail).
#[derive(Clone, Copy, Debug, Default)]
pub struct Ping;

#[derive(Clone, Debug, Default, PartialEq)]
struct Script {
    sleep: Duration,
    progress: u32,
    fail: Option<String>,
    fail_attempts: u32,
}

impl Ping {
    /// The kind's name.
    pub const KIND: &'static str = "longshore.ping";
}

impl Script {
    fn read(task: &Task) -> Result<Self, TaskError> {
        let mut script = Self { fail_attempts: u32::MAX, ..Self::default() };
        for (name, arg) in &task.args {
            let wrong = |wanted: &str| {
                TaskError::permanent("bad_argument", format!("{name} must be {wanted}, not {}", arg.kind()))
            };
            match (name.as_str(), arg) {
                ("payload", _) => {}
                ("sleep", Arg::Text(text)) => {
                    let span = Span::from_str(text);
                    script.sleep =
                        span.map_err(|e| TaskError::permanent("bad_argument", e.to_string()))?.get();
                }
                ("sleep", Arg::Number(number)) => {
                    let span = Span::from_str(&number.to_string());
                    script.sleep =
                        span.map_err(|e| TaskError::permanent("bad_argument", e.to_string()))?.get();
                }
                ("sleep", _) => return Err(wrong("a duration")),
                ("progress" | "fail_attempts", Arg::Number(number)) => {
                    let count = number
                        .as_u64()
                        .and_then(|n| u32::try_from(n).ok())
                        .ok_or_else(|| wrong("a count"))?;
                    if name == "progress" { script.progress = count } else { script.fail_attempts = count }
                }
                ("progress" | "fail_attempts", _) => return Err(wrong("a count")),
                ("fail", Arg::Text(class)) if class == "retryable" || class == "permanent" => {
                    script.fail = Some(class.clone());
                }
                ("fail", _) => return Err(wrong("\"retryable\" or \"permanent\"")),
                (other, _) => {
                    return Err(TaskError::permanent(
                        "bad_argument",
                        format!(
                            "longshore.ping has no argument {other:?}: it knows payload, sleep, progress, fail, fail_attempts"
                        ),
                    ));
                }
            }
        }
        Ok(script)
    }
}

#[async_trait]
impl Handler for Ping {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn demand(&self, task: &Task) -> Result<Demand, TaskError> {
        Script::read(task)?;
        Ok(Demand::of(&task.resources))
    }
    async fn admit(&self, _: &Task) -> Result<Admit, TaskError> {
        Ok(Admit::Start)
    }
    async fn stage(&self, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
        let script = Script::read(attempt.task())?;
        Ok(Box::new(Prepared { attempt, script }))
    }
}

struct Prepared {
    attempt: Attempt,
    script: Script,
}

#[async_trait]
impl Staged for Prepared {
    async fn run(self: Box<Self>, slot: Slot) -> Result<Value, TaskError> {
        let Self { attempt, script } = *self;
        let reached = |moment| failpoint::reached(moment, attempt.task().id.as_str(), attempt.fence().0);
        attempt.report().running(None);
        let steps = script.progress.max(1);
        for step in 0..steps {
            if !script.sleep.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(script.sleep / steps) => {}
                    _ = attempt.scope().canceled() => return Err(TaskError::permanent("canceled", "it was canceled")),
                }
            }
            if script.progress > 0 {
                let (current, total) = (Some(f64::from(step + 1)), Some(f64::from(steps)));
                attempt.report().progress(Progress { message: None, current, total });
            }
        }
        reached(Moment::Uploading);
        attempt.check_fence().await?;
        reached(Moment::Effect);
        match script.fail.as_deref() {
            Some("retryable") if attempt.number() <= script.fail_attempts => {
                Err(TaskError::retryable("asked_for", "it was asked to fail so that it is tried again"))
            }
            Some("permanent") if attempt.number() <= script.fail_attempts => {
                Err(TaskError::permanent("asked_for", "it was asked to fail"))
            }
            _ => Ok(json!({ "lane": slot.lane })),
        }
    }
    async fn discard(self: Box<Self>) {}
}
