//! The task kinds that a worker offers, and how each is made from the settings.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::{WorkerError, machine};
use crate::cancel::{CancelReason, CancelScope};
use crate::config::Settings;
use crate::crew::Crew;
use crate::docker::{self, Address, DockerApi, DockerRun, Parts, TaskJudge};
use crate::girder;
use crate::girder::job::{JobSink, Journals, Steering};
use crate::handler::{Handler, Identity};
use crate::http::{self, Judge};
use crate::ledger::Ledger;
use crate::ping::Ping;
use crate::pipeline;
use crate::pipeline::conduit::HostStreams;
use crate::policy::{Machine, Policy, Surroundings};
use crate::store::ResultStore;
use crate::task::{Fence, QueueName, Task, TaskId};
use crate::units::Size;

/// The task kinds by name.
pub const HANDLERS: &[HandlerRow] = &[
    HandlerRow { kind: Ping::KIND, build: |_| Ok(Arc::new(Ping)) },
    HandlerRow { kind: DockerRun::KIND, build: docker_run },
];

/// One task kind.
pub struct HandlerRow {
    /// The name that tasks call it by.
    pub kind: &'static str,
    /// Makes its handler.
    pub build: fn(&Site) -> Result<Arc<dyn Handler>, WorkerError>,
}

/// What handlers are made from.
pub struct Site {
    /// The settings.
    pub settings: Settings,
    /// Owner of what they spawn.
    pub crew: Crew,
    /// What lives here.
    pub ledger: Ledger,
    /// Who this worker is.
    pub identity: Identity,
    /// What is known of each task.
    pub store: Arc<dyn ResultStore>,
    /// Ends when the worker has ended.
    pub background: CancelScope,
    /// What its Girder clients share.
    pub girder: Arc<girder::Site>,
    /// Where tasks' streams to the worker's own output go.
    pub host: HostStreams,
    /// Where what waits for Girder's jobs is kept for the next process; none when there will be none.
    pub journals: Option<PathBuf>,
}

fn docker_run(site: &Site) -> Result<Arc<dyn Handler>, WorkerError> {
    let refused = |reason: String| WorkerError::Handler { kind: DockerRun::KIND, reason };
    let docker = &site.settings.docker;
    let address = Address::read(&docker.host).map_err(|error| refused(error.to_string()))?;
    let policy = Arc::new(policy(&site.settings)?);
    for warning in policy.warnings() {
        tracing::warn!("{warning}");
    }
    let parts = Parts {
        engine: Arc::new(DockerApi::new(address, docker.client_timeout.get())),
        pipeline: pipeline_settings(site, &policy),
        policy,
        crew: site.crew.clone(),
        gpus: machine::pool(&site.settings.resources).gpus,
    };
    let handler = DockerRun::new(docker.clone(), parts).map_err(|error| refused(error.to_string()))?;
    let adopt_window = site.settings.worker.adopt_window.get();
    let reaper = handler.reaper(&site.identity, site.store.clone(), adopt_window);
    let (ledger, background) = (site.ledger.clone(), site.background.clone());
    site.crew.spawn("reaper", async move {
        let lives =
            move || ledger.all().into_iter().map(|live| (live.task, live.fence)).collect::<HashSet<_>>();
        tokio::select! {
            cleared = reaper.clear(&lives) => match cleared {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => tracing::info!(?removed, "removed containers that an earlier process left"),
                Err(error) => tracing::debug!(%error, "what an earlier process left could not be looked for"),
            },
            _ = background.canceled() => return,
        }
        reaper.watch(&lives, &background).await;
    });
    Ok(Arc::new(handler))
}

/// The sink that keeps Girder's jobs up to date, and through which they cancel their tasks.
pub fn job_sink(site: &Site) -> Result<JobSink, WorkerError> {
    let helm = Helm { policy: Arc::new(policy(&site.settings)?), ledger: site.ledger.clone() };
    let sink = JobSink::new(site.girder.clone(), Arc::new(helm), site.crew.clone());
    Ok(match &site.journals {
        Some(folder) => sink.kept_in(Journals::at(folder.clone()), site.store.clone()),
        None => sink,
    })
}

/// What jobs may do here.
struct Helm {
    policy: Arc<Policy>,
    ledger: Ledger,
}

impl Steering for Helm {
    fn cancel(&self, task: &TaskId, reason: &str) {
        if self.ledger.cancel(task, CancelReason::Canceled(reason.to_owned())) {
            tracing::info!(%task, reason, "canceled");
        }
    }
    fn is_live(&self, task: &TaskId, fence: Fence) -> bool {
        self.ledger.is_live(task, fence)
    }
    fn judge(&self, task: &Arc<Task>) -> Arc<dyn Judge> {
        Arc::new(TaskJudge::new(self.policy.clone(), task.clone()))
    }
    fn laxest(&self, task: &Task) -> http::Verify {
        docker::laxest(&self.policy, task)
    }
}

/// The policy of a worker with `settings`.
pub fn policy(settings: &Settings) -> Result<Policy, WorkerError> {
    let mut protected: Vec<PathBuf> = vec![settings.state_dir.clone(), PathBuf::from("/var/run/docker.sock")];
    if let Some(socket) = settings.docker.host.strip_prefix("unix://") {
        protected.push(PathBuf::from(socket));
    }
    let surroundings = Surroundings {
        machine: Machine { cpus: Some(machine::processors()), memory: machine::memory().map(Size) },
        protected,
        settings_file: PathBuf::from(crate::config::layers::USUAL_FILE),
        ..Surroundings::default()
    };
    Policy::new(&settings.policy, surroundings)
        .map_err(|error| WorkerError::Handler { kind: DockerRun::KIND, reason: error.to_string() })
}

fn pipeline_settings(site: &Site, policy: &Policy) -> pipeline::Settings {
    let (settings, streams) = (&site.settings, &site.settings.streams);
    let line_max = policy.rules(&QueueName::default()).progress_line_max;
    pipeline::Settings {
        linger: streams.linger.get(),
        progress_line_max: usize::try_from(line_max.bytes()).unwrap_or(usize::MAX),
        host: site.host.clone(),
        http: http::Timeouts {
            connect: streams.connect_timeout.get(),
            idle: streams.idle_timeout.get(),
            total: Some(streams.total_timeout.get()).filter(|total| !total.is_zero()),
        },
        girder: site.girder.clone(),
        spool: Some(settings.state_dir.join("spool")).filter(|_| !settings.worker.spool_wait.get().is_zero()),
        ..pipeline::Settings::new(settings.work_dir.clone())
    }
}
