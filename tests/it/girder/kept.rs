//! Outputs that a scripted Girder does not take: what is kept of them, what is sent again and what is not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use longshore::error::TaskError;
use longshore::girder::Site;
use longshore::handler::{Attempt, outstanding};
use longshore::pipeline::{Exit, Pipeline, Request, Settings, spool};
use longshore::task::{ArgMap, Secret, Task};
use serde_json::{Value, json};

use super::shore::{Fault, Shore};
use super::staged::{TOKEN, quick};
use crate::support::faulty::Reply;

/// An attempt whose container has ended.
struct Ended {
    attempt: Attempt,
    pipeline: Pipeline,
    volume: PathBuf,
    settings: Settings,
    _folders: [tempfile::TempDir; 2],
}

impl Ended {
    /// With these result hooks.
    async fn with(hooks: Value) -> Ended {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let task = Task {
            result_hooks: serde_json::from_value(hooks).unwrap(),
            ..Task::new("docker_run", ArgMap::new())
        };
        let request = Request { result_hooks: task.result_hooks.clone(), ..Request::default() };
        let attempt = Attempt::detached(task);
        let site = Arc::new(Site::plain(longshore::girder::Settings {
            upload_chunk: longshore::units::Size(4),
            ..quick()
        }));
        let spool = Some(folders[1].path().join("spool"));
        let settings = Settings { girder: site, spool, ..Settings::new(folders[0].path()) };
        let (pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await.unwrap();
        let volume = plan.mounts[0].source.clone();
        Ended { attempt, pipeline, volume, settings, _folders: folders }
    }

    fn write(&self, path: &Path, content: &str) {
        let path = self.volume.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    async fn finish(&mut self) -> Result<Value, TaskError> {
        self.pipeline.container_ended().await.unwrap();
        self.pipeline.finish(&Exit { code: 0, oom_killed: false }).await
    }

    fn kept(&self) -> PathBuf {
        let base = self.settings.spool.as_ref().unwrap();
        spool::place(base, self.attempt.instance(), (&self.attempt.task().id, self.attempt.fence()))
    }

    async fn bring(&self, token: Option<&str>) -> Result<Value, TaskError> {
        spool::bring(&self.kept(), &self.attempt, &self.settings, token.map(Secret::new)).await
    }
}

fn hook(shore: &Shore, class: &str, more: Value) -> Value {
    let mut hook =
        json!({"$": class, "volumepath": {"$": "VolumePath", "filename": "out"}, "girder": shore.access()});
    let Value::Object(more) = more else { panic!("{more} is no map") };
    hook.as_object_mut().unwrap().extend(more);
    hook
}

/// The names and contents in Girder, sorted.
fn there(shore: &Shore) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mut there: Vec<_> = shore.files().into_iter().map(|file| (file.name, text(file.content))).collect();
    there.sort();
    there
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

/// One that goes away with the third chunk of all, until the flag is taken down.
async fn failing(is_away: &Arc<AtomicBool>) -> Shore {
    let (is_away, gone) = (is_away.clone(), AtomicBool::new(false));
    Shore::start(move |asked| {
        if !is_away.load(Ordering::SeqCst) {
            return None;
        }
        if asked.path == "/api/v1/file/chunk" && asked.earlier >= 2 {
            gone.store(true, Ordering::SeqCst);
        }
        gone.load(Ordering::SeqCst).then(|| Fault::Instead(Reply::error(503, "closed")))
    })
    .await
}

#[tokio::test]
async fn what_was_sent_before_girder_went_away_is_not_sent_again() {
    let is_away = Arc::new(AtomicBool::new(true));
    let shore = failing(&is_away).await;
    let mut ended =
        Ended::with(json!([hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"}))]))
            .await;
    // A chunk each.
    for (path, content) in [("out/a", "a 23"), ("out/b", "b 23"), ("out/deep/c", "c 23")] {
        ended.write(Path::new(path), content);
    }
    let error = ended.finish().await.unwrap_err();
    assert_eq!(outstanding(&error).unwrap().code, "girder_unavailable", "{error}");
    assert!(!ended.volume.join("out/deep/c").exists(), "it was moved");
    assert_eq!(there(&shore), [pair("a", "a 23"), pair("b", "b 23")]);
    assert!(outstanding(&ended.bring(None).await.unwrap_err()).is_some());
    is_away.store(false, Ordering::SeqCst);
    for _ in 0..2 {
        // Also when the record of its success was never stored.
        assert_eq!(ended.bring(None).await.unwrap(), json!(["d1"]));
        assert_eq!(there(&shore), [pair("a", "a 23"), pair("b", "b 23"), pair("c", "c 23")]);
    }
    assert_eq!(shore.unfinished(), 0);
    assert_eq!(ended.attempt.report().snapshot().1.uploads.len(), 3);
}

#[tokio::test]
async fn an_upload_under_way_is_gone_on_with_where_girder_acknowledged_it() {
    let is_away = Arc::new(AtomicBool::new(true));
    let shore = failing(&is_away).await;
    let mut ended =
        Ended::with(json!([hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"}))]))
            .await;
    ended.write(Path::new("out"), "0123456789abcde");
    ended.finish().await.unwrap_err();
    is_away.store(false, Ordering::SeqCst);
    let before = shore.offsets();
    ended.bring(None).await.unwrap();
    assert_eq!(there(&shore), [pair("out", "0123456789abcde")]);
    assert_eq!(shore.offsets()[before.len()..], [8, 12], "{before:?}");
}

#[tokio::test]
async fn odd_names_and_several_hooks_over_the_same_outputs_are_kept_whole() {
    let is_away = Arc::new(AtomicBool::new(true));
    let flag = is_away.clone();
    let shore = Shore::start(move |asked| {
        let fails = flag.load(Ordering::SeqCst) && asked.method != "GET";
        fails.then(|| Fault::Instead(Reply::error(401, "no")))
    })
    .await;
    let mut ended = Ended::with(json!([
        hook(&shore, "GirderUploadVolumePathToItem", json!({"item_id": "i9"})),
        hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"})),
    ]))
    .await;
    let odd = Path::new(OsStr::from_bytes(b"out/\xff"));
    ended.write(odd, "odd");
    ended.write(Path::new("out/linked"), "link");
    std::fs::hard_link(ended.volume.join("out/linked"), ended.volume.join("out/too")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", ended.volume.join("out/passwd")).unwrap();
    let error = ended.finish().await.unwrap_err();
    assert_eq!(outstanding(&error).unwrap().code, "girder_unauthorized", "{error}");
    is_away.store(false, Ordering::SeqCst);
    assert_eq!(ended.bring(None).await.unwrap(), json!(["i9", "d1"]));
    let all = [pair("\\xff", "odd"), pair("linked", "link"), pair("too", "link")];
    let mut twice: Vec<_> = all.iter().chain(&all).cloned().collect();
    twice.sort();
    assert_eq!(there(&shore), twice);
}

#[tokio::test]
async fn a_new_token_goes_to_the_girder_that_waits_and_to_no_other() {
    let shore = Shore::start(move |asked| {
        let is_fresh = asked.headers.get("girder-token").is_some_and(|token| token == "fresh");
        (asked.path == "/api/v1/file" && !is_fresh).then(|| Fault::Instead(Reply::error(401, "over")))
    })
    .await;
    let other = Shore::calm().await;
    let mut ended = Ended::with(json!([
        hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"})),
        hook(&other, "GirderUploadVolumePathToFolder", json!({"folder_id": "d2"})),
    ]))
    .await;
    ended.write(Path::new("out"), "it");
    ended.finish().await.unwrap_err();
    assert!(outstanding(&ended.bring(Some("wrong")).await.unwrap_err()).is_some());
    assert!(other.server.asked().iter().all(|asked| asked.path == "/api/v1/token/current"));
    // The token is kept: the next try needs none.
    ended.bring(Some("fresh")).await.unwrap();
    assert_eq!((there(&shore), there(&other)), (vec![pair("out", "it")], vec![pair("out", "it")]));
    assert!(other.server.asked().iter().all(|asked| asked.headers["girder-token"] == TOKEN));
    ended.bring(None).await.unwrap();
}

#[tokio::test]
async fn an_output_that_must_not_be_read_fails_its_task_and_is_not_kept() {
    let shore =
        Shore::start(|asked| (asked.method == "POST").then(|| Fault::Instead(Reply::error(503, "closed"))))
            .await;
    let more = json!({"folder_id": "d1", "volumepath": {"$": "VolumePath", "filename": "link"}});
    let mut ended = Ended::with(json!([
        hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"})),
        hook(&shore, "GirderUploadVolumePathToFolder", more),
    ]))
    .await;
    ended.write(Path::new("out"), "it");
    std::os::unix::fs::symlink("/etc/passwd", ended.volume.join("link")).unwrap();
    let error = ended.finish().await.unwrap_err();
    assert_eq!(error.code, "upload_refused", "{error}");
    assert!(!ended.kept().exists());
}

#[tokio::test]
async fn what_girder_refuses_for_good_fails_the_task_and_nothing_is_kept() {
    let shore = Shore::start(|asked| {
        (asked.method == "POST").then(|| Fault::Instead(Reply::error(403, "Write access denied")))
    })
    .await;
    let mut ended =
        Ended::with(json!([hook(&shore, "GirderUploadVolumePathToItem", json!({"item_id": "i1"}))])).await;
    ended.write(Path::new("out"), "it");
    let error = ended.finish().await.unwrap_err();
    assert_eq!(error.code, "girder_forbidden", "{error}");
    assert!(error.message.starts_with("GirderUploadVolumePathToItem of out: "), "{error}");
    assert!(error.message.contains("Write access denied") && !error.message.contains(TOKEN), "{error}");
    assert!(!ended.kept().exists());
}

#[tokio::test]
async fn several_files_are_sent_at_once_but_no_more_than_allowed() {
    let shore = Shore::start(|asked| {
        let document = json!({"_id": "f", "name": "-", "size": 4}).to_string();
        let late = || Reply::Late(document.into(), std::time::Duration::from_millis(200));
        (asked.path == "/api/v1/file/chunk").then(|| Fault::Instead(late()))
    })
    .await;
    let mut ended =
        Ended::with(json!([hook(&shore, "GirderUploadVolumePathToFolder", json!({"folder_id": "d1"}))]))
            .await;
    for n in 0..8 {
        ended.write(Path::new(&format!("out/{n}")), "0123");
    }
    ended.finish().await.unwrap();
    assert_eq!(shore.offsets().len(), 8);
    assert_eq!(shore.server.at_once(), quick().parallel_uploads);
}

#[tokio::test]
async fn what_upload_kwargs_say_goes_along() {
    let shore = Shore::calm().await;
    let kwargs = json!({"reference": "mine", "mimeType": "image/tiff"});
    let ended_with = |kwargs: Value| {
        Ended::with(json!([hook(
            &shore,
            "GirderUploadVolumePathToItem",
            json!({"item_id": "i1", "upload_kwargs": kwargs})
        )]))
    };
    let mut ended = ended_with(kwargs).await;
    ended.write(Path::new("out"), "it");
    ended.finish().await.unwrap();
    let begun: Vec<_> =
        shore.server.asked().into_iter().filter(|asked| asked.path == "/api/v1/file").collect();
    assert_eq!(begun.len(), 1);
    assert_eq!(
        (begun[0].param("reference"), begun[0].param("mimeType")),
        (Some("mine"), Some("image%2Ftiff"))
    );
}

#[tokio::test]
async fn a_girder_without_a_route_for_artifacts_is_told_in_a_sentence_and_fails_nobody() {
    let shore = Shore::calm().await;
    let mut ended =
        Ended::with(json!([hook(&shore, "GirderUploadVolumePathJobArtifact", json!({"job_id": "j1"}))]))
            .await;
    ended.write(Path::new("out"), "it");
    let value = ended.finish().await.unwrap();
    let said = value[0]["error"].as_str().unwrap();
    assert!(said.contains("has no route for job artifacts") && said.contains(&shore.api_url()), "{said}");
    let (_, details) = ended.attempt.report().snapshot();
    assert_eq!(details.warnings, [said]);
    assert!(details.log_tail.contains(said), "{}", details.log_tail);
}
