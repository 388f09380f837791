//! What slicer_cli_web's tasks have beyond those of girder_worker.

use std::sync::Arc;

use serde_json::json;

use super::site::{ERROR, SUCCESS, Site, has_lines, nothing};
use crate::support::girder::log;

pub(super) async fn mounts_a_file_where_it_lies(site: Arc<Site>) {
    let folder = site.host_folder("direct", &[("slide.txt", "a slide")]);
    let (file, _) = site.file("slide.txt", b"a slide").await;
    let path = folder.join("slide.txt");
    let said = site.said("slicer_direct", json!({"file": file, "path": path})).await;
    has_lines(&said, &["a slide read-only", "a slide"]);
    let paths =
        said.lines().find(|line| line.starts_with("/mnt/girder_direct_worker/slide.txt /mnt/girder_worker/"));
    assert!(paths.is_some_and(|paths| paths.ends_with("/fetched.txt")), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a slide");
}

pub(super) async fn joins_files_with_commas(site: Arc<Site>) {
    let (first, _) = site.file("first.txt", b"first and ").await;
    let (second, _) = site.file("second.txt", b"second").await;
    let said = site.said("slicer_joined", json!({"first": first, "second": second})).await;
    has_lines(&said, &["first and second", "2"]);
}

pub(super) async fn calls_girder_itself(site: Arc<Site>) {
    let sent = site.send("slicer_token", nothing()).await;
    let job = site.ended(&sent, ERROR).await;
    let said = log(&job);
    has_lines(&said, &[&format!("{}/", site.girder.api_url()), "has a token", "[redacted]"]);
    has_lines(&said, &["x[redacted]x"]);
    let record = site.longshore.ok(&["task", "show", &sent.task, "--output", "json"]).await;
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["details"]["argv"].as_array().unwrap().last(), Some(&json!("[redacted]")), "{record}");
}

pub(super) async fn tells_its_progress_in_its_output(site: Arc<Site>) {
    let sent = site.send("slicer_progress", nothing()).await;
    let job = site.ended(&sent, SUCCESS).await;
    assert_eq!(job["progress"], json!({"message": "Smooth <it>", "total": 1.0, "current": 1.0}));
    let said = log(&job);
    has_lines(&said, &["before", "at 0.25", "at 0.5", "at 1", "after"]);
    // Its arguments are told as they are, and hold the elements, too.
    let behind = &said[said.rfind("before").unwrap()..];
    assert!(!behind.contains("<filter-"), "{said}");
}

pub(super) async fn lacks_its_image(site: Arc<Site>) {
    let sent = site.send("slicer_missing_image", nothing()).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("127.0.0.1:9/no-such:1"), "{said}");
}
