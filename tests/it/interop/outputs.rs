//! How data leaves tasks: uploads, pipes, streams, volumes, progress and artifacts.

use std::sync::Arc;

use serde_json::json;

use super::site::{ERROR, PATIENCE, SUCCESS, Site, has_lines, nothing};
use crate::support::girder::log;
use crate::support::poll::eventually;

pub(super) async fn goes_to_an_item(site: Arc<Site>) {
    let item = site.item().await;
    site.said("to_item", json!({"item": item})).await;
    assert_eq!(site.files_of(&item).await, [("result.txt".to_owned(), b"for the item".to_vec())]);
}

pub(super) async fn goes_to_a_folder(site: Arc<Site>) {
    let folder = site.folder_in(None, "results").await;
    site.said("to_folder", json!({"folder": folder})).await;
    assert_eq!(
        site.files_in(&folder).await,
        [("Ergebnis ü.txt".to_owned(), "grün 世界".as_bytes().to_vec())]
    );
}

pub(super) async fn goes_to_a_folder_as_a_tree(site: Arc<Site>) {
    let folder = site.folder_in(None, "trees").await;
    site.said("tree_to_folder", json!({"folder": folder})).await;
    let mut found = Vec::new();
    let mut left = vec![folder];
    while let Some(folder) = left.pop() {
        found.extend(site.files_in(&folder).await);
        let below = site.girder.get(&format!("folder?parentType=folder&parentId={folder}")).await;
        left.extend(
            below.as_array().unwrap().iter().map(|folder| folder["_id"].as_str().unwrap().to_owned()),
        );
    }
    found.sort();
    assert_eq!(found, [("one.txt".to_owned(), b"one".to_vec()), ("two.txt".to_owned(), b"two".to_vec())]);
}

pub(super) async fn goes_to_an_item_in_bulk(site: Arc<Site>) {
    let (item, size) = (site.item().await, 12_000_000);
    site.said("large_to_item", json!({"item": item, "size": size})).await;
    let files = site.files_of(&item).await;
    assert_eq!((files.len(), files[0].1.len()), (1, size));
}

pub(super) async fn goes_out_of_a_temporary_volume(site: Arc<Site>) {
    let item = site.item().await;
    site.said("temporary_to_item", json!({"item": item})).await;
    assert_eq!(site.files_of(&item).await, [("own.txt".to_owned(), b"own".to_vec())]);
}

pub(super) async fn lacks_an_output(site: Arc<Site>) {
    let sent = site.send("nothing_to_item", json!({"item": site.item().await})).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("made nothing") && said.contains("missing.txt"), "{said}");
}

pub(super) async fn uploads_nothing_of_a_failure(site: Arc<Site>) {
    let item = site.item().await;
    let sent = site.send("failing_to_item", json!({"item": item})).await;
    site.ended(&sent, ERROR).await;
    assert_eq!(site.files_of(&item).await, []);
}

pub(super) async fn pipes_to_the_workers_output(site: Arc<Site>) {
    site.said("pipe_out_to_host", json!({"text": "through-a-pipe"})).await;
    eventually(PATIENCE, "the worker prints it", async || {
        site.worker.out().contains("through-a-pipe\n").then_some(())
    })
    .await;
}

pub(super) async fn pipes_to_the_workers_error_output(site: Arc<Site>) {
    site.said("pipe_out_to_host_stderr", json!({"text": "through-another"})).await;
    eventually(PATIENCE, "the worker prints it", async || {
        site.worker.log().contains("through-another\n").then_some(())
    })
    .await;
}

pub(super) async fn prints_to_the_workers_output(site: Arc<Site>) {
    let said = site.said("stdout_to_host", json!({"text": "said-aloud"})).await;
    eventually(PATIENCE, "the worker prints it", async || {
        site.worker.out().contains("said-aloud\n").then_some(())
    })
    .await;
    assert!(!said.lines().any(|line| line == "said-aloud"), "{said}");
}

pub(super) async fn streams_in_chunks(site: Arc<Site>) {
    let url = format!("{}/site/sink/chunks", site.girder.api_url());
    site.said("chunked", json!({"url": url, "size": 1_500_000})).await;
    let kept = site.girder.call("GET", "site/sink/chunks", site.girder.token(), b"").await;
    assert_eq!(kept.len(), 1_500_000);
    assert!(kept.iter().all(|byte| *byte == b'z'));
}

pub(super) async fn mounts_as_docker_py_does(site: Arc<Site>) {
    let host = site.host_folder("docker", &[("in.txt", "there\n")]);
    has_lines(&site.said("docker_py_volumes", json!({"host": host})).await, &["there"]);
    assert_eq!(std::fs::read(host.join("out.txt")).unwrap(), b"back");
}

pub(super) async fn mounts_read_only(site: Arc<Site>) {
    let host = site.host_folder("read-only", &[("in.txt", "there\n")]);
    let said = site.said("read_only_bind", json!({"host": host})).await;
    has_lines(&said, &["there"]);
    has_lines(&said, &["refused"]);
    assert!(!host.join("x").exists());
}

pub(super) async fn names_the_default_volume(site: Arc<Site>) {
    let said = site.said("default_volume", nothing()).await;
    let path = said.lines().find(|line| line.starts_with("/mnt/girder_worker/"));
    assert!(path.is_some_and(|path| path.len() == "/mnt/girder_worker/".len() + 32), "{said}");
}

pub(super) async fn tells_its_progress(site: Arc<Site>) {
    let sent = site.send("progress", nothing()).await;
    let job = site.ended(&sent, SUCCESS).await;
    assert_eq!(job["progress"], json!({"message": "Step 3 of 3", "total": 3.0, "current": 3.0}));
}

pub(super) async fn leaves_artifacts(site: Arc<Site>) {
    let sent = site.send("artifact", nothing()).await;
    site.ended(&sent, SUCCESS).await;
    assert_eq!(site.artifacts(&sent).await, [("one.log".to_owned(), 3), ("two.log".to_owned(), 3)]);
}

pub(super) async fn leaves_artifacts_of_a_failure(site: Arc<Site>) {
    let sent = site.send("artifact_of_failure", json!({"anyway": true})).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("Non-zero exit code from docker container (3)"), "{said}");
    assert_eq!(site.artifacts(&sent).await, [("trace.log".to_owned(), 5)]);
}

pub(super) async fn leaves_no_artifacts_of_a_failure_unasked(site: Arc<Site>) {
    let sent = site.send("artifact_of_failure", json!({"anyway": false})).await;
    site.ended(&sent, ERROR).await;
    assert_eq!(site.artifacts(&sent).await, []);
}

pub(super) async fn may_lack_an_artifact(site: Arc<Site>) {
    let sent = site.send("missing_artifact", nothing()).await;
    site.ended(&sent, SUCCESS).await;
    assert_eq!(site.artifacts(&sent).await, []);
}
