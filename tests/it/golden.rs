//! What each version of longshore wrote, as files below `tests/golden/VERSION`, read by this one.
//!
//! `make golden` adds the folder of the version at hand, once, before it is released; a folder that stands is never written
//! again. The same writer runs in every test, into a folder that is thrown away, so that it works when it is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore::events::cloudevent;
use longshore::store::{Record, Status};
use longshore::task::envelope::{decode, encode};
use longshore::task::{ContentType, Limits};
use serde_json::{Value, json};

use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::redis::Redis;

/// Keeps what is old by the time it is read.
const FOR_EVER: &str =
    "[retention]\nsucceeded = \"36500d\"\nfailed = \"36500d\"\n[events]\nage = \"36500d\"\n";
const ENDS_WITHIN: Duration = Duration::from_secs(30);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folders of all versions.
fn versions() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(golden())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "there are no fixtures: make golden");
    found
}

/// An envelope with every field that a native one has.
fn envelope() -> Value {
    json!({"v": 1, "id": "golden", "task": "docker_run", "queue": "nightly", "priority": 7, "generation": 2,
        "args": {"image": "busybox:latest", "pull": "missing", "entrypoint": ["sh"],
            "container_args": ["-c", "echo hi > $0", {"$": "VolumePath", "filename": "out.txt"}],
            "volumes": [{"$": "BindMountVolume", "host_path": "/data", "container_path": "/mnt/data", "mode": "ro"}],
            "remove_container": true, "options": {"environment": {"A": "1"}, "mem_limit": "512m"}},
        "result_hooks": [{"$": "GirderUploadVolumePathToItem",
            "volumepath": {"$": "VolumePath", "filename": "out.txt"}, "item_id": "5f0000000000000000000001"}],
        "girder": {"api_url": "https://girder.example/api/v1", "token": "not a token",
            "job": {"url": "https://girder.example/api/v1/job/1", "method": "PUT", "headers": {"Girder-Token": "none"},
                "interval": 0.5, "log": true, "verify_tls": true}},
        "not_before": "2026-11-27T10:00:00Z", "expires": "2126-11-27T10:00:00Z", "timeout": "1h",
        "retry": {"max_attempts": 3, "backoff": "5s", "on": ["retryable", "exit:3"]},
        "resources": {"cpus": 1.5, "memory": "512MiB", "gpus": 1, "platform": "linux/amd64", "custom": {"licence": 2}},
        "labels": {"study": "a"}, "dedup_key": "golden-key",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "of_a_later_version": {"kept": [1]}})
}

/// Writes what this version writes.
async fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let task = decode(envelope().to_string().as_bytes(), ContentType::Json, &Limits::default()).unwrap();
    std::fs::write(folder.join("task.json"), encode(&task, ContentType::Json)).unwrap();
    std::fs::write(folder.join("task.msgpack"), encode(&task, ContentType::MessagePack)).unwrap();

    let near = Longshore::with_settings(FOR_EVER);
    fill(&near).await;
    std::fs::write(folder.join("events.jsonl"), near.ok(&["events"]).await).unwrap();
    let database = near.state().join("longshore.db");
    let copy = folder.join("longshore.db");
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();

    let redis = Redis::start().await;
    let far = Longshore::with_settings(&format!("brokers = [\"{}\"]\n{FOR_EVER}", redis.url()));
    fill(&far).await;
    let mut operator = redis.connection().await;
    let document: String = redis::cmd("HGET")
        .arg("longshore:result:{done}")
        .arg("document")
        .query_async(&mut operator)
        .await
        .unwrap();
    std::fs::write(folder.join("result.json"), document).unwrap();
    let _: () = redis::cmd("SAVE").query_async(&mut operator).await.unwrap();
    std::fs::copy(redis.folder().join("dump.rdb"), folder.join("dump.rdb")).unwrap();
}

/// A broker with tasks that succeeded, failed and died, and with one that waits and one that waits for its time.
async fn fill(longshore: &Longshore) {
    let submit = async |task: Value| {
        let file = longshore.folder().join("task.json");
        std::fs::write(&file, task.to_string()).unwrap();
        longshore.ok(&["submit", "--file", file.to_str().unwrap()]).await;
    };
    let ping = |id: &str, args: Value| json!({"v": 1, "id": id, "task": "longshore.ping", "args": args, "labels": {"study": "a"}});
    submit(ping("done", json!({"progress": 2}))).await;
    submit(ping("failed", json!({"fail": "permanent"}))).await;
    submit(json!({"v": 1, "id": "unknown", "task": "of.nobody"})).await;
    let mut worker = longshore.worker(&["--name", "quay"]).await;
    for (id, status) in [("done", "succeeded"), ("failed", "failed"), ("unknown", "dead")] {
        ended(longshore, id, status).await;
    }
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.end().await;
    submit(ping("waits", json!({}))).await;
    let mut later = ping("later", json!({}));
    later["not_before"] = json!("2126-01-01T00:00:00Z");
    submit(later).await;
}

async fn ended(longshore: &Longshore, id: &str, status: &str) {
    eventually(ENDS_WITHIN, &format!("{id} is {status}"), async || {
        let said = longshore.run(&["task", "show", id, "--output", "json"]).await;
        let record: Value = serde_json::from_str(&said.stdout).ok()?;
        (record["status"] == status).then_some(())
    })
    .await;
}

/// All of it means here what it meant there.
async fn read(folder: &Path) {
    let name = folder.display();
    let file =
        |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let of = |file: &[u8], content_type| decode(file, content_type, &Limits::default()).unwrap();
    let task = of(&file("task.json"), ContentType::Json);
    assert_eq!(task, of(&file("task.msgpack"), ContentType::MessagePack), "{name}");
    assert_eq!(
        (task.id.as_str(), task.kind.as_str(), task.generation.0),
        ("golden", "docker_run", 2),
        "{name}"
    );
    let again: Value = serde_json::from_slice(&encode(&task, ContentType::Json)).unwrap();
    let was: Value = serde_json::from_slice(&file("task.json")).unwrap();
    for (field, value) in was.as_object().unwrap() {
        assert_eq!(&again[field], value, "{field} of {name}");
    }

    let record: Record = serde_json::from_slice(&file("result.json")).unwrap();
    assert_eq!(
        (record.id.as_str(), record.status, record.attempts),
        ("done", Status::Succeeded, 1),
        "{name}"
    );
    let events = String::from_utf8(file("events.jsonl")).unwrap();
    let events: Vec<_> = events.lines().map(|line| cloudevent::decode(line.as_bytes()).unwrap()).collect();
    let kinds = |id: &str| -> Vec<&str> {
        events.iter().filter(|event| event.task.as_str() == id).map(|event| event.kind().as_str()).collect()
    };
    assert_eq!(
        kinds("done"),
        ["queued", "staging", "running", "progress", "progress", "succeeded"],
        "{name}"
    );
    assert_eq!(kinds("failed").last(), Some(&"failed"), "{name}");

    let near = Longshore::with_settings(FOR_EVER);
    std::fs::create_dir_all(near.state()).unwrap();
    std::fs::copy(folder.join("longshore.db"), near.state().join("longshore.db")).unwrap();
    go_on(&near).await;

    let redis = Redis::with(|data| {
        std::fs::copy(folder.join("dump.rdb"), data.join("dump.rdb")).unwrap();
        ["--appendonly", "no", "--dbfilename", "dump.rdb"].map(str::to_owned).to_vec()
    })
    .await;
    let far = Longshore::with_settings(&format!("brokers = [\"{}\"]\n{FOR_EVER}", redis.url()));
    go_on(&far).await;
}

/// What stands in an old broker is listed, shown and replayed, and what waits in it is run.
async fn go_on(longshore: &Longshore) {
    let json = async |args: &[&str]| -> Value {
        serde_json::from_str(&longshore.ok(&[args, &["--output", "json"]].concat()).await).unwrap()
    };
    let queues = json(&["queue", "list"]).await;
    let queue = &queues["queues"][0];
    let counts = ["ready", "leased", "delayed", "dead"].map(|count| queue[count].as_u64().unwrap());
    assert_eq!(counts, [1, 0, 1, 1], "{queues}");
    for (id, status) in [("done", "succeeded"), ("failed", "failed"), ("unknown", "dead")] {
        let record = json(&["task", "show", id]).await;
        assert_eq!(
            (&record["status"], &record["attempts"]),
            (&json!(status), &record["attempts"]),
            "{record}"
        );
    }
    let listed = json(&["task", "list", "--label", "study=a", "--status", "succeeded"]).await;
    assert_eq!(listed["tasks"][0]["id"], "done", "{listed}");
    let events = longshore.ok(&["events"]).await;
    assert!(
        events.contains("longshore.task.succeeded.v1") && events.contains("longshore.task.dead.v1"),
        "{events}"
    );
    let dead = json(&["dead", "list"]).await;
    assert_eq!(dead["dead"][0]["task"], "unknown", "{dead}");
    let _worker = longshore.worker(&["--name", "quay"]).await;
    ended(longshore, "waits", "succeeded").await;
    assert_eq!(json(&["queue", "list"]).await["queues"][0]["delayed"], 1);
}

#[tokio::test]
async fn what_each_version_wrote_is_read_by_this_one() {
    for version in versions() {
        read(&version).await;
    }
}

#[tokio::test]
async fn what_this_version_writes_can_be_kept_for_the_next() {
    let kept = golden().join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("LONGSHORE_GOLDEN").is_some() {
        assert!(
            !kept.exists(),
            "{} stands already: what was released is never written again",
            kept.display()
        );
        return write(&kept).await;
    }
    assert!(kept.exists(), "{} is missing: make golden", kept.display());
    let thrown_away = tempfile::tempdir().unwrap();
    write(thrown_away.path()).await;
    read(thrown_away.path()).await;
}
