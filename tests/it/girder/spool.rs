//! Outputs of real containers that a real Girder does not take at their end: kept, and brought away later.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::rig::{PATIENCE, Rig, log, script};
use crate::support::docker::containers_labelled;
use crate::support::girder::GirderJob;
use crate::support::poll::eventually;
use crate::support::tide::Tide;

const SETTINGS: &str = "[worker]\nlease = \"3s\"\nrelease_damping = \"500ms\"\n\
    [girder]\njob_look = \"1s\"\nretry_budget = \"1s\"\nstall_timeout = \"5s\"\n";

/// A worker, a way to its Girder that comes and goes, and a place for outputs there.
struct Bay {
    rig: Rig,
    tide: Tide,
    folder: String,
    item: String,
    job: GirderJob,
}

impl Bay {
    async fn new(settings: &str) -> Bay {
        let rig = Rig::with(settings).await;
        let address = rig.girder.api_url().trim_start_matches("http://").split('/').next().unwrap();
        let tide = Tide::before(address).await;
        let folder = rig.girder.folder("kept").await;
        let item = rig.girder.post(&format!("item?folderId={folder}&name=result"), b"").await;
        let item = item["_id"].as_str().unwrap().to_owned();
        let job = rig.girder.job("kept").await;
        Bay { rig, tide, folder, item, job }
    }

    /// A task that makes two outputs, of which one goes to the item and a folder of both to the folder.
    fn task(&self) -> Value {
        let text = "cd $0; echo ran; echo one > out.txt; mkdir -p all/deep; echo two > all/deep/b; echo three > all/c";
        let mut task = script(&self.rig.girder, &self.job, text);
        task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
        let path = |name: &str| json!({"$": "VolumePath", "filename": name});
        task["result_hooks"] = json!([
            {"$": "GirderUploadVolumePathToItem", "volumepath": path("out.txt"), "item_id": self.item},
            {"$": "GirderUploadVolumePathToFolder", "volumepath": path("all"), "folder_id": self.folder},
        ]);
        // The job is told all the while: what is to be seen there must not depend on the tide.
        task["girder"]["api_url"] = json!(format!("http://{}/api/v1", self.tide.address()));
        task
    }

    /// Submits it while Girder is away; its id once its outputs wait.
    async fn waits(&self) -> String {
        self.tide.ebb();
        let id = self.rig.submit(&self.task()).await;
        self.is_uploading(&id).await;
        id
    }

    async fn is_uploading(&self, id: &str) -> Value {
        eventually(PATIENCE, "its outputs wait", async || {
            let record = self.rig.record(id).await?;
            let over = ["succeeded", "failed", "canceled", "dead"].contains(&record["status"].as_str()?);
            assert!(!over, "{record}");
            (record["status"] == "uploading" && record["spooled"]["next"].is_string()).then_some(record)
        })
        .await
    }

    /// What is kept, as paths below the folder of its attempt.
    fn kept(&self) -> Vec<String> {
        let mut found = Vec::new();
        for attempt in folders(&self.rig.longshore.state().join("spool")) {
            for place in folders(&attempt) {
                let mode = place.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o700, "{}", place.display());
                list(&place, &place, &mut found);
            }
        }
        found.sort();
        found
    }

    fn workspaces(&self) -> Vec<PathBuf> {
        folders(&self.rig.longshore.state().join("work")).iter().flat_map(|parent| folders(parent)).collect()
    }

    /// Every output is in Girder, once.
    async fn is_there(&self) {
        let names = |found: &Value| -> Vec<String> {
            found.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
        };
        let girder = &self.rig.girder;
        let files = girder.get(&format!("item/{}/files", self.item)).await;
        assert_eq!(names(&files), ["out.txt"]);
        assert_eq!(girder.download(files[0]["_id"].as_str().unwrap()).await, b"one\n");
        assert_eq!(names(&girder.get(&format!("item?folderId={}", self.folder)).await), ["c", "result"]);
        let deep = girder.get(&format!("folder?parentType=folder&parentId={}", self.folder)).await;
        assert_eq!(names(&deep), ["deep"]);
        let id = deep[0]["_id"].as_str().unwrap();
        assert_eq!(names(&girder.get(&format!("item?folderId={id}")).await), ["b"]);
    }

    /// The end of a task that went well, whose container ran once.
    async fn went_well(&self, id: &str) {
        let record = self.rig.finished(id).await;
        assert_eq!(record["status"], "succeeded", "{record}");
        assert_eq!((&record["attempts"], &record["details"]["exit_code"]), (&json!(1), &json!(0)));
        assert_eq!(record["details"]["result"], json!([self.item, self.folder]), "{record}");
        assert_eq!(record["details"]["uploads"].as_array().unwrap().len(), 3, "{record}");
        assert!(record.get("spooled").is_none() && record["times"]["uploaded"].is_string(), "{record}");
        self.is_there().await;
        let seen = self.rig.job_in(&self.job, 3).await;
        assert_eq!(log(&seen).matches("ran\n").count(), 1, "{}", log(&seen));
        eventually(PATIENCE, "nothing is kept any more", async || self.kept().is_empty().then_some(())).await;
    }

    async fn events(&self, id: &str) -> Vec<Value> {
        let told = self.rig.longshore.ok(&["events", "--task", id, "--since", "1h"]).await;
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn folders(path: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn list(base: &std::path::Path, path: &std::path::Path, found: &mut Vec<String>) {
    for entry in folders(path) {
        if entry.is_dir() {
            list(base, &entry, found);
        } else {
            found.push(entry.strip_prefix(base).unwrap().display().to_string());
        }
    }
}

#[tokio::test]
async fn outputs_wait_for_a_girder_that_is_away_and_go_without_running_the_container_again() {
    let bay = Bay::new(SETTINGS).await;
    let rig = &bay.rig;
    let id = bay.waits().await;
    let record = rig.record(&id).await.unwrap();
    assert_eq!(record["spooled"]["error"]["code"], "girder_unavailable", "{record}");
    assert!(record["spooled"]["until"].is_string() && record["owner"]["worker"].is_string(), "{record}");
    assert_eq!(record["details"]["exit_code"], 0, "{record}");
    let kept = bay.kept();
    for file in ["0/out.txt", "1/all/c", "1/all/deep/b", "spool.json", "begun.json", "told.jsonl"] {
        assert!(kept.iter().any(|kept| kept == file), "{file} in {kept:?}");
    }
    assert_eq!(bay.workspaces(), Vec::<PathBuf>::new(), "the volumes are gone");
    eventually(PATIENCE, "the container is gone", async || {
        containers_labelled(&format!("longshore.task={id}")).await.is_empty().then_some(())
    })
    .await;

    // Every command tells it.
    let longshore = &rig.longshore;
    assert!(longshore.ok(&["task", "list", "--status", "uploading"]).await.contains("outputs wait: "));
    let shown = longshore.ok(&["task", "show", &id]).await;
    assert!(shown.contains("outputs wait") && shown.contains("kept until"), "{shown}");
    let why = longshore.ok(&["task", "explain", &id]).await;
    assert!(why.contains("did not take its outputs") && why.contains("longshore task upload"), "{why}");
    let waited = longshore.run(&["task", "wait", "--timeout", "4s", &id]).await;
    assert_eq!(waited.code, Some(3), "{waited:?}");
    assert!(waited.stderr.contains("outputs wait"), "{waited:?}");

    bay.tide.flood();
    let said = longshore.ok(&["task", "upload", "--wait", &id]).await;
    assert!(said.contains("succeeded"), "{said}");
    bay.went_well(&id).await;
    let again = longshore.run(&["task", "upload", &id]).await;
    assert_eq!(again.code, Some(2), "{again:?}");
}

#[tokio::test]
async fn a_new_token_makes_outputs_go_on_and_stands_in_no_log() {
    let bay = Bay::new(SETTINGS).await;
    let rig = &bay.rig;
    let mut task = bay.task();
    task["girder"]["token"] = json!("a-token-that-is-over");
    let id = rig.submit(&task).await;
    let record = bay.is_uploading(&id).await;
    assert_eq!(record["spooled"]["error"]["code"], "girder_unauthorized", "{record}");
    let told = record["details"]["warnings"].to_string();
    assert!(told.contains("does not know the token"), "told before the container ran: {told}");

    let wrong = rig.longshore.folder().join("wrong");
    std::fs::write(&wrong, "another-wrong-token\n").unwrap();
    let said = rig.longshore.ok(&["task", "upload", "--token-file", wrong.to_str().unwrap(), &id]).await;
    assert!(said.contains("is being uploaded by"), "{said}");
    eventually(PATIENCE, "it was tried", async || {
        (rig.record(&id).await?["spooled"]["tries"].as_u64()? >= 2).then_some(())
    })
    .await;
    let token = rig.girder.token();
    rig.longshore.ok(&["task", "upload", "--token", token, &id]).await;
    bay.went_well(&id).await;

    let mut said = rig.worker.log() + &rig.longshore.ok(&["task", "show", &id, "--output", "json"]).await;
    said += &rig.longshore.ok(&["task", "logs", &id]).await;
    said += &bay.events(&id).await.iter().map(Value::to_string).collect::<String>();
    said += &log(&rig.job(&bay.job).await);
    for secret in [token, "another-wrong-token", "a-token-that-is-over"] {
        assert!(!said.contains(secret), "{secret} is told");
    }
}

#[tokio::test]
async fn a_new_token_opens_the_job_too_when_its_own_is_over_also_after_a_crash() {
    let mut bay = Bay::new(SETTINGS).await;
    let mut task = bay.task();
    task["girder"]["api_url"] = json!(bay.rig.girder.api_url());
    task["girder"]["token"] = json!("a-token-that-is-over");
    task["girder"]["job"]["headers"]["Girder-Token"] = json!("a-token-of-the-job-that-is-over");
    let id = bay.rig.submit(&task).await;
    bay.is_uploading(&id).await;
    eventually(PATIENCE, "the job is found shut", async || {
        bay.rig.worker.log().contains("its job waits for a new token").then_some(())
    })
    .await;
    bay.rig.worker.kill();
    bay.rig.worker = bay.rig.longshore.worker(&["--concurrency", "2"]).await;
    eventually(PATIENCE, "the next process has the outputs", async || {
        bay.rig.worker.log().contains("kept by an earlier process").then_some(())
    })
    .await;
    bay.is_uploading(&id).await;
    let seen = bay.rig.job(&bay.job).await;
    assert!(seen["status"] == 1 && log(&seen).is_empty(), "{seen}");

    let token = bay.rig.girder.token().to_owned();
    bay.rig.longshore.ok(&["task", "upload", "--token", &token, &id]).await;
    bay.went_well(&id).await;
    let told = log(&bay.rig.job(&bay.job).await);
    assert!(told.find("ran\n") < told.find("a new process of the worker goes on"), "{told}");
    assert!(!bay.rig.worker.log().contains(&token) && !told.contains(&token));
}

#[tokio::test]
async fn a_worker_that_is_killed_or_drained_leaves_outputs_to_its_next_process() {
    let mut bay = Bay::new(SETTINGS).await;
    let id = bay.waits().await;
    let args = ["--concurrency", "2"];
    bay.rig.worker.kill();
    bay.rig.worker = bay.rig.longshore.worker(&args).await;
    eventually(PATIENCE, "the next process has them", async || {
        bay.rig.worker.log().contains("kept by an earlier process").then_some(())
    })
    .await;
    bay.is_uploading(&id).await;

    bay.rig.worker.signal(Signal::SIGTERM);
    assert_eq!(bay.rig.worker.end().await.code(), Some(0), "a drain does not wait for them");
    let record = bay.rig.record(&id).await.unwrap();
    assert_eq!(record["status"], "uploading", "{record}");
    assert!(!bay.kept().is_empty());
    let alone = bay.rig.longshore.run(&["task", "upload", &id]).await;
    assert!(alone.code == Some(3) && alone.stderr.contains("start it there"), "{alone:?}");

    bay.tide.flood();
    bay.rig.worker = bay.rig.longshore.worker(&args).await;
    bay.went_well(&id).await;
    let numbers: Vec<String> =
        bay.events(&id).await.iter().map(|event| event["sequence"].as_str().unwrap().to_owned()).collect();
    let mut sorted = numbers.clone();
    sorted.sort();
    sorted.dedup();
    let last = |number: &String| number.rsplit('-').next().unwrap().parse::<usize>().unwrap();
    assert_eq!(
        last(sorted.last().unwrap()),
        sorted.iter().filter(|n| !n.starts_with("00000000000000000000-")).count() - 1,
        "{numbers:?}"
    );
}

#[tokio::test]
async fn outputs_that_wait_are_canceled_and_those_whose_time_is_over_fail_with_their_reason() {
    let bay = Bay::new(SETTINGS).await;
    let id = bay.waits().await;
    bay.rig.longshore.ok(&["task", "cancel", "--wait", &id]).await;
    assert_eq!(bay.rig.record(&id).await.unwrap()["status"], "canceled");
    eventually(PATIENCE, "nothing is kept", async || bay.kept().is_empty().then_some(())).await;

    let bay = Bay::new(&SETTINGS.replacen("[worker]\n", "[worker]\nspool_wait = \"4s\"\n", 1)).await;
    bay.tide.ebb();
    let record = bay.rig.finished(&bay.rig.submit(&bay.task()).await).await;
    let error = &record["outcome"]["error"];
    assert_eq!(
        (&error["code"], &error["class"]),
        (&json!("girder_unavailable"), &json!("permanent")),
        "{record}"
    );
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("worker.spool_wait") && said.contains("GirderUploadVolumePathToItem"), "{said}");
    assert_eq!((&record["attempts"], &error["exit_code"]), (&json!(1), &json!(0)), "{record}");
    let seen = bay.rig.job_in(&bay.job, 4).await;
    assert_eq!(log(&seen).matches("ran\n").count(), 1, "{}", log(&seen));
    eventually(PATIENCE, "nothing is kept", async || bay.kept().is_empty().then_some(())).await;
}

#[tokio::test]
async fn outputs_of_a_mount_stay_where_they_are_until_they_are_in_girder() {
    let bay = Bay::new(SETTINGS).await;
    let place = bay.rig.longshore.folder().join("shared");
    std::fs::create_dir(&place).unwrap();
    let volume = json!({"$": "BindMountVolume", "host_path": place, "container_path": "/shared"});
    let mut task = bay.task();
    task["args"]["container_args"] = json!(["echo one > /shared/out.txt"]);
    task["args"]["volumes"] = json!([volume]);
    task["result_hooks"] = json!([{
        "$": "GirderUploadVolumePathToItem", "item_id": bay.item, "delete_file": true,
        "volumepath": {"$": "VolumePath", "filename": "out.txt", "volume": volume},
    }]);
    bay.tide.ebb();
    let id = bay.rig.submit(&task).await;
    bay.is_uploading(&id).await;
    let output = place.join("out.txt");
    assert!(output.exists() && bay.kept().contains(&"0/out.txt".to_owned()), "{:?}", bay.kept());
    // Nobody's later change reaches what the task made.
    std::fs::write(&output, "changed").unwrap();
    bay.tide.flood();
    bay.rig.longshore.ok(&["task", "upload", "--wait", &id]).await;
    let files = bay.rig.girder.get(&format!("item/{}/files", bay.item)).await;
    assert_eq!(bay.rig.girder.download(files[0]["_id"].as_str().unwrap()).await, b"one\n");
    assert!(!output.exists(), "delete_file");
}
