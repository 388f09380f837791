//! The ways to a Girder that an installation knows: whom it trusts, and through which proxy it goes. Each is asked of a
//! worker's process, since the environment is the process's. A 404 of the Girder proves that the way was found.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::rig::PATIENCE;
use crate::support::docker::engine;
use crate::support::faulty::{Faulty, Reply};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::process::{free_port, tied_to_this_thread};

const SETTINGS: &str = "[girder]\nretry_budget = \"1s\"\nstall_timeout = \"5s\"\n[retry]\nmax_attempts = 1\n";

/// What becomes of a task that fetches a file from `api_url`, by a worker with these variables and settings.
async fn end(api_url: &str, variables: &[(&str, &str)], settings: &str) -> Value {
    let file = json!({"$": "GirderFileIdToVolume", "file_id": "f1", "girder": {"api_url": api_url}});
    let task = json!({"v": 1, "task": "docker_run",
        "args": {"image": "busybox:latest", "pull": "never", "container_args": ["true", file]}});
    let record = record(&task, variables, settings).await;
    assert_eq!(record["status"], "failed", "{record}");
    record["outcome"]["error"].clone()
}

/// The record of `task` at its end by such a worker.
async fn record(task: &Value, variables: &[(&str, &str)], settings: &str) -> Value {
    engine().await;
    let longshore = Longshore::with_settings(&format!("{SETTINGS}{settings}"));
    let _worker = longshore.worker_in(&["--concurrency", "1"], variables).await;
    let path = longshore.folder().join("task.json");
    std::fs::write(&path, task.to_string()).unwrap();
    let id = longshore.ok(&["submit", "--file", path.to_str().unwrap()]).await;
    eventually(PATIENCE, "the task is finished", async || {
        let shown = longshore.run(&["task", "show", &id, "--output", "json"]).await;
        let record: Value = serde_json::from_str(&shown.stdout).ok()?;
        record["outcome"].is_object().then_some(record)
    })
    .await
}

/// A Girder behind TLS whose certificate only a private authority vouches for.
struct Locked {
    folder: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl Locked {
    async fn start() -> Locked {
        let folder = tempfile::tempdir().unwrap();
        let run = |args: &str| {
            let output =
                Command::new("openssl").args(args.split(' ')).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
        };
        std::fs::write(
            folder.path().join("extensions"),
            "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )
        .unwrap();
        run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority");
        run("req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=girder");
        run(
            "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 -extfile extensions",
        );
        let answer = folder.path().join("api/v1/file");
        std::fs::create_dir_all(&answer).unwrap();
        std::fs::write(answer.join("f1"), "HTTP/1.0 404 Not Found\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        let canceled = r#"{"_id": "1", "status": 824}"#;
        let length = canceled.len();
        let job = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{canceled}");
        std::fs::create_dir_all(folder.path().join("api/v1/job")).unwrap();
        std::fs::write(folder.path().join("api/v1/job/1"), job).unwrap();
        let port = free_port();
        let mut command = Command::new("openssl");
        command.args([
            "s_server",
            "-quiet",
            "-HTTP",
            "-cert",
            "own.pem",
            "-key",
            "own.key",
            "-accept",
            &port.to_string(),
        ]);
        let mut command = tied_to_this_thread(command.current_dir(folder.path()));
        let server =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually(PATIENCE, "openssl listens", async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        })
        .await;
        Locked { folder, port, server }
    }

    fn api_url(&self) -> String {
        format!("https://127.0.0.1:{}/api/v1", self.port)
    }

    fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_girder_is_trusted_whose_authority_the_settings_or_the_environment_name_and_no_other() {
    let girder = Locked::start().await;
    let (url, authority) = (girder.api_url(), girder.authority());
    let error = end(&url, &[], "").await;
    assert_eq!(error["code"], "girder_unavailable", "{error}");
    assert!(error["message"].as_str().unwrap().to_lowercase().contains("certificate"), "{error}");
    let by_settings = format!("[tls]\nca_file = \"{}\"\n", text(&authority));
    let error = end(&url, &[], &by_settings).await;
    assert_eq!(error["code"], "girder_not_found", "{error}");
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
        let error = end(&url, &[(variable, text(&authority))], "").await;
        assert_eq!(error["code"], "girder_not_found", "{variable}: {error}");
    }
}

#[tokio::test]
async fn a_girder_is_reached_through_the_proxy_that_the_environment_names_unless_it_is_excepted() {
    let girder = || Faulty::start(|_| Reply::error(404, "no such file"));
    let proxy = girder().await;
    let url = proxy.url();
    let error = end("http://girder.invalid/api/v1", &[("HTTP_PROXY", &url), ("http_proxy", &url)], "").await;
    assert_eq!(error["code"], "girder_not_found", "{error}");
    assert!(proxy.asked().iter().any(|asked| asked.path == "http://girder.invalid/api/v1/file/f1"));

    let proxy = Faulty::start(|_| Reply::error(502, "no way")).await;
    let error = end("https://girder.invalid/api/v1", &[("HTTPS_PROXY", &proxy.url())], "").await;
    assert_eq!(error["code"], "girder_unavailable", "{error}");
    let asked = proxy.asked();
    assert!(
        asked
            .iter()
            .all(|asked| (asked.method.as_str(), asked.path.as_str()) == ("CONNECT", "girder.invalid:443"))
    );
    assert!(!asked.is_empty());

    let (proxy, direct) = (girder().await, girder().await);
    let (url, api_url) = (proxy.url(), format!("{}/api/v1", direct.url()));
    let variables = [
        ("HTTP_PROXY", url.as_str()),
        ("http_proxy", &url),
        ("NO_PROXY", "127.0.0.1"),
        ("no_proxy", "127.0.0.1"),
    ];
    assert_eq!(end(&api_url, &variables, "").await["code"], "girder_not_found");
    assert!(proxy.asked().is_empty() && !direct.asked().is_empty());
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_taken_only_where_policy_says_so_too() {
    let girder = Locked::start().await;
    let url = girder.api_url();
    // What `girder_client_session_kwargs = {"verify": False}` becomes. That the job was canceled is only known to whoever reads it.
    let task = |verify: bool| {
        json!({"v": 1, "task": "docker_run",
            "args": {"image": "busybox:latest", "pull": "never", "container_args": ["true"]},
            "girder": {"api_url": url, "job": {"url": format!("{url}/job/1"), "verify_tls": verify}}})
    };
    let allowed = "[policy.girder]\nallow_insecure_tls = true\n";
    let seen = record(&task(false), &[], allowed).await;
    assert_eq!(seen["status"], "canceled", "{seen}");
    // Nobody asked for it.
    let seen = record(&task(true), &[], allowed).await;
    assert_eq!(seen["status"], "succeeded", "{seen}");
    // Somebody asked for it and may not.
    let seen = record(&task(false), &[], "").await;
    let error = &seen["outcome"]["error"];
    assert_eq!((&seen["status"], &error["code"]), (&json!("failed"), &json!("denied_by_policy")), "{seen}");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("girder.allow_insecure_tls") && said.contains("tls.ca_file"), "{said}");
}
