//! What policy says to a task before anything of it is done: `longshore policy test` asks.

use super::args;
use super::request::{Origin, Plan, pipeline_request};
use super::run;
use super::settings::Settings;
use crate::error::TaskError;
use crate::handler::Attempt;
use crate::pipeline::volumes_of;
use crate::policy::{Denied, Policy};
use crate::task::Task;

/// Composes the container of `task` as the worker would before staging, with stand-ins for what its transforms become,
/// and lets `policy` judge it. What an auditing policy would refuse is returned; an enforcing one's refusal, like an
/// argument that cannot be read, is the error. Links are followed on this host, nothing is asked of an engine.
pub fn trial(settings: &Settings, policy: &Policy, task: Task) -> Result<Vec<Denied>, TaskError> {
    let mut run = args::DockerRun::read(&task.args).map_err(super::request::bad_argument)?;
    run.fill(&run::defaults(settings).map_err(super::request::bad_argument)?);
    let attempt = Attempt::detached(task);
    let named = Some(settings.network.as_str()).filter(|name| !name.is_empty() && *name != "auto");
    let origin = Origin { attempt: &attempt, run: &run, policy, log: &settings.log, network: named };
    let mentioned = volumes_of(&pipeline_request(&run, attempt.task()));
    origin.compose(&Plan::before_staging(&run, &mentioned)).map(|granted| granted.audited)
}
