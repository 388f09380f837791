//! A worker and the tasks that the suite gives it, with a job of the real Girder each.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::docker::engine;
pub(super) use crate::support::girder::log;
use crate::support::girder::{Girder, GirderJob};
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;

/// Nothing that a test waits for may take longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// An installation with a running worker.
pub(super) struct Rig {
    pub(super) longshore: Longshore,
    pub(super) worker: Worker,
    pub(super) girder: Girder,
}

impl Rig {
    /// With the usual settings, but short waits for a Girder that is away.
    pub(super) async fn new() -> Rig {
        Rig::with("[girder]\njob_look = \"1s\"\nretry_budget = \"2s\"\nstall_timeout = \"5s\"\n").await
    }

    /// With these settings.
    pub(super) async fn with(settings: &str) -> Rig {
        engine().await;
        let girder = Girder::shared().await;
        let longshore = Longshore::with_settings(settings);
        let worker = longshore.worker(&["--concurrency", "2"]).await;
        Rig { longshore, worker, girder }
    }

    /// Submits `envelope` and returns the task's id.
    pub(super) async fn submit(&self, envelope: &Value) -> String {
        let file = self.longshore.folder().join(format!("{}.json", uuid::Uuid::now_v7()));
        std::fs::write(&file, envelope.to_string()).unwrap();
        self.longshore.ok(&["submit", "--file", file.to_str().unwrap()]).await
    }

    /// The record of a task once it is finished.
    pub(super) async fn finished(&self, id: &str) -> Value {
        eventually(PATIENCE, "the task is finished", async || {
            let record = self.record(id).await?;
            let over = ["succeeded", "failed", "canceled", "dead"].contains(&record["status"].as_str()?);
            over.then_some(record)
        })
        .await
    }

    /// The record of a task, when there is one.
    pub(super) async fn record(&self, id: &str) -> Option<Value> {
        let said = self.longshore.run(&["task", "show", id, "--output", "json"]).await;
        serde_json::from_str(&said.stdout).ok()
    }

    /// The job as Girder has it.
    pub(super) async fn job(&self, job: &GirderJob) -> Value {
        self.girder.get(&format!("job/{}", job.id)).await
    }

    /// The job once it is in this state.
    pub(super) async fn job_in(&self, job: &GirderJob, status: i64) -> Value {
        eventually(PATIENCE, &format!("the job has the status {status}"), async || {
            let job = self.job(job).await;
            (job["status"] == status).then_some(job)
        })
        .await
    }
}

/// A task that runs `script` in busybox on behalf of `job`.
pub(super) fn script(girder: &Girder, job: &GirderJob, script: &str) -> Value {
    json!({
        "v": 1, "task": "docker_run",
        "args": {
            "image": "busybox:latest", "pull": "never", "entrypoint": ["sh", "-c"], "container_args": [script],
            "options": {"network_mode": "none"},
        },
        "girder": {"api_url": girder.api_url(), "token": job.token, "job": spec(job)},
    })
}

/// Girder's `jobInfoSpec` in the words of an envelope.
fn spec(job: &GirderJob) -> Value {
    json!({
        "url": job.spec["url"], "method": job.spec["method"], "headers": job.spec["headers"],
        "log": job.spec["logPrint"],
    })
}
