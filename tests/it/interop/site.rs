//! A Girder site: a Girder whose plugins send their tasks to a broker, and a worker in the place of Python's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::tap::Tap;
use crate::support::docker::engine;
use crate::support::girder::{Girder, log};
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;
use crate::support::process::{Server, free_port};
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

/// Girder comes slowly, its Python environment more so.
const GIRDER_WITHIN: Duration = Duration::from_secs(100);
/// No scenario waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(100);
/// How often Girder is asked for the state of all jobs, once for all scenarios.
const LOOK: Duration = Duration::from_millis(200);

/// What a job may be.
pub(super) const INACTIVE: i64 = 0;
pub(super) const QUEUED: i64 = 1;
pub(super) const RUNNING: i64 = 2;
pub(super) const SUCCESS: i64 = 3;
pub(super) const ERROR: i64 = 4;
pub(super) const CANCELED: i64 = 5;
pub(super) const CANCELING: i64 = 824;

/// What carries the site's tasks.
pub(super) enum Carrier {
    RabbitMq(RabbitMq, Tap),
    Redis(Redis),
}

impl Carrier {
    /// A virtual host of RabbitMQ's own, with a tap on the worker's line.
    pub(super) async fn rabbitmq() -> Carrier {
        let rabbit = RabbitMq::vhost().await;
        let tap = Tap::before(rabbit.address()).await;
        Carrier::RabbitMq(rabbit, tap)
    }

    /// As Girder names broker and result backend.
    pub(super) fn of_girder(&self) -> (String, String) {
        match self {
            Self::RabbitMq(rabbit, _) => (rabbit.url(), "rpc://".to_owned()),
            Self::Redis(redis) => (format!("{}/0", redis.url()), format!("{}/0", redis.url())),
        }
    }

    /// The same in longshore's settings.
    fn settings(&self) -> String {
        match self {
            // Heartbeats come at half of that: within any measurement.
            Self::RabbitMq(rabbit, tap) => {
                let tapped = rabbit.url().replace(rabbit.address(), tap.address());
                format!("brokers = [\"{tapped}?heartbeat=2\"]\n")
            }
            Self::Redis(redis) => {
                let url = redis.url();
                format!("brokers = [\"celery+{url}/0\"]\n[celery]\nresult_backend = \"{url}/0\"\n")
            }
        }
    }
}

/// A task that was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// The id of its job.
    pub(super) job: String,
    /// Its id as Celery has it.
    pub(super) task: String,
    /// All that the route answered.
    pub(super) answer: Value,
}

/// The site as its users and its administrator see it.
pub(super) struct Site {
    pub(super) girder: Girder,
    pub(super) worker: Worker,
    pub(super) longshore: Longshore,
    pub(super) carrier: Carrier,
    /// Where outputs go.
    pub(super) folder: String,
    /// What containers may see of the host.
    data: tempfile::TempDir,
    states: watch::Receiver<BTreeMap<String, i64>>,
    looking: AbortHandle,
    _servers: (Server, Redis, tempfile::TempDir),
}

impl Site {
    /// A site whose worker has four lanes, and prepares one task beyond them.
    pub(super) async fn start(carrier: Carrier) -> Site {
        engine().await;
        let redis = Redis::start().await;
        let (girder, server, home) = start_girder(&carrier, &redis).await;
        let data = tempfile::tempdir().unwrap();
        let settings = format!(
            "{}[worker]\nstaging_ahead = 1\n[girder]\ndirect_paths = [\"{}\"]\n",
            carrier.settings(),
            data.path().join("direct").display()
        );
        let longshore = Longshore::with_settings(&settings);
        let worker = longshore.worker(&["-c", "4", "-n", "quay", "-Ofair"]).await;
        let (tell, states) = watch::channel(BTreeMap::new());
        let looking = tokio::spawn(look(girder.clone(), tell)).abort_handle();
        let folder = girder.folder("outputs").await;
        Site {
            girder,
            worker,
            longshore,
            carrier,
            folder,
            data,
            states,
            looking,
            _servers: (server, redis, home),
        }
    }

    /// A new folder of the host for containers, holding these files.
    pub(super) fn host_folder(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.data.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        folder
    }

    /// Has the plugin send a task.
    pub(super) async fn send(&self, name: &str, parameters: Value) -> Sent {
        let route = format!("site/task/{name}");
        let answer = self.girder.post(&route, parameters.to_string().as_bytes()).await;
        let text = |field: &str| answer[field].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        Sent { job: text("job"), task: text("task"), answer: answer.clone() }
    }

    /// The job once it is in this state.
    pub(super) async fn job_in(&self, sent: &Sent, status: i64) -> Value {
        let mut states = self.states.clone();
        let there = states.wait_for(|states| states.get(&sent.job) == Some(&status));
        if tokio::time::timeout(PATIENCE, there).await.is_err() {
            let job = self.job(sent).await;
            panic!("the job is not {status} within {PATIENCE:?} but {}:\n{}", job["status"], log(&job));
        }
        self.job(sent).await
    }

    /// The job once it ended, which has to be in this state.
    pub(super) async fn ended(&self, sent: &Sent, status: i64) -> Value {
        let mut states = self.states.clone();
        let over = |status: &i64| [SUCCESS, ERROR, CANCELED].contains(status);
        let there = states.wait_for(|states| states.get(&sent.job).is_some_and(over));
        if tokio::time::timeout(PATIENCE, there).await.is_err() {
            let job = self.job(sent).await;
            panic!("the job does not end within {PATIENCE:?}, is {}:\n{}", job["status"], log(&job));
        }
        let job = self.job(sent).await;
        assert_eq!(job["status"], status, "{}", log(&job));
        job
    }

    /// Sends it and returns what its container said, once it ended well.
    pub(super) async fn said(&self, name: &str, parameters: Value) -> String {
        let sent = self.send(name, parameters).await;
        log(&self.ended(&sent, SUCCESS).await)
    }

    /// The job as it is, with its log.
    pub(super) async fn job(&self, sent: &Sent) -> Value {
        self.girder.get(&format!("job/{}", sent.job)).await
    }

    /// The job once its log holds this.
    pub(super) async fn says(&self, sent: &Sent, text: &str) -> Value {
        eventually(PATIENCE, &format!("the job says {text:?}"), async || {
            let job = self.job(sent).await;
            log(&job).contains(text).then_some(job)
        })
        .await
    }

    /// What the button of the job's page does.
    pub(super) async fn cancel(&self, sent: &Sent) {
        self.girder.call("PUT", &format!("job/{}/cancel", sent.job), self.girder.token(), b"").await;
    }

    /// A file in an item of its own; the ids of both.
    pub(super) async fn file(&self, name: &str, content: &[u8]) -> (String, String) {
        let file = self.girder.upload(&self.folder, name, content).await;
        (file["_id"].as_str().unwrap().to_owned(), file["itemId"].as_str().unwrap().to_owned())
    }

    /// A new item without files.
    pub(super) async fn item(&self) -> String {
        let route = format!("item?folderId={}&name=result-{}", self.folder, uuid::Uuid::now_v7());
        self.girder.post(&route, b"").await["_id"].as_str().unwrap().to_owned()
    }

    /// A new folder in another one, or of the administrator.
    pub(super) async fn folder_in(&self, parent: Option<&str>, name: &str) -> String {
        let Some(parent) = parent else { return self.girder.folder(name).await };
        let route = format!("folder?parentType=folder&parentId={parent}&name={name}");
        self.girder.post(&route, b"").await["_id"].as_str().unwrap().to_owned()
    }

    /// Names and contents of an item's files.
    pub(super) async fn files_of(&self, item: &str) -> Vec<(String, Vec<u8>)> {
        let listed = self.girder.get(&format!("item/{item}/files")).await;
        let mut files = Vec::new();
        for file in listed.as_array().unwrap() {
            let content = self.girder.download(file["_id"].as_str().unwrap()).await;
            files.push((file["name"].as_str().unwrap().to_owned(), content));
        }
        files.sort();
        files
    }

    /// Names and contents of the files in a folder's items.
    pub(super) async fn files_in(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let items = self.girder.get(&format!("item?folderId={folder}")).await;
        let mut files = Vec::new();
        for item in items.as_array().unwrap() {
            files.extend(self.files_of(item["_id"].as_str().unwrap()).await);
        }
        files.sort();
        files
    }

    /// Names and sizes of a job's artifacts.
    pub(super) async fn artifacts(&self, sent: &Sent) -> Vec<(String, u64)> {
        let listed = self.girder.get(&format!("job/{}/artifact", sent.job)).await;
        let artifacts = listed.as_array().unwrap().iter();
        let mut artifacts: Vec<_> = artifacts
            .map(|artifact| {
                (artifact["name"].as_str().unwrap().to_owned(), artifact["size"].as_u64().unwrap())
            })
            .collect();
        artifacts.sort();
        artifacts
    }

    /// When the job came into its states, in seconds.
    pub(super) fn times(job: &Value) -> Vec<(i64, f64)> {
        let stamps = job["timestamps"].as_array().cloned().unwrap_or_default();
        let second = |stamp: &Value| {
            let text = stamp["time"].as_str().unwrap();
            let at: jiff::Timestamp = text.parse().unwrap_or_else(|_| panic!("{text} is no time"));
            at.duration_since(jiff::Timestamp::UNIX_EPOCH).as_secs_f64()
        };
        stamps.iter().map(|stamp| (stamp["status"].as_i64().unwrap(), second(stamp))).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// Starts a Girder with our plugin, over `carrier`.
async fn start_girder(carrier: &Carrier, redis: &Redis) -> (Girder, Server, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let port = free_port();
    let (broker, backend) = carrier.of_girder();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/girder/site"));
    command.arg(home.path()).args([&port.to_string(), &redis.url(), &broker, &backend]);
    let server = Server::start_slowly("girder", &command, (home.path(), port), GIRDER_WITHIN).await;
    (Girder::at(port, home.path()), server, home)
}

/// Asks for the states of all jobs again and again.
async fn look(girder: Girder, tell: watch::Sender<BTreeMap<String, i64>>) {
    loop {
        let jobs = girder.get("job/all?limit=0").await;
        let state = |job: &Value| Some((job["_id"].as_str()?.to_owned(), job["status"].as_i64()?));
        tell.send_replace(jobs.as_array().unwrap().iter().filter_map(state).collect());
        tokio::time::sleep(LOOK).await;
    }
}

/// Lines of a log that came from the container.
pub(super) fn has_lines(log: &str, expected: &[&str]) {
    let lines: Vec<&str> = log.lines().collect();
    let found = lines.windows(expected.len()).any(|window| window == expected);
    assert!(found, "no {expected:?} in\n{log}");
}

/// No parameters.
pub(super) fn nothing() -> Value {
    json!({})
}
