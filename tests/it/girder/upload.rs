//! What result hooks bring to Girder, and what they refuse to.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::rig::{PATIENCE, Rig, log, script};
use crate::support::poll::eventually;
use crate::support::proxy::{Passage, Proxy};

fn hook(class: &str, path: &str, more: Value) -> Value {
    let mut hook = json!({"$": class, "volumepath": {"$": "VolumePath", "filename": path}});
    let Value::Object(more) = more else { panic!("{more} is no map") };
    hook.as_object_mut().unwrap().extend(more);
    hook
}

/// Runs `text` (with the default volume as `$0`) and then `hooks`; the record and the job at the end.
async fn run(rig: &Rig, text: &str, hooks: Value) -> (Value, Value) {
    let job = rig.girder.job("upload").await;
    let mut task = script(&rig.girder, &job, &format!("cd $0; {text}"));
    task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
    task["result_hooks"] = hooks;
    let record = rig.finished(&rig.submit(&task).await).await;
    let status = if record["status"] == "succeeded" { 3 } else { 4 };
    (record, rig.job_in(&job, status).await)
}

async fn item(rig: &Rig) -> (String, String) {
    let folder = rig.girder.folder("outputs").await;
    let item = rig.girder.post(&format!("item?folderId={folder}&name=result"), b"").await;
    (folder, item["_id"].as_str().unwrap().to_owned())
}

/// Names, sizes and ids of the files of an item.
async fn files(rig: &Rig, item: &str) -> Vec<(String, u64, String)> {
    let files = rig.girder.get(&format!("item/{item}/files")).await;
    let mut files: Vec<_> = files
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let text = |field: &str| file[field].as_str().unwrap().to_owned();
            (text("name"), file["size"].as_u64().unwrap(), text("_id"))
        })
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_file_goes_to_its_item_is_replaced_when_it_changed_and_left_when_it_did_not() {
    let rig = Rig::new().await;
    let (_, item) = item(&rig).await;
    let hooks = || {
        json!([hook(
            "GirderUploadVolumePathToItem",
            "out.txt",
            json!({"item_id": item, "upload_kwargs": {"reference": "r"}})
        )])
    };
    let (record, seen) = run(&rig, "echo one > out.txt", hooks()).await;
    assert_eq!(
        (&record["status"], &record["details"]["result"]),
        (&json!("succeeded"), &json!([item])),
        "{record}"
    );
    assert!(log(&seen).contains("uploaded out.txt (4 B)"), "{}", log(&seen));
    let first = files(&rig, &item).await;
    assert_eq!((first.len(), first[0].0.as_str()), (1, "out.txt"));
    assert_eq!(rig.girder.get(&format!("file/{}", first[0].2)).await["mimeType"], "text/plain");

    let (record, seen) = run(&rig, "echo one > out.txt", hooks()).await;
    assert_eq!(record["details"]["uploads"][0]["upload"], "unchanged", "{record}");
    assert!(log(&seen).contains("is unchanged"), "{}", log(&seen));
    assert_eq!(files(&rig, &item).await, first);

    // Of the same length, which is all that girder_client looks at.
    let (record, _) = run(&rig, "echo two > out.txt", hooks()).await;
    assert_eq!(record["details"]["uploads"][0]["upload"], "replaced", "{record}");
    let last = files(&rig, &item).await;
    assert_eq!(last, first, "the same file with another content");
    assert_eq!(rig.girder.download(&last[0].2).await, b"two\n");
}

#[tokio::test]
async fn a_flat_folder_goes_to_an_item_and_a_deep_one_to_a_folder() {
    let rig = Rig::new().await;
    let (folder, item) = item(&rig).await;
    let text = "mkdir -p out/deep/er; for n in a deep/b deep/er/c empty; do printf %s $n > out/$n; done; : > out/empty; ln -s /etc/passwd out/link";
    let hooks = json!([
        hook("GirderUploadVolumePathToItem", "out", json!({"item_id": item})),
        hook("GirderUploadVolumePathToFolder", "out", json!({"folder_id": folder})),
    ]);
    let (record, seen) = run(&rig, text, hooks).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    assert!(log(&seen).contains("out/link is not uploaded"), "{}", log(&seen));
    let flat: Vec<(String, u64)> =
        files(&rig, &item).await.into_iter().map(|(name, size, _)| (name, size)).collect();
    assert_eq!(flat, [("a".to_owned(), 1), ("empty".to_owned(), 0)]);

    let mut here = folder;
    for (names, next) in
        [(vec!["a", "empty", "result"], Some("deep")), (vec!["b"], Some("er")), (vec!["c"], None)]
    {
        let items = rig.girder.get(&format!("item?folderId={here}")).await;
        let found: Vec<&str> =
            items.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
        assert_eq!(found, names);
        let Some(next) = next else { break };
        let folders = rig.girder.get(&format!("folder?parentType=folder&parentId={here}")).await;
        assert_eq!(folders[0]["name"], next);
        here = folders[0]["_id"].as_str().unwrap().to_owned();
    }
}

#[tokio::test]
async fn a_missing_result_fails_the_task_and_one_that_need_not_exist_does_not() {
    let rig = Rig::new().await;
    let (folder, item) = item(&rig).await;
    let (record, seen) =
        run(&rig, "true", json!([hook("GirderUploadVolumePathToItem", "none", json!({"item_id": item}))]))
            .await;
    assert_eq!(record["outcome"]["error"]["code"], "output_missing", "{record}");
    assert!(log(&seen).contains("OutputMissing: GirderUploadVolumePathToItem of none: "), "{}", log(&seen));
    let hooks = json!([
        hook("GirderUploadVolumePathToFolder", "none", json!({"folder_id": folder, "must_exist": false})),
        hook("GirderUploadVolumePathJobArtifact", "none", json!({})),
    ]);
    let (record, _) = run(&rig, "true", hooks).await;
    assert_eq!(record["status"], "succeeded", "{record}");
}

#[tokio::test]
async fn a_link_is_never_uploaded_and_fails_the_task() {
    let rig = Rig::new().await;
    let (_, item) = item(&rig).await;
    for (text, path) in
        [("ln -s /etc/passwd out", "out"), ("ln -s /etc dir", "dir/passwd"), ("mkfifo out", "out")]
    {
        let hooks = json!([hook("GirderUploadVolumePathToItem", path, json!({"item_id": item}))]);
        let (record, _) = run(&rig, text, hooks).await;
        assert_eq!(record["outcome"]["error"]["code"], "upload_refused", "{text}: {record}");
    }
    assert!(files(&rig, &item).await.is_empty());
}

#[tokio::test]
async fn artifacts_are_attached_also_when_the_container_failed() {
    let rig = Rig::new().await;
    let job = rig.girder.job("artifacts").await;
    let mut task = script(&rig.girder, &job, "cd $0; echo why > trace.log; echo no > other.log; exit 3");
    task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
    task["result_hooks"] = json!([
        hook(
            "GirderUploadVolumePathJobArtifact",
            "trace.log",
            json!({"upload_on_exception": true, "name": "named.log"})
        ),
        hook("GirderUploadVolumePathJobArtifact", "other.log", json!({})),
    ]);
    // What reports on the job may write to it; a token of files may not.
    task["girder"]["token"] = json!(rig.girder.token());
    let record = rig.finished(&rig.submit(&task).await).await;
    assert_eq!(record["outcome"]["error"]["exit_code"], 3, "{record}");
    rig.job_in(&job, 4).await;
    let kept = rig.girder.get(&format!("job/{}/artifact", job.id)).await;
    let names: Vec<&Value> = kept.as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["named.log"], "{kept}");
}

#[tokio::test]
async fn an_artifact_that_cannot_be_attached_is_told_and_changes_nothing() {
    let rig = Rig::new().await;
    let hooks = json!([hook(
        "GirderUploadVolumePathJobArtifact",
        "a.log",
        json!({"job_id": "0123456789abcdef01234567"})
    )]);
    let (record, seen) = run(&rig, "echo a > a.log", hooks).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let told = record["details"]["warnings"].to_string();
    assert!(told.contains("GirderUploadVolumePathJobArtifact of a.log"), "{record}");
    assert!(log(&seen).contains("warning: GirderUploadVolumePathJobArtifact of a.log"), "{}", log(&seen));
    assert!(record["details"]["result"][0]["error"].is_string(), "{record}");
}

#[tokio::test]
async fn a_large_file_goes_in_chunks_and_what_a_hook_should_delete_goes() {
    let rig = Rig::with("[girder]\nupload_chunk = \"5MiB\"\n").await;
    let (_, item) = item(&rig).await;
    let place = rig.longshore.folder().join("shared");
    std::fs::create_dir(&place).unwrap();
    let volume = json!({"$": "BindMountVolume", "host_path": place, "container_path": "/shared"});
    let job = rig.girder.job("large").await;
    let mut task = script(
        &rig.girder,
        &job,
        "dd if=/dev/urandom of=/shared/big bs=1000000 count=12 2>&1; sha256sum < /shared/big",
    );
    task["args"]["volumes"] = json!([volume]);
    task["result_hooks"] = json!([{
        "$": "GirderUploadVolumePathToItem", "item_id": item, "delete_file": true,
        "volumepath": {"$": "VolumePath", "filename": "big", "volume": volume},
    }]);
    let record = rig.finished(&rig.submit(&task).await).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let kept = files(&rig, &item).await;
    assert_eq!((kept.len(), kept[0].1), (1, 12_000_000));
    assert_eq!(rig.girder.download(&kept[0].2).await.len(), 12_000_000);
    assert!(!place.join("big").exists(), "delete_file");
}

#[tokio::test]
async fn an_upload_in_whose_middle_the_worker_is_killed_is_finished_by_the_next_one() {
    const SIZE: u64 = 60_000_000;
    let settings =
        "[worker]\nlease = \"3s\"\nrelease_damping = \"500ms\"\n[girder]\nupload_chunk = \"5MiB\"\n";
    let mut rig = Rig::with(settings).await;
    let (_, item) = item(&rig).await;
    let job = rig.girder.job("killed").await;
    let text = "cd $0; echo ran; dd if=/dev/urandom of=big bs=1000000 count=60 2>&1; sha512sum big";
    let mut task = script(&rig.girder, &job, text);
    task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
    task["result_hooks"] = json!([hook("GirderUploadVolumePathToItem", "big", json!({"item_id": item}))]);
    let address = rig.girder.api_url().trim_start_matches("http://").split('/').next().unwrap();
    // Only what is uploaded goes through it.
    let way = Proxy::before(address).await;
    task["girder"]["api_url"] = json!(format!("http://{}/api/v1", way.address()));
    let id = rig.submit(&task).await;
    eventually(PATIENCE, "some chunks are acknowledged", async || {
        (sent(&rig.longshore.state().join("work")).matches("acknowledged").count() >= 3).then_some(())
    })
    .await;
    way.let_pass(Passage::Held);
    rig.worker.kill();
    assert_eq!(files(&rig, &item).await, [], "it is in the middle");
    way.let_pass(Passage::Open);
    rig.worker = rig.longshore.worker(&["--concurrency", "2"]).await;
    let record = rig.finished(&id).await;
    assert_eq!((&record["status"], &record["attempts"]), (&json!("succeeded"), &json!(1)), "{record}");
    let kept = files(&rig, &item).await;
    assert_eq!(
        kept.iter().map(|(name, size, _)| (name.as_str(), *size)).collect::<Vec<_>>(),
        [("big", SIZE)]
    );
    let told = log(&rig.job_in(&job, 3).await);
    assert_eq!(told.matches("ran\n").count(), 1, "{told}");
    let sum = told.split_whitespace().find(|word| word.len() == 128).unwrap_or_else(|| panic!("{told}"));
    let content = rig.girder.download(&kept[0].2).await;
    let found =
        Sha512::digest(&content).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(found, sum);
    let unfinished = rig.girder.get("system/uploads").await;
    let parents: Vec<&Value> = unfinished.as_array().unwrap().iter().map(|one| &one["parentId"]).collect();
    assert!(!parents.contains(&&json!(item)), "{unfinished}");
}

/// What the attempts below `folder` have written down of their uploads.
fn sent(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let told = entries.map(|entry| match entry.path() {
        path if path.is_dir() => sent(&path),
        path if path.ends_with("sent.jsonl") => std::fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    });
    told.collect()
}

#[tokio::test]
async fn a_token_that_girder_does_not_know_is_told_before_the_container_runs_and_fails_nobody() {
    let rig = Rig::new().await;
    let job = rig.girder.job("token").await;
    let mut task = script(&rig.girder, &job, "cd $0; echo ran; echo a > a");
    task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
    task["girder"]["token"] = json!("not-a-token-of-anybody");
    let artifact = || hook("GirderUploadVolumePathJobArtifact", "a", json!({}));
    task["result_hooks"] = json!([artifact(), artifact()]);
    let record = rig.finished(&rig.submit(&task).await).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let told = log(&rig.job_in(&job, 3).await);
    let warned = told.find("Girder does not know the token for the uploads").expect(&told);
    assert!(warned < told.find("ran\n").unwrap() && !told.contains("not-a-token"), "{told}");
    assert_eq!(told.matches("does not know the token").count(), 1, "once for both hooks: {told}");
    assert!(rig.worker.log().contains("its token will not do for its uploads"), "{}", rig.worker.log());
}

#[tokio::test]
async fn a_token_that_expires_before_the_work_can_end_is_told_at_its_start() {
    let rig = Rig::new().await;
    let (_, item) = item(&rig).await;
    let key = rig.girder.post("api_key?name=short", b"").await;
    let days = 0.02; // 29 minutes
    let path = format!("api_key/token?key={}&duration={days}", key["key"].as_str().unwrap());
    let token = rig.girder.post(&path, b"").await;
    for (timeout, warns) in [("1h", true), ("1m", false)] {
        let job = rig.girder.job("short").await;
        let mut task = script(&rig.girder, &job, "cd $0; echo ran; echo a > a");
        task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "TemporaryVolume"}));
        task["girder"]["token"] = token["authToken"]["token"].clone();
        task["result_hooks"] = json!([hook("GirderUploadVolumePathToItem", "a", json!({"item_id": item}))]);
        task["timeout"] = json!(timeout);
        let record = rig.finished(&rig.submit(&task).await).await;
        assert_eq!(record["status"], "succeeded", "{record}");
        let told = record["details"]["warnings"].to_string();
        assert_eq!(told.contains("the token for the uploads expires at "), warns, "{timeout}: {told}");
    }
}
