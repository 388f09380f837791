//! A job's updates at a scripted Girder that refuses steps, loses answers and goes away: nothing twice, nothing out of order,
//! nothing in the container's way.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::PATIENCE;
use super::shore::{Fault, broken};
use crate::support::docker::engine;
use crate::support::faulty::{Asked, Faulty, Reply};
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;

/// The job as the server has it.
#[derive(Default)]
pub(super) struct Job {
    pub(super) status: i64,
    /// The states that it was given.
    pub(super) states: Vec<i64>,
    pub(super) log: Vec<String>,
    /// How much of the log was there when the state became final.
    pub(super) at_its_end: usize,
    /// When texts came.
    texts: Vec<Instant>,
}

/// The steps that girder_jobs accepts.
const STEPS: [(i64, i64); 9] = [(0, 1), (1, 2), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5), (2, 824), (824, 5)];

impl Job {
    fn answer(&mut self, asked: &Asked) -> Reply {
        if asked.path != "/api/v1/job/1" {
            return Reply::error(404, "no such route");
        }
        let body = String::from_utf8(asked.body.clone()).unwrap();
        let form = reqwest::Url::parse(&format!("http://a/?{body}")).unwrap();
        let field =
            |name: &str| form.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        if let Some(text) = field("log") {
            self.log.push(text);
            self.texts.push(Instant::now());
        }
        if let Some(status) = field("status") {
            let status: i64 = status.parse().unwrap();
            if status != self.status && !STEPS.contains(&(self.status, status)) {
                let body =
                    json!({"message": "Invalid state transition", "field": "status", "type": "validation"});
                return Reply::Whole(400, Vec::new(), body.to_string().into());
            }
            if status != self.status {
                self.status = status;
                self.states.push(status);
                if matches!(status, 3..=5) {
                    self.at_its_end = self.log.len();
                }
            }
        }
        Reply::json(&json!({"_id": "1", "status": self.status, "log": self.log}))
    }
}

/// A job at a scripted Girder, and a worker that tells it.
pub(super) struct Clerk {
    server: Faulty,
    job: Arc<Mutex<Job>>,
    pub(super) longshore: Longshore,
    pub(super) worker: Worker,
}

/// Short waits.
pub(super) const SETTINGS: &str = "[girder]\njob_look = \"1s\"\nretry_budget = \"1s\"\n";

impl Clerk {
    /// A job in this state, at a server that fails as `script` says.
    async fn with(status: i64, script: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) -> Clerk {
        Clerk::of(status, SETTINGS, script).await
    }

    /// The same with a worker of these settings.
    pub(super) async fn of(
        status: i64,
        settings: &str,
        script: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static,
    ) -> Clerk {
        engine().await;
        let job = Arc::new(Mutex::new(Job { status, ..Job::default() }));
        let kept = job.clone();
        let server = Faulty::start(move |asked| {
            let mut job = kept.lock().unwrap();
            match script(asked) {
                None => job.answer(asked),
                Some(Fault::Instead(reply)) => reply,
                Some(Fault::After(reply)) => {
                    job.answer(asked);
                    reply
                }
                Some(Fault::Half(_)) => broken(),
            }
        })
        .await;
        let longshore = Longshore::with_settings(settings);
        let worker = longshore.worker(&["--concurrency", "1"]).await;
        Clerk { server, job, longshore, worker }
    }

    /// Runs `script` in a container; the record at its end.
    async fn run(&self, script: &str) -> Value {
        let id = self.submit(script).await;
        self.ended(&id).await
    }

    /// Has `script` run in a container; the id of the task.
    pub(super) async fn submit(&self, script: &str) -> String {
        let base = format!("{}/api/v1", self.server.url());
        let task = json!({"v": 1, "task": "docker_run",
            "args": {"image": "busybox:latest", "pull": "never", "entrypoint": ["sh", "-c"], "container_args": [script],
                "options": {"network_mode": "none"}},
            "girder": {"api_url": base, "job": {"url": format!("{base}/job/1"), "headers": {"Girder-Token": "of-the-job"}}}});
        let file = self.longshore.folder().join("task.json");
        std::fs::write(&file, task.to_string()).unwrap();
        self.longshore.ok(&["submit", "--file", file.to_str().unwrap()]).await
    }

    /// The record of a task.
    pub(super) async fn record(&self, id: &str) -> Option<Value> {
        let shown = self.longshore.run(&["task", "show", id, "--output", "json"]).await;
        serde_json::from_str(&shown.stdout).ok()
    }

    /// The record of a task once it is finished and its job knows.
    pub(super) async fn ended(&self, id: &str) -> Value {
        eventually(PATIENCE, "the task is finished and its job knows", async || {
            let record = self.record(id).await?;
            let known = matches!(self.job().status, 3..=5);
            (known && record["outcome"].is_object()).then_some(record)
        })
        .await
    }

    pub(super) fn job(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap()
    }

    /// The lines of the log that begin so, in order.
    pub(super) fn lines(&self, prefix: &str) -> Vec<String> {
        let log = self.job().log.concat();
        log.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }
}

pub(super) fn counted(prefix: &str, count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("{prefix}{n}")).collect()
}

#[tokio::test]
async fn a_state_that_girder_refuses_is_come_to_step_by_step_and_the_log_is_there_before_the_end() {
    let clerk = Clerk::with(0, |_| None).await;
    let record = clerk.run("for n in $(seq 50); do echo line $n; done; echo why >&2; exit 7").await;
    assert_eq!(record["status"], "failed", "{record}");
    assert_eq!(clerk.job().states, [1, 2, 4]);
    assert_eq!(clerk.lines("line "), counted("line ", 50));
    let job = clerk.job();
    let log = job.log.concat();
    assert!(log.contains("DockerException: Non-zero exit code from docker container (7).\nwhy\n"), "{log}");
    assert_eq!(job.at_its_end, job.log.len(), "the log was there before the final state");
    assert!(clerk.server.asked().iter().all(|asked| asked.headers["girder-token"] == "of-the-job"));
    assert!(!clerk.worker.log().contains("of-the-job"));
}

#[tokio::test]
async fn a_text_whose_answer_was_lost_stands_there_once() {
    // Every third update is done and its answer lost; every third is lost before.
    let clerk = Clerk::with(1, |asked| match (asked.method.as_str(), asked.earlier % 3) {
        ("PUT", 1) => Some(Fault::After(broken())),
        ("PUT", 2) => Some(Fault::Instead(broken())),
        _ => None,
    })
    .await;
    let record = clerk.run("for n in $(seq 12); do echo line $n; sleep 0.3; done").await;
    assert_eq!(record["status"], "succeeded", "{record}");
    assert_eq!(clerk.lines("line "), counted("line ", 12), "{}", clerk.job().log.concat());
    assert_eq!(clerk.job().states, [2, 3]);
}

#[tokio::test]
async fn an_outage_holds_no_container_up_and_is_caught_up_in_order() {
    let begun = Instant::now();
    // Away from the third second to the ninth.
    let clerk = Clerk::with(1, move |_| {
        let away = Duration::from_secs(3)..Duration::from_secs(9);
        away.contains(&begun.elapsed()).then(|| Fault::Instead(broken()))
    })
    .await;
    let record = clerk.run("for n in $(seq 30); do echo line $n; sleep 0.1; done; echo {\"done\"}").await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let time = |name: &str| -> jiff::Timestamp { record["times"][name].as_str().unwrap().parse().unwrap() };
    let ran = time("ended").duration_since(time("started")).as_secs_f64();
    assert!(ran < 6.0, "the container ran for {ran} s");
    assert_eq!(clerk.lines("line "), counted("line ", 30), "{}", clerk.job().log.concat());
    assert_eq!(clerk.job().states, [2, 3]);
}

#[tokio::test]
async fn a_container_that_says_much_is_told_about_at_most_twice_a_second() {
    let clerk = Clerk::with(1, |_| None).await;
    let record = clerk.run("for n in $(seq 400); do echo line $n; sleep 0.01; done").await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let job = clerk.job();
    let (first, last) = (job.texts[0], job.texts[job.texts.len() - 1]);
    // The first goes at once, and what waits before a state does.
    let most = last.duration_since(first).as_secs_f64() / 0.5 + 4.0;
    #[expect(clippy::cast_precision_loss, reason = "these are few")]
    let count = job.texts.len() as f64;
    assert!(count <= most && count >= 3.0, "{count} updates, at most {most}");
}
