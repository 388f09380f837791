//! A real Girder 5, shared by all tests of a run; each test works in a folder of its own.
//!
//! Talked to with `curl`, which shares no code with longshore's own client.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::process::free_port;
use super::shared::Shared;

const READY_WITHIN: Duration = Duration::from_secs(100);
const ANSWER_WITHIN: &str = "30";

/// The server, seen as its administrator.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Girder {
    api_url: String,
    token: String,
    user: String,
}

/// A queued job and what travels with its task.
#[derive(Deserialize)]
pub(crate) struct GirderJob {
    /// The job's id.
    pub(crate) id: String,
    /// Girder's `jobInfoSpec`: where and how status and log are reported.
    pub(crate) spec: Value,
    /// What the task's transforms may read and write with.
    pub(crate) token: String,
}

impl Girder {
    /// The run's server.
    pub(crate) async fn shared() -> Girder {
        let shared = Shared::claim("girder");
        if let Some(girder) = shared.noted() {
            return girder;
        }
        let port = free_port();
        shared.start("peer/girder/start", &[port, free_port()], READY_WITHIN).await;
        let girder = Girder::at(port, shared.folder());
        shared.note(&girder);
        girder
    }

    /// The one that listens there and was started in this folder.
    pub(crate) fn at(port: u16, folder: &Path) -> Girder {
        let written = std::fs::read(folder.join("girder.json")).expect("Girder wrote its token");
        let written: Value = serde_json::from_slice(&written).expect("Girder wrote JSON");
        Girder {
            api_url: format!("http://127.0.0.1:{port}/api/v1"),
            token: text(&written, "token"),
            user: text(&written, "user"),
        }
    }

    /// The base of every route, without a slash at its end.
    pub(crate) fn api_url(&self) -> &str {
        &self.api_url
    }

    /// The administrator's token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// A new folder of the administrator; the name need not be unique. Returns its id.
    pub(crate) async fn folder(&self, name: &str) -> String {
        let path =
            format!("folder?parentType=user&parentId={}&name={name}-{}", self.user, uuid::Uuid::now_v7());
        text(&self.post(&path, b"").await, "_id")
    }

    /// Uploads a file as a new item of a folder; returns the file's document.
    pub(crate) async fn upload(&self, folder: &str, name: &str, content: &[u8]) -> Value {
        let path = format!("file?parentType=folder&parentId={folder}&name={name}&size={}", content.len());
        self.post(&path, content).await
    }

    /// The content of a file.
    pub(crate) async fn download(&self, file: &str) -> Vec<u8> {
        self.call("GET", &format!("file/{file}/download"), &self.token, b"").await
    }

    /// A new job in the state in which a producer leaves it.
    pub(crate) async fn job(&self, title: &str) -> GirderJob {
        let job = self.post(&format!("worker/job?title={title}"), b"").await;
        serde_json::from_value(job).expect("the test route answers with a job")
    }

    /// GET of a route below the API, as the administrator.
    pub(crate) async fn get(&self, path: &str) -> Value {
        json(&self.call("GET", path, &self.token, b"").await)
    }

    /// POST to a route below the API, as the administrator.
    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> Value {
        json(&self.call("POST", path, &self.token, body).await)
    }

    /// Any call with any token; panics with Girder's answer when that is an error.
    pub(crate) async fn call(&self, method: &str, path: &str, token: &str, body: &[u8]) -> Vec<u8> {
        let url = format!("{}/{path}", self.api_url);
        let header = format!("Girder-Token: {token}");
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--location",
            "--max-time",
            ANSWER_WITHIN,
        ]);
        curl.args(["--request", method, "--header", &header, "--url", &url]);
        if method != "GET" {
            curl.args(["--header", "Content-Type: application/octet-stream", "--data-binary", "@-"]);
        }
        let mut curl = curl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("curl can be started; run scripts/test-servers");
        let mut stdin = curl.stdin.take().expect("invariant: it is piped");
        // A server that refuses at once does not read the body; its answer tells more than the broken pipe.
        let _ = stdin.write_all(body).await;
        drop(stdin);
        let output = curl.wait_with_output().await.expect("curl can be waited for");
        let complaint = || {
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
        };
        assert!(output.status.success(), "{method} {path}: {}", complaint());
        output.stdout
    }
}

/// Everything in the log of a job.
pub(crate) fn log(job: &Value) -> String {
    job["log"].as_array().map_or_else(String::new, |texts| texts.iter().filter_map(Value::as_str).collect())
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(body)))
}

fn text(document: &Value, field: &str) -> String {
    document[field].as_str().unwrap_or_else(|| panic!("no {field} in {document}")).to_owned()
}
