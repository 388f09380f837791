//! What no engine does on demand: a scripted one that goes away, comes back, hangs and fails, under paused time.

mod adoption;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::json;
use tokio::time::Instant;

use super::engine::*;
use super::*;
use crate::cancel::CancelReason;
use crate::crew::Crew;
use crate::error::{ErrorClass, TaskError};
use crate::handler::{Attempt, Handler, Slot};
use crate::policy::{Policy, Surroundings};
use crate::task::{Arg, Task};

type Answer<T> = Result<T, EngineError>;

/// An engine that answers as it is told; what it is not told about never returns.
#[derive(Default)]
struct Scripted {
    calls: Mutex<Vec<String>>,
    created: Mutex<Option<Creation>>,
    /// Of the image.
    labels: Mutex<std::collections::HashMap<String, String>>,
    creates: Mutex<VecDeque<Answer<&'static str>>>,
    /// Each attachment: what it carries, and whether it ends then.
    outputs: Mutex<VecDeque<(&'static str, bool)>>,
    waits: Mutex<VecDeque<Answer<i64>>>,
    /// What the engine kept of the output, from its beginning, and whether it ends then.
    logged: Mutex<VecDeque<(&'static str, bool)>>,
    oldest_log: Mutex<Option<jiff::Timestamp>>,
    listed: Mutex<Vec<Listed>>,
    inspects: Mutex<VecDeque<Answer<Option<Inspected>>>>,
    pulls: Mutex<VecDeque<Answer<PullStep>>>,
    has_image: AtomicBool,
    deaf: AtomicBool,
    stuck: AtomicBool,
    late: Mutex<Option<tokio::sync::oneshot::Receiver<()>>>,
}

fn next<T>(script: &Mutex<VecDeque<T>>) -> Option<T> {
    script.lock().unwrap().pop_front()
}

impl Scripted {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

async fn scripted<T>(answer: Option<T>) -> T {
    match answer {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

#[async_trait::async_trait]
impl Containers for Scripted {
    async fn create(&self, creation: Creation) -> Answer<(String, Vec<String>)> {
        self.note("create");
        *self.created.lock().unwrap() = Some(creation);
        let late = self.late.lock().unwrap().take();
        if let Some(late) = late {
            late.await.unwrap();
        }
        scripted(next(&self.creates)).await.map(|id| (id.to_owned(), Vec::new()))
    }
    async fn attach(&self, _: &str) -> Answer<BoxStream<'static, Answer<Output>>> {
        self.note("attach");
        let (text, ends) = scripted(next(&self.outputs)).await;
        Ok(written(text, ends))
    }
    async fn start(&self, _: &str) -> Answer<()> {
        self.note("start");
        Ok(())
    }
    async fn wait(&self, _: &str) -> Answer<i64> {
        self.note("wait");
        scripted(next(&self.waits)).await
    }
    async fn stop(&self, _: &str, grace: u32) -> Answer<()> {
        self.note(format!("stop {grace}"));
        if self.stuck.load(Ordering::Relaxed) { std::future::pending().await } else { Ok(()) }
    }
    async fn remove(&self, id: &str) -> Answer<()> {
        self.note(format!("remove {id}"));
        Ok(())
    }
}

#[async_trait::async_trait]
impl Logs for Scripted {
    async fn logs(&self, _: &str, since: Option<jiff::Timestamp>) -> Answer<Stream> {
        self.note(if since.is_some() { "logs since" } else { "logs" });
        let (text, ends) = scripted(next(&self.logged)).await;
        Ok(written(text, ends))
    }
    async fn oldest_log(&self, _: &str) -> Answer<Option<jiff::Timestamp>> {
        Ok(*self.oldest_log.lock().unwrap())
    }
}

type Stream = BoxStream<'static, Answer<Output>>;

fn written(text: &'static str, ends: bool) -> Stream {
    let pieces = stream::iter([Ok(Output::Stdout(text.into()))]);
    if ends { pieces.boxed() } else { pieces.chain(stream::pending()).boxed() }
}

#[async_trait::async_trait]
impl Images for Scripted {
    async fn image(&self, _: &str) -> Answer<Option<Image>> {
        let labels = self.labels.lock().unwrap().clone();
        Ok(self.has_image.load(Ordering::Relaxed).then(|| Image { labels, ..Image::default() }))
    }
    async fn pull(&self, _: PullRequest) -> BoxStream<'static, Answer<PullStep>> {
        self.note("pull");
        let step = scripted(next(&self.pulls)).await;
        self.has_image.store(step.is_ok(), Ordering::Relaxed);
        stream::iter([step]).boxed()
    }
}

#[async_trait::async_trait]
impl Survey for Scripted {
    fn address(&self) -> String {
        "unix:///scripted.sock".to_owned()
    }
    async fn listens(&self) -> bool {
        !self.deaf.load(Ordering::Relaxed)
    }
    async fn version(&self) -> Answer<String> {
        Ok("scripted".to_owned())
    }
    async fn inspect(&self, _: &str) -> Answer<Option<Inspected>> {
        self.note("inspect");
        scripted(next(&self.inspects)).await
    }
    async fn list(&self, _: &[String]) -> Answer<Vec<Listed>> {
        Ok(self.listed.lock().unwrap().clone())
    }
    async fn network_driver(&self, _: &str) -> Answer<Option<String>> {
        Ok(None)
    }
}

fn away() -> EngineError {
    EngineError::Away { address: "unix:///scripted.sock".to_owned(), reason: "connection refused".to_owned() }
}

fn container(running: bool) -> Inspected {
    Inspected { running, ..Inspected::default() }
}

/// An engine with an image and one container, whose output and end the test scripts.
fn engine(outputs: &[(&'static str, bool)], waits: Vec<Answer<i64>>) -> Scripted {
    Scripted {
        creates: Mutex::new([Ok("c1")].into()),
        outputs: Mutex::new(outputs.to_vec().into()),
        waits: Mutex::new(waits.into()),
        has_image: AtomicBool::new(true),
        ..Scripted::default()
    }
}

struct Rig {
    engine: Arc<Scripted>,
    handler: DockerRun,
    crew: Crew,
    attempt: Attempt,
    work: Arc<tempfile::TempDir>,
}

fn rig(engine: Scripted) -> Rig {
    let args = [("image".to_owned(), Arg::from("busybox"))].into_iter().collect();
    let attempt = Attempt::detached(Task::new("docker_run", args));
    rig_in(engine, attempt, Arc::new(tempfile::tempdir().unwrap()))
}

fn rig_in(engine: Scripted, attempt: Attempt, work: Arc<tempfile::TempDir>) -> Rig {
    let settings = json!({
        "host": "", "client_timeout": "60s", "network": "", "pull_timeout": "60s", "pull_attempts": 3,
        "fall_back_to_local": false, "config_dir": "/nonexistent", "stop_grace": "10s", "line_max": "64KiB",
        "log": {"driver": "", "options": {}}, "cleaner_image": "", "default_options": {},
        "reap_every": "30s", "reap_grace": "60s", "engine_patience": "30s",
    });
    let policy = serde_json::from_value(json!({"profile": "open"})).unwrap();
    let (engine, crew) = (Arc::new(engine), Crew::new());
    let parts = Parts {
        engine: engine.clone(),
        policy: Arc::new(Policy::new(&policy, Surroundings::default()).unwrap()),
        pipeline: crate::pipeline::Settings::new(work.path()),
        crew: crew.clone(),
        gpus: vec!["GPU-a".to_owned(), "GPU-b".to_owned()],
    };
    let handler = DockerRun::new(serde_json::from_value(settings).unwrap(), parts).unwrap();
    Rig { engine, handler, crew, attempt, work }
}

impl Rig {
    async fn run(&self) -> Result<serde_json::Value, TaskError> {
        let staged = self.handler.stage(self.attempt.clone()).await?;
        let result = staged.run(Slot::default()).await;
        assert!(self.crew.dismissed(Duration::from_secs(60)).await);
        result
    }
    fn log(&self) -> String {
        self.attempt.report().snapshot().1.log_tail
    }
}

#[tokio::test(start_paused = true)]
async fn five_calls_are_all_while_all_goes_well_and_the_output_is_read_from_before_the_start() {
    let rig = rig(engine(&[("hi\n", true)], vec![Ok(0)]));
    rig.run().await.unwrap();
    assert_eq!(rig.engine.calls(), ["create", "attach", "start", "wait", "remove c1"]);
    assert_eq!(rig.log(), "hi\n");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_outlives_its_engine_is_followed_to_its_end() {
    let engine = engine(&[("before\n", true), ("after\n", true)], vec![Err(away()), Ok(0)]);
    *engine.inspects.lock().unwrap() = [Err(away()), Err(away()), Ok(Some(container(true)))].into();
    let rig = rig(engine);
    rig.run().await.unwrap();
    let log = rig.log();
    assert!(
        log.starts_with("before\n") && log.ends_with("after\n") && log.contains("output may be missing"),
        "{log}"
    );
    let starts = rig.engine.calls().iter().filter(|call| *call == "start").count();
    assert_eq!(starts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ended_with_its_engine_is_worth_another_attempt() {
    for found in [Ok(Some(container(false))), Ok(None)] {
        let engine = engine(&[("x\n", true)], vec![Err(away())]);
        *engine.inspects.lock().unwrap() = [Err(away()), found].into();
        let error = rig(engine).run().await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class), ("engine_restarted", ErrorClass::Retryable));
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_come_back_is_waited_for_within_bounds() {
    let engine = engine(&[("x\n", true)], vec![Err(away())]);
    let started = Instant::now();
    // The first look at the container hangs for good.
    let error = rig(engine).run().await.unwrap_err();
    assert_eq!(error.code, "engine_restarted");
    assert_eq!(started.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_finds_the_engine_gone_is_not_the_tasks_failure() {
    let killed = engine(&[("x\n", true)], vec![Ok(143)]);
    *killed.inspects.lock().unwrap() = [Err(away())].into();
    let error = rig(killed).run().await.unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("engine_restarted", ErrorClass::Retryable));

    let heeded = engine(&[("x\n", true)], vec![Ok(0)]);
    heeded.deaf.store(true, Ordering::Relaxed);
    let error = rig(heeded).run().await.unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("engine_restarted", ErrorClass::Retryable));
}

#[tokio::test(start_paused = true)]
async fn output_that_never_ends_does_not_hold_up_a_container_that_did() {
    let rig = rig(engine(&[("all there is\n", false)], vec![Ok(0)]));
    let started = Instant::now();
    rig.run().await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(6), "{:?}", started.elapsed());
    assert_eq!(rig.log(), "all there is\n");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_hangs_is_given_up_after_the_grace_and_a_second_and_the_container_removed() {
    let engine = engine(&[("x\n", false)], vec![]);
    engine.stuck.store(true, Ordering::Relaxed);
    let rig = rig(engine);
    let scope = rig.attempt.scope().clone();
    let cancel = async {
        rig.attempt.report().runs().await;
        scope.cancel(CancelReason::Interrupted);
        Instant::now()
    };
    let (result, at) = tokio::join!(rig.run(), cancel);
    assert!(result.is_err());
    let took = at.elapsed();
    assert!(took >= Duration::from_secs(11) && took <= Duration::from_secs(13), "{took:?}");
    assert_eq!(rig.engine.calls()[3..], ["wait", "stop 10", "remove c1"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_engine_makes_the_container_returns_at_once_and_what_was_made_is_removed() {
    let (go, late) = tokio::sync::oneshot::channel();
    let engine = engine(&[], vec![]);
    *engine.late.lock().unwrap() = Some(late);
    let rig = rig(engine);
    let staged = rig.handler.stage(rig.attempt.clone()).await.unwrap();
    let cancel = async {
        while rig.engine.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        rig.attempt.scope().cancel(CancelReason::Interrupted);
    };
    let (result, ()) = tokio::join!(staged.run(Slot::default()), cancel);
    assert!(result.is_err());
    assert_eq!(rig.engine.calls(), ["create"]);
    go.send(()).unwrap();
    assert!(rig.crew.dismissed(Duration::from_secs(60)).await);
    assert_eq!(rig.engine.calls(), ["create", "remove c1"]);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_is_tried_again_until_its_tries_are_used_up() {
    let failed =
        || EngineError::Refused { call: "pull", status: Some(500), message: "connection reset".to_owned() };
    let engine = engine(&[("x\n", true)], vec![Ok(0)]);
    engine.has_image.store(false, Ordering::Relaxed);
    *engine.pulls.lock().unwrap() = [Err(failed()), Err(away()), Ok(PullStep::default())].into();
    let third = rig(engine);
    third.run().await.unwrap();
    assert_eq!(third.engine.calls()[..3], ["pull"; 3]);

    let engine = Scripted::default();
    *engine.pulls.lock().unwrap() =
        [Err(failed()), Err(failed()), Err(failed()), Ok(PullStep::default())].into();
    let used_up = rig(engine);
    let error = used_up.run().await.unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("pull_failed", ErrorClass::Retryable));
    assert_eq!(used_up.engine.calls(), ["pull"; 3]);
}

#[tokio::test(start_paused = true)]
async fn the_devices_of_the_slot_are_asked_for_and_without_them_all_that_an_image_made_for_gpus_may_have() {
    let asked = async |slot: &[&str], labels: &[(&str, &str)]| {
        let engine = engine(&[("x\n", true)], vec![Ok(0)]);
        let label = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        *engine.labels.lock().unwrap() = labels.iter().map(label).collect();
        let rig = rig(engine);
        let staged = rig.handler.stage(rig.attempt.clone()).await.unwrap();
        let gpus = slot.iter().map(|id| (*id).to_owned()).collect();
        staged.run(Slot { lane: 0, gpus }).await.unwrap();
        let created = rig.engine.created.lock().unwrap().take().unwrap();
        let requests = created.body.host_config.unwrap_or_default().device_requests.unwrap_or_default();
        let ids = requests.into_iter().flat_map(|request| request.device_ids.unwrap_or_default());
        (ids.collect::<Vec<String>>(), rig.attempt.report().snapshot().1.gpus)
    };
    let made_for_gpus = [("com.nvidia.volumes.needed", "nvidia_driver")];
    let (requested, recorded) = asked(&["GPU-b"], &made_for_gpus).await;
    assert_eq!((&requested[..], &recorded[..]), (&["GPU-b".to_owned()][..], &["GPU-b".to_owned()][..]));
    assert_eq!(asked(&[], &made_for_gpus).await.0, ["GPU-a", "GPU-b"]);
    assert!(asked(&[], &[]).await.0.is_empty());
}
