//! Policy's word on the hosts that a task's streams reach, in the form in which the HTTP client asks for it.

use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;

use crate::error::TaskError;
use crate::http::{Judge, Verify};
use crate::policy::{Policy, Verdict};
use crate::task::Task;

/// Judges the requests of one task.
pub struct TaskJudge {
    policy: Arc<Policy>,
    task: Arc<Task>,
}

impl TaskJudge {
    /// Judges what `task` reaches.
    pub fn new(policy: Arc<Policy>, task: Arc<Task>) -> Self {
        Self { policy, task }
    }

    fn judge(&self, host: &str, addresses: &[IpAddr]) -> Result<(), TaskError> {
        let girder = self.task.girder.as_ref().map(|girder| girder.api_url.as_str());
        let rules = self.policy.http(&self.task.queue, &self.task.id, girder);
        granted(rules.judge_url(host, addresses))
    }
}

impl Judge for TaskJudge {
    fn host(&self, url: &Url) -> Result<(), TaskError> {
        self.judge(url.host_str().unwrap_or_default(), &[])
    }
    fn address(&self, host: &str, address: IpAddr) -> Result<(), TaskError> {
        self.judge(host, &[address])
    }
    fn alike(&self) -> Option<String> {
        let girder = self.task.girder.as_ref().map_or("", |girder| girder.api_url.as_str());
        Some(format!("{} {girder}", self.task.queue))
    }
}

/// The laxest check of Girder's certificate that policy leaves to `task`.
pub fn laxest(policy: &Policy, task: &Task) -> Verify {
    if policy.rules(&task.queue).girder.allow_insecure_tls { Verify::Never } else { Verify::Strictly }
}

fn granted(verdict: Verdict) -> Result<(), TaskError> {
    let refused = |error: crate::policy::Refusal| TaskError::permanent("denied_by_policy", error.to_string());
    verdict.into_result().map(|_| ()).map_err(refused)
}
