//! Fetching from servers that are slow, failing, redirecting or lying.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore::error::{ErrorClass, TaskError};
use longshore::girder::{Ceilings, Site};
use longshore::http::Judge;
use longshore::units::Span;
use serde_json::json;
use tokio::sync::watch;

use super::staged::{TOKEN, document, file, noise, one_file, quick, stage, stage_with};
use crate::support::faulty::{Asked, Faulty, Reply};
use crate::support::process::free_port;

const DOWNLOAD: &str = "/api/v1/file/f1/download";

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_broke_off() {
    let server = one_file(noise(300_000), |asked, content| match asked.earlier {
        0 => Reply::Cut(content.len(), content[..100_000].to_vec()),
        1 => Reply::error(502, "bad gateway"),
        _ => Reply::part(content, asked),
    })
    .await;
    let staged = stage(&[file(&server, "f1")]).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(300_000));
    let ranges: Vec<_> =
        server.asked().iter().filter(|asked| asked.path == DOWNLOAD).map(Asked::from).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(100_000)]);
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_gives_the_whole_again() {
    let server = one_file(noise(200_000), |asked, content| match asked.earlier {
        0 => Reply::Cut(content.len(), content[..150_000].to_vec()),
        _ => Reply::bytes(content),
    })
    .await;
    let staged = stage(&[file(&server, "f1")]).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(200_000));
}

#[tokio::test]
async fn a_part_that_is_not_the_one_asked_for_is_not_taken() {
    let server = one_file(noise(1000), |asked, content| match asked.earlier {
        0 => Reply::Cut(content.len(), content[..500].to_vec()),
        _ => Reply::Whole(206, vec![("Content-Range", "bytes 400-999/1000".into())], content[400..].into()),
    })
    .await;
    let error = stage(&[file(&server, "f1")]).await.unwrap_err();
    assert!(error.message.contains("from byte 500") && error.message.contains("400"), "{error}");
}

#[tokio::test]
async fn a_file_that_changes_under_a_broken_download_is_begun_anew() {
    let first = Arc::new(Mutex::new(true));
    let (old, new) = (noise(1000), vec![7; 1200]);
    let expected = new.clone();
    let server = Faulty::start(move |asked| {
        let mut is_first = first.lock().unwrap();
        let (content, changed) = if *is_first { (&old, "2026-01-01") } else { (&new, "2026-02-02") };
        match asked.path.as_str() {
            "/api/v1/file/f1" => {
                let mut document = document("f1", "a.bin", content.len());
                document["created"] = changed.into();
                Reply::json(&document)
            }
            _ if *is_first => {
                *is_first = false;
                Reply::Cut(content.len(), content[..600].to_vec())
            }
            _ => Reply::part(content, asked),
        }
    })
    .await;
    let staged = stage(&[file(&server, "f1")]).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), expected);
}

#[tokio::test]
async fn a_server_that_stands_still_is_given_up_in_time() {
    for drip in [false, true] {
        let server = one_file(noise(100_000), move |_, content| {
            if drip {
                Reply::Drip(content.to_vec(), Duration::from_millis(200))
            } else {
                Reply::Stall(content.len(), content[..10].to_vec())
            }
        })
        .await;
        let begun = Instant::now();
        let site = Arc::new(Site::plain(longshore::girder::Settings {
            retry_budget: longshore::units::Span::seconds(0),
            ..quick()
        }));
        let error = stage_with(&[file(&server, "f1")], &site, |_| {}).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        assert_eq!((error.code.as_str(), error.class), ("girder_stalled", ErrorClass::Retryable), "{error}");
        assert!(error.message.contains("girder.stall_timeout"), "{error}");
    }
}

#[tokio::test]
async fn what_is_longer_or_shorter_than_girder_says_is_never_taken() {
    for served in [1001, 999, 0] {
        let server = Faulty::start(move |asked| match asked.path.as_str() {
            "/api/v1/file/f1" => Reply::json(&document("f1", "a.bin", 1000)),
            _ if asked.from().is_some() => Reply::error(416, "no such range"),
            _ => Reply::bytes(&noise(served)),
        })
        .await;
        let error = stage(&[file(&server, "f1")]).await.unwrap_err();
        assert!(error.message.contains("a.bin"), "{served}: {error}");
        if served > 1000 {
            assert_eq!(error.code, "girder_wrong_content", "{error}");
        }
    }
}

#[tokio::test]
async fn a_content_of_another_sum_is_never_taken() {
    let server = Faulty::start(|asked| match asked.path.as_str() {
        "/api/v1/file/f1" => {
            let mut document = document("f1", "a.bin", 3);
            // Of "abc", as FIPS 180 has it.
            document["sha512"] = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                                  2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
                .into();
            Reply::json(&document)
        }
        _ => Reply::bytes(if asked.earlier == 0 { b"abd" } else { b"abc" }),
    })
    .await;
    let error = stage(&[file(&server, "f1")]).await.unwrap_err();
    assert_eq!(error.code, "girder_wrong_content");
    assert!(error.message.contains("SHA-512"), "{error}");
    stage(&[file(&server, "f1")]).await.unwrap();
}

/// Forbids nothing, and counts how often a host is asked for: once with each try.
struct Counting(watch::Sender<usize>);

impl Judge for Counting {
    fn host(&self, _url: &reqwest::Url) -> Result<(), TaskError> {
        self.0.send_modify(|count| *count += 1);
        Ok(())
    }
    fn address(&self, _host: &str, _address: std::net::IpAddr) -> Result<(), TaskError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_asked_again_until_it_is_there() {
    let address = format!("127.0.0.1:{}", free_port());
    let settings = longshore::girder::Settings { retry_budget: Span::seconds(60), ..quick() };
    let tries = Arc::new(Counting(watch::Sender::new(0)));
    let spec = json!({"$": "GirderFileIdToVolume", "file_id": "f1",
        "girder": {"api_url": format!("http://{address}/api/v1"), "token": TOKEN}});
    let (args, site) = ([spec], Arc::new(Site::plain(settings)));
    let staging = stage_with(&args, &site, |settings| settings.judge = tries.clone());
    let starting = async {
        // Once when the client is made, then with each try: two were refused for certain.
        tries.0.subscribe().wait_for(|count| *count >= 4).await.unwrap();
        Faulty::at(&address, |asked| match asked.path.as_str() {
            "/api/v1/file/f1" => Reply::json(&document("f1", "a.bin", 1000)),
            _ => Reply::part(&noise(1000), asked),
        })
        .await
    };
    let (staged, server) = tokio::join!(staging, starting);
    assert_eq!(std::fs::read(staged.unwrap().host(0)).unwrap(), noise(1000));
    assert_eq!(server.count("/api/v1/file/f1"), 1);
}

#[tokio::test]
async fn errors_of_the_server_are_waited_out_within_the_budget() {
    let server = one_file(noise(10), |asked, content| match asked.earlier {
        0 => Reply::error(500, "broken"),
        1 => Reply::Whole(429, vec![("Retry-After", "1".into())], Vec::new()),
        _ => Reply::bytes(content),
    })
    .await;
    let begun = Instant::now();
    stage(&[file(&server, "f1")]).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "Retry-After was kept: {:?}", begun.elapsed());
    assert_eq!(server.count(DOWNLOAD), 3);

    let server = one_file(noise(10), |_, _| Reply::error(503, "gone fishing")).await;
    let begun = Instant::now();
    let error = stage(&[file(&server, "f1")]).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!((error.code.as_str(), error.class), ("girder_unavailable", ErrorClass::Retryable));
    assert!(error.message.contains("503: gone fishing"), "{error}");
}

#[tokio::test]
async fn what_no_repetition_mends_is_asked_once_and_told_with_its_remedy() {
    for (status, code, remedy) in [
        (401, "girder_unauthorized", "token"),
        (403, "girder_forbidden", "grant"),
        (404, "girder_not_found", "check the id"),
        (400, "girder_refused", "check the ids"),
    ] {
        let server = Faulty::start(move |_| Reply::error(status, "Access denied.")).await;
        let error = stage(&[file(&server, "f1")]).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class), (code, ErrorClass::Permanent), "{error}");
        assert!(error.message.starts_with("GirderFileIdToVolume.file_id = \"f1\": "), "{error}");
        assert!(error.message.contains("Access denied") && error.message.contains(remedy), "{error}");
        assert!(!error.message.contains(TOKEN));
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_followed_without_the_token() {
    let store = Faulty::start(|_| Reply::bytes(b"from the store")).await;
    let to = format!("{}/bucket/key?signature=abc", store.url());
    let server = Faulty::start(move |asked| match asked.path.as_str() {
        "/api/v1/file/f1" => Reply::json(&document("f1", "a.bin", 14)),
        DOWNLOAD => Reply::redirect("/moved/here"),
        "/moved/here" => Reply::redirect(&to),
        _ => Reply::error(404, "?"),
    })
    .await;
    let staged = stage(&[file(&server, "f1")]).await.unwrap();
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), b"from the store");
    // On its own origin the token goes along, and to nobody else.
    assert!(server.asked().iter().all(|asked| asked.headers["girder-token"] == TOKEN));
    let [asked] = &store.asked()[..] else { panic!("asked once") };
    assert_eq!(asked.query, "signature=abc");
    assert!(!format!("{asked:?}").contains(TOKEN), "{asked:?}");
}

#[tokio::test]
async fn redirects_in_circles_and_out_of_http_end() {
    for to in [DOWNLOAD, "file:///etc/passwd", "gopher://127.0.0.1/"] {
        let server = one_file(noise(10), move |_, _| Reply::redirect(to)).await;
        let error = stage(&[file(&server, "f1")]).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class), ("girder_redirect", ErrorClass::Permanent), "{error}");
        assert!(server.count(DOWNLOAD) <= 6);
    }
}

#[tokio::test]
async fn names_of_a_hostile_server_stay_in_the_volume() {
    let names =
        ["../../../escaped", "/etc/escaped", "..", "a\0b", "twice", "twice", "\\\\x", &"n".repeat(300)];
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let count = names.len();
    let server = Faulty::start(move |asked| match asked.path.as_str() {
        "/api/v1/item/i1" => Reply::json(&json!({"_id": "i1", "name": "../item"})),
        "/api/v1/item/i1/files" => {
            let files = names.iter().enumerate().map(|(n, name)| document(&format!("f{n}"), name, 2));
            Reply::json(&files.collect())
        }
        _ => Reply::bytes(b"hi"),
    })
    .await;
    let item = json!({"$": "GirderItemIdToVolume", "item_id": "i1",
        "girder": {"api_url": format!("{}/api/v1", server.url()), "token": TOKEN}});
    let staged = stage(&[item]).await.unwrap();
    assert_eq!(staged.below(0), "/i1/.._item");
    let mut found: Vec<String> = std::fs::read_dir(staged.host(0))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found.len(), count, "{found:?}");
    for name in [".._.._.._escaped", "_etc_escaped", "_..", "a_b", "twice", "twice (1)", "_x"] {
        assert!(found.iter().any(|found| found == name), "{name} in {found:?}");
    }
    assert!(!staged.attempt.report().snapshot().1.warnings.is_empty());
}

#[tokio::test]
async fn an_endless_folder_and_too_many_bytes_are_refused_with_their_setting() {
    let server = Faulty::start(|asked| match asked.path.as_str() {
        "/api/v1/folder/d1" => Reply::json(&json!({"_id": "d1", "name": "d"})),
        "/api/v1/folder" if asked.query.contains("parentId=deep") || asked.query.contains("parentId=d2") => {
            Reply::json(&json!([{"_id": "deep", "name": "deep"}]))
        }
        "/api/v1/folder/d2" => Reply::json(&json!({"_id": "d2", "name": "d"})),
        "/api/v1/item" if asked.query.contains("folderId=d1") => {
            let items = (0..500).map(|n| json!({"_id": format!("i{n}"), "name": format!("i{n}")}));
            Reply::json(&items.collect())
        }
        "/api/v1/file/f1" => Reply::json(&document("f1", "a", 1 << 40)),
        _ => Reply::json(&json!([])),
    })
    .await;
    let girder = json!({"api_url": format!("{}/api/v1", server.url())});
    let site = Arc::new(Site::plain(quick()));
    let within = Ceilings { files: 1000, bytes: 1 << 30, depth: 20 };
    for (spec, setting) in [
        (
            json!({"$": "GirderFolderIdToVolume", "folder_id": "d1", "girder": girder}),
            "policy.download.max_files",
        ),
        (json!({"$": "GirderFolderIdToVolume", "folder_id": "d2", "girder": girder}), "girder.max_depth"),
        (
            json!({"$": "GirderFileIdToVolume", "file_id": "f1", "girder": girder}),
            "policy.download.max_bytes",
        ),
    ] {
        let error = stage_with(&[spec], &site, |settings| settings.download = within).await.unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.class),
            ("download_too_large", ErrorClass::Permanent),
            "{error}"
        );
        assert!(error.message.contains(setting), "{error}");
    }
}

#[tokio::test]
async fn several_files_are_fetched_at_once_but_no_more_than_allowed() {
    let server = Faulty::start(|asked| {
        let id = asked.path.trim_start_matches("/api/v1/file/");
        match id.strip_suffix("/download") {
            Some(_) => Reply::Late(b"hello".to_vec(), Duration::from_millis(300)),
            None => Reply::json(&document(id, "a", 5)),
        }
    })
    .await;
    let files: Vec<_> = (0..8).map(|n| file(&server, &format!("f{n}"))).collect();
    let staged = stage(&files).await.unwrap();
    for n in 0..8 {
        assert_eq!(staged.below(n), format!("/f{n}/a"));
        assert_eq!(std::fs::read(staged.host(n)).unwrap(), b"hello");
    }
    // One more may ask for the document of the next.
    let allowed = quick().parallel_downloads;
    assert!((allowed..=allowed + 1).contains(&server.at_once()), "{}", server.at_once());
}

#[tokio::test]
async fn an_answer_that_is_no_girder_is_told_as_such() {
    let server = Faulty::start(|_| Reply::bytes(b"<html>Welcome</html>")).await;
    let error = stage(&[file(&server, "f1")]).await.unwrap_err();
    assert!(error.message.contains("is the API address right?"), "{error}");
    let error = stage(&[json!({"$": "GirderFileIdToVolume", "file_id": "f1",
        "girder": {"api_url": "http://127.0.0.1:1/api/v1"}})])
    .await
    .unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("girder_unavailable", ErrorClass::Retryable));
    assert!(error.message.contains("is Girder running"), "{error}");
}

#[tokio::test]
async fn a_path_given_by_the_task_cannot_leave_the_volume() {
    let server = one_file(noise(10), |_, content| Reply::bytes(content)).await;
    for bad in ["../x", "/etc/x", "a/../../x"] {
        let mut spec = file(&server, "f1");
        spec["filename"] = bad.into();
        let error = stage(&[spec]).await.unwrap_err();
        assert_eq!(error.code, "bad_argument", "{error}");
    }
    let mut spec = file(&server, "f1");
    spec["filename"] = "deep/er.bin".into();
    let staged = stage(&[spec]).await.unwrap();
    assert_eq!(staged.below(0), "/deep/er.bin");
    assert_eq!(std::fs::read(staged.host(0)).unwrap(), noise(10));
    let mut spec = file(&server, "f1");
    spec["file_id"] = "../job/1".into();
    assert_eq!(stage(&[spec]).await.unwrap_err().code, "bad_argument");
}

#[tokio::test]
async fn how_far_a_fetch_came_is_told_with_bytes_and_rate_and_what_came_with_its_size() {
    let server =
        one_file(noise(4), |_, content| Reply::Drip(content.to_vec(), Duration::from_millis(300))).await;
    let staged = stage(&[file(&server, "f1")]).await.unwrap();
    let (_, details) = staged.attempt.report().snapshot();
    let progress = details.progress.unwrap();
    assert_eq!((progress.current, progress.total), (Some(4.0), Some(4.0)));
    let message = progress.message.unwrap();
    assert!(
        message.starts_with("fetching inputs: 4 bytes of 4 bytes, ") && message.ends_with(" MiB/s"),
        "{message}"
    );
    assert!(details.log_tail.contains("fetched a.bin (4 bytes) in "), "{}", details.log_tail);
}
