//! The cache of fetched files, and files that are not fetched at all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use longshore::girder::settings::{Cache, CacheMode};
use longshore::girder::{Settings, Site};
use longshore::pipeline::{MountKind, MountMode};
use longshore::units::Size;
use serde_json::json;

use super::staged::{document, file, noise, one_file, quick, stage_with};
use crate::support::faulty::{Faulty, Reply};

const DOWNLOAD: &str = "/api/v1/file/f1/download";

fn site(folder: &Path, mode: CacheMode, max_size: u64) -> Arc<Site> {
    let cache = Cache { mode, folder: folder.to_owned(), max_size: Size(max_size) };
    Arc::new(Site::plain(Settings { cache, ..quick() }))
}

#[tokio::test]
async fn a_hundred_tasks_of_two_workers_fetch_one_file_once() {
    let server =
        one_file(noise(100_000), |_, content| Reply::Late(content.to_vec(), Duration::from_millis(300)))
            .await;
    let folder = tempfile::tempdir().unwrap();
    // Two sites know each other through the folder only, as two processes do.
    let sites = [(); 2].map(|()| site(folder.path(), CacheMode::ReadWrite, 1 << 30));
    let inputs = [file(&server, "f1")];
    let staged = join_all((0..100).map(|n| stage_with(&inputs, &sites[n % 2], |_| {}))).await;
    for staged in staged {
        assert_eq!(std::fs::read(staged.unwrap().host(0)).unwrap(), noise(100_000));
    }
    assert_eq!(server.count(DOWNLOAD), 1);
    assert_eq!(server.count("/api/v1/file/f1"), 100, "each proved that it may read the file");
}

#[tokio::test]
async fn what_a_container_does_with_its_copy_does_not_reach_the_cache() {
    let server = one_file(noise(1000), |_, content| Reply::bytes(content)).await;
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), CacheMode::ReadWrite, 1 << 30);
    for _ in 0..2 {
        let staged = stage_with(&[file(&server, "f1")], &site, |_| {}).await.unwrap();
        assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(1000));
        std::fs::write(staged.host(0), "spoilt").unwrap();
    }
    assert_eq!(server.count(DOWNLOAD), 1);
}

#[tokio::test]
async fn a_changed_file_is_fetched_again() {
    let life = Arc::new(AtomicU64::new(0));
    let now = life.clone();
    let server = Faulty::start(move |asked| {
        let life = now.load(Ordering::SeqCst);
        match asked.path.as_str() {
            "/api/v1/file/f1" => {
                let mut document = document("f1", "a", 5);
                document["created"] = format!("life {life}").into();
                Reply::json(&document)
            }
            _ => Reply::bytes(format!("life{life}").as_bytes()),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), CacheMode::ReadWrite, 1 << 30);
    for wanted in ["life0", "life1"] {
        let staged = stage_with(&[file(&server, "f1")], &site, |_| {}).await.unwrap();
        assert_eq!(std::fs::read_to_string(staged.host(0)).unwrap(), wanted);
        life.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn whoever_may_not_read_a_file_does_not_get_it_from_the_cache() {
    let server = Faulty::start(|asked| match asked.path.as_str() {
        "/api/v1/file/f1" if asked.headers.get("girder-token").is_some_and(|token| token == "good") => {
            Reply::json(&document("f1", "a", 5))
        }
        "/api/v1/file/f1" => Reply::error(403, "Read access denied"),
        _ => Reply::bytes(b"hello"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), CacheMode::ReadWrite, 1 << 30);
    let with = |token: &str| {
        let mut spec = file(&server, "f1");
        spec["girder"]["token"] = token.into();
        spec
    };
    stage_with(&[with("good")], &site, |_| {}).await.unwrap();
    let error = stage_with(&[with("bad")], &site, |_| {}).await.unwrap_err();
    assert_eq!(error.code, "girder_forbidden");
}

#[tokio::test]
async fn the_least_recently_used_go_first_and_what_is_too_big_is_not_kept() {
    let server = Faulty::start(|asked| {
        let id = asked.path.trim_start_matches("/api/v1/file/");
        let size = |id: &str| if id == "big" { 5000 } else { 1000 };
        match id.strip_suffix("/download") {
            Some(id) => {
                let mut content = noise(size(id));
                content[0] = id.as_bytes()[0];
                Reply::bytes(&content)
            }
            None => Reply::json(&document(id, "x", size(id))),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), CacheMode::ReadWrite, 2500);
    let fetch = async |id: &str| {
        stage_with(&[file(&server, id)], &site, |_| {}).await.unwrap();
        server.count(&format!("/api/v1/file/{id}/download"))
    };
    assert_eq!((fetch("a").await, fetch("b").await), (1, 1));
    assert_eq!(fetch("a").await, 1, "it is there");
    assert_eq!(fetch("c").await, 1, "b has to go for it");
    assert_eq!((fetch("a").await, fetch("b").await), (1, 2));
    assert_eq!((fetch("big").await, fetch("big").await), (1, 2));
    let kept: u64 = std::fs::read_dir(folder.path().join("contents"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept <= 2500, "{kept}");
}

#[tokio::test]
async fn a_cache_that_may_only_be_read_is_not_filled_and_a_broken_one_is_done_without() {
    let server = one_file(noise(100), |_, content| Reply::bytes(content)).await;
    let folder = tempfile::tempdir().unwrap();
    let reading = site(folder.path(), CacheMode::ReadOnly, 1 << 30);
    stage_with(&[file(&server, "f1")], &reading, |_| {}).await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let writing = site(folder.path(), CacheMode::ReadWrite, 1 << 30);
    stage_with(&[file(&server, "f1")], &writing, |_| {}).await.unwrap();
    stage_with(&[file(&server, "f1")], &reading, |_| {}).await.unwrap();
    assert_eq!(server.count(DOWNLOAD), 2);

    let nowhere = folder.path().join("file");
    std::fs::write(&nowhere, "").unwrap();
    let broken = site(&nowhere, CacheMode::ReadWrite, 1 << 30);
    let staged = stage_with(&[file(&server, "f1")], &broken, |_| {}).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(100));
}

#[tokio::test]
async fn a_content_that_lost_bytes_on_disk_is_fetched_again() {
    let server = one_file(noise(1000), |_, content| Reply::bytes(content)).await;
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), CacheMode::ReadWrite, 1 << 30);
    stage_with(&[file(&server, "f1")], &site, |_| {}).await.unwrap();
    let content = std::fs::read_dir(folder.path().join("contents")).unwrap().next().unwrap().unwrap().path();
    std::fs::OpenOptions::new().write(true).open(content).unwrap().set_len(500).unwrap();
    let staged = stage_with(&[file(&server, "f1")], &site, |_| {}).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(1000));
}

#[tokio::test]
async fn a_file_within_reach_is_mounted_where_it_lies_and_any_other_is_fetched() {
    let server = one_file(noise(50), |_, content| Reply::bytes(content)).await;
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lies = folder.path().join("image.svs");
    std::fs::write(&lies, noise(50)).unwrap();
    let mut spec = file(&server, "f1");
    spec["$"] = "DirectGirderFileIdToVolume".into();
    spec["direct_file_path"] = json!(lies);
    let reach =
        |folder: &Path| Arc::new(Site::plain(Settings { direct_paths: vec![folder.to_owned()], ..quick() }));
    let staged = stage_with(&[spec.clone()], &reach(folder.path()), |_| {}).await.unwrap();
    assert_eq!(staged.plan.arguments, ["/mnt/girder_direct_worker/image.svs"]);
    let mount = staged.plan.mounts.iter().find(|mount| mount.kind == MountKind::DirectFile).unwrap();
    assert_eq!((&mount.source, &mount.mode), (&lies.canonicalize().unwrap(), &MountMode::ReadOnly));
    assert_eq!(server.count(DOWNLOAD), 0);

    let staged = stage_with(&[spec], &reach(elsewhere.path()), |_| {}).await.unwrap();
    assert_eq!(staged.below(0), "/image.svs");
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(50));
}
