//! What the suite's tests share: a handler at the real engine, attempts whose events are kept, and what came of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use longshore::cancel::CancelScope;
use longshore::crew::Crew;
use longshore::docker::reaper::Reaper;
use longshore::docker::{Address, DockerApi, DockerRun, Parts, Settings};
use longshore::error::TaskError;
use longshore::events::bus::Bus;
use longshore::events::reporter::{LogLimits, Reporter};
use longshore::events::{Event, EventData, EventSink, LogStream, Notice, SinkError};
use longshore::handler::{Attempt, FenceGate, Handler, Identity, Slot};
use longshore::policy::{Policy, PolicySettings, Surroundings};
use longshore::store::memory::MemoryStore;
use longshore::store::{Details, PhaseTimes};
use longshore::task::{Arg, ArgMap, Fence, Task};
use serde_json::{Value, json};

use crate::support::docker::{clean_up, engine};

/// Nothing that a test runs may take longer.
const PATIENCE: Duration = Duration::from_secs(100);

/// A worker's `docker_run`, with an instance of its own.
pub(crate) struct Bench {
    pub(crate) handler: DockerRun,
    pub(crate) crew: Crew,
    pub(crate) instance: String,
    pub(crate) work: tempfile::TempDir,
    pub(crate) engine: Arc<DockerApi>,
}

/// What came of one attempt.
pub(crate) struct Told {
    pub(crate) result: Result<Value, TaskError>,
    pub(crate) details: Details,
    pub(crate) times: PhaseTimes,
    pub(crate) events: Vec<Event>,
}

/// The settings that the tests start from: short waits, the engine of this host.
pub(crate) fn settings() -> Settings {
    let table = json!({
        "host": "", "client_timeout": "60s", "network": "", "pull_timeout": "60s", "pull_attempts": 2,
        "fall_back_to_local": false, "config_dir": "/nonexistent", "stop_grace": "2s", "line_max": "64KiB",
        "log": {"driver": "", "options": {}}, "cleaner_image": "", "default_options": {},
        "reap_every": "30s", "reap_grace": "60s", "engine_patience": "30s",
    });
    serde_json::from_value(table).expect("the settings are complete")
}

impl Bench {
    /// With settings changed by `change`.
    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Bench {
        let mut settings = settings();
        change(&mut settings);
        let open = serde_json::from_value(json!({"profile": "open"})).expect("a profile");
        Bench::under(settings, &open).await
    }

    /// With rules of its own.
    pub(crate) async fn under(settings: Settings, policy: &PolicySettings) -> Bench {
        engine().await;
        let address = Address::read(&settings.host).expect("an address");
        let api = Arc::new(DockerApi::new(address, settings.client_timeout.get()));
        let crew = Crew::new();
        let policy = Arc::new(Policy::new(policy, Surroundings::default()).expect("sound rules"));
        let work = tempfile::tempdir().expect("a temporary folder can be made");
        let pipeline = longshore::pipeline::Settings::new(work.path());
        let handler = DockerRun::new(
            settings,
            Parts { engine: api.clone(), policy, pipeline, crew: crew.clone(), gpus: Vec::new() },
        )
        .expect("sound defaults");
        Bench { handler, crew, instance: format!("test-{}", uuid::Uuid::now_v7()), work, engine: api }
    }

    /// Who looks after what attempts of this instance left; no record tells of any.
    pub(crate) fn reaper(&self) -> Reaper {
        self.handler.reaper(&self.identity(), MemoryStore::named(""), Duration::from_secs(300))
    }

    fn identity(&self) -> Identity {
        let text: Arc<str> = Arc::from("bench");
        let instance = Arc::from(self.instance.as_str());
        Identity { worker: text.clone(), instance, incarnation: text.clone(), host: text }
    }

    /// With the settings of all.
    pub(crate) async fn new() -> Bench {
        Bench::with(|_| {}).await
    }

    /// An attempt at a task with these arguments.
    pub(crate) fn attempt(&self, args: Value) -> Try {
        self.attempt_at(task(args))
    }

    /// An attempt at `task`.
    pub(crate) fn attempt_at(&self, task: Task) -> Try {
        let kept = Arc::new(Kept::default());
        let bus = Bus::new(vec![kept.clone()], 1e9, Crew::new());
        let fence = Fence::after(Fence(0), jiff::Timestamp::now());
        let task = Arc::new(task);
        let report = Reporter::new(task.clone(), fence, bus.clone(), LogLimits::default());
        let identity = self.identity();
        let scope = CancelScope::new();
        let current = Arc::new(Mutex::new(Ok(())));
        let gate = Box::new(Gate(current.clone()));
        let attempt = Attempt::new(task, (1, fence), scope.clone(), report, (gate, identity));
        Try { attempt, scope, kept, bus, current, handler: self.handler.clone() }
    }

    /// Runs a task with these arguments to its end.
    pub(crate) async fn run(&self, args: Value) -> Told {
        self.attempt(args).run().await
    }

    /// Waits until the room has done what outlives attempts.
    pub(crate) async fn settled(&self) {
        assert!(self.crew.dismissed(PATIENCE).await, "something is still at work");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let filter = format!("label=longshore.instance={}", self.instance);
        for id in clean_up(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).lines() {
            clean_up(&["rm", "--force", "--volumes", id]);
        }
    }
}

/// A `docker_run` task.
pub(crate) fn task(args: Value) -> Task {
    let Value::Object(map) = args else { panic!("arguments are a map") };
    let args: ArgMap = map
        .into_iter()
        .map(|(name, value)| (name.clone(), Arg::from_value(value, &name).expect("sound arguments")))
        .collect();
    Task::new("docker_run", args)
}

/// `sh -c SCRIPT` in busybox, never pulled.
pub(crate) fn script(script: &str) -> Value {
    json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh", "container_args": ["-c", script]})
}

/// The same with options.
pub(crate) fn script_with(text: &str, options: &Value) -> Value {
    let mut args = script(text);
    args["options"] = options.clone();
    args
}

/// One attempt and the strings to pull.
pub(crate) struct Try {
    pub(crate) attempt: Attempt,
    pub(crate) scope: CancelScope,
    pub(crate) current: Arc<Mutex<Result<(), TaskError>>>,
    kept: Arc<Kept>,
    bus: Bus,
    handler: DockerRun,
}

impl Try {
    /// Stages and runs it.
    pub(crate) async fn run(self) -> Told {
        let work = async {
            let staged = self.handler.stage(self.attempt.clone()).await?;
            staged.run(Slot::default()).await
        };
        let result = tokio::time::timeout(PATIENCE, work).await.expect("the attempt ends");
        self.told(result).await
    }

    /// What was told, given how it ended.
    pub(crate) async fn told(self, result: Result<Value, TaskError>) -> Told {
        let last = self.attempt.report().close(EventData::Succeeded { exit_code: None });
        self.bus
            .deliver("kept", Notice { event: Arc::new(last), task: None })
            .await
            .expect("the last event is kept");
        let (times, details) = self.attempt.report().snapshot();
        let events = self.kept.0.lock().expect("no panic in a sink").clone();
        Told { result, details, times, events }
    }
}

impl Told {
    /// All that one stream said.
    pub(crate) fn said(&self, wanted: LogStream) -> String {
        let mut said = String::new();
        for event in &self.events {
            if let EventData::Log { stream, text } = &event.data
                && *stream == wanted
            {
                said.push_str(text);
                said.push('\n');
            }
        }
        said
    }

    /// All that the container's standard output said, once it ended with 0.
    pub(crate) fn stdout(&self) -> String {
        if let Err(error) = &self.result {
            panic!("the task failed: {error}\n{}", self.said(LogStream::Stderr));
        }
        self.said(LogStream::Stdout)
    }

    /// Why it failed.
    pub(crate) fn error(&self) -> &TaskError {
        self.result.as_ref().expect_err("the task fails")
    }
}

#[derive(Default)]
struct Kept(Mutex<Vec<Event>>);

#[async_trait]
impl EventSink for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }
    async fn deliver(&self, notices: &[Notice]) -> Result<(), SinkError> {
        let events = notices.iter().map(|notice| (*notice.event).clone());
        self.0.lock().expect("no panic in a sink").extend(events);
        Ok(())
    }
}

struct Gate(Arc<Mutex<Result<(), TaskError>>>);

#[async_trait]
impl FenceGate for Gate {
    async fn check(&self) -> Result<(), TaskError> {
        self.0.lock().expect("no panic in a gate").clone()
    }
}
