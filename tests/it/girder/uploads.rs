//! Uploads to servers that break off, lose answers and lie: one file comes of each, or none.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use longshore::error::TaskError;
use longshore::girder::upload::{self, Begun, Delivered, Gate, Kind, Parcel, Parent};
use longshore::girder::{Connection, Session, Settings, Site};
use longshore::http::{Anything, Judge};
use longshore::task::Secret;
use longshore::units::Span;

use super::shore::{Fault, Shore, broken};
use super::staged::{TOKEN, noise};
use crate::support::faulty::{Asked, Reply};

const CHUNK: &str = "/api/v1/file/chunk";
const CHUNKS: u64 = 10;

/// What an earlier process had begun, what is written down, and whether the upload may be finalised.
#[derive(Default)]
struct Desk {
    earlier: Option<Begun>,
    written: Mutex<Vec<(String, u64)>>,
    overtaken: bool,
}

#[async_trait]
impl Gate for Desk {
    async fn check(&self) -> Result<(), TaskError> {
        if self.overtaken { Err(TaskError::retryable("lease_lost", "overtaken")) } else { Ok(()) }
    }
    fn earlier(&self) -> Option<Begun> {
        self.earlier.clone()
    }
    fn began(&self, begun: Begun) {
        self.written.lock().unwrap().push((begun.upload, begun.offset));
    }
    fn acknowledged(&self, offset: u64) {
        let mut written = self.written.lock().unwrap();
        let upload = written.last().map(|(upload, _)| upload.clone()).unwrap_or_default();
        written.push((upload, offset));
    }
}

fn parcel(content: &[u8]) -> Parcel {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    parcel_of(file, content.len() as u64)
}

fn parcel_of(file: File, size: u64) -> Parcel {
    Parcel { name: "out".to_owned(), mime_type: None, reference: None, size, content: Arc::new(file) }
}

fn item() -> Parent {
    Parent::Item("i1".to_owned())
}
fn folder() -> Parent {
    Parent::Folder("d1".to_owned())
}

async fn send_by(
    shore: &Shore,
    (parent, parcel): (&Parent, &Parcel),
    chunk: u64,
    desk: &Desk,
) -> Result<Delivered, TaskError> {
    let site = Arc::new(Site::plain(Settings {
        retry_budget: Span::seconds(2),
        connect_timeout: Span::seconds(1),
        stall_timeout: Span::seconds(5),
        ..Settings::default()
    }));
    let token = Some(Secret::new(TOKEN));
    let connection = Connection { api_url: shore.api_url(), token, session: Session::default() };
    let judge: Arc<dyn Judge> = Arc::new(Anything);
    let client = site.client(&connection, &judge)?;
    upload::deliver(&client, parent, parcel, chunk, desk).await
}

async fn send(shore: &Shore, parent: &Parent, content: &[u8]) -> Result<Delivered, TaskError> {
    send_by(shore, (parent, &parcel(content)), CHUNKS, &Desk::default()).await
}

/// The first chunk at this offset.
fn first_at(asked: &Asked, offset: &str, seen: &Mutex<bool>) -> bool {
    let hit = asked.path == CHUNK && asked.param("offset") == Some(offset);
    hit && !std::mem::replace(&mut *seen.lock().unwrap(), true)
}

/// The one file that must have come of it.
fn only(shore: &Shore, content: &[u8]) {
    let files = shore.files();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].content, content);
    assert_eq!(shore.unfinished(), 0, "nothing is left in Girder's temporary folder");
}

#[tokio::test]
async fn a_broken_chunk_is_sent_again_from_the_offset_that_girder_acknowledged() {
    let seen = Mutex::new(false);
    let shore =
        Shore::start(move |asked| first_at(asked, "10", &seen).then(|| Fault::Instead(broken()))).await;
    let content = noise(35);
    send(&shore, &item(), &content).await.unwrap();
    only(&shore, &content);
    assert_eq!(shore.offsets(), [0, 10, 10, 20, 30]);
}

#[tokio::test]
async fn a_chunk_that_arrived_half_is_never_gone_on_with() {
    for parent in [item(), folder()] {
        let seen = Mutex::new(false);
        let shore = Shore::start(move |asked| first_at(asked, "10", &seen).then_some(Fault::Half(4))).await;
        let content = noise(35);
        send(&shore, &parent, &content).await.unwrap();
        only(&shore, &content);
        assert_eq!(shore.offsets(), [0, 10, 0, 10, 20, 30], "it starts over");
    }
}

#[tokio::test]
async fn the_lost_answer_to_the_last_chunk_makes_no_second_file() {
    for parent in [item(), folder()] {
        for reply in [broken as fn() -> Reply, || Reply::error(502, "bad gateway")] {
            let seen = Mutex::new(false);
            let shore =
                Shore::start(move |asked| first_at(asked, "30", &seen).then(|| Fault::After(reply()))).await;
            let content = noise(35);
            let sent = send(&shore, &parent, &content).await.unwrap();
            only(&shore, &content);
            assert_eq!((sent.file.as_str(), sent.kind), (shore.files()[0].id.as_str(), Kind::New));
        }
    }
}

#[tokio::test]
async fn an_empty_file_whose_answer_was_lost_is_not_made_twice() {
    for parent in [item(), folder()] {
        let shore = Shore::start(|asked| {
            let is_first = asked.path == "/api/v1/file" && asked.earlier == 0;
            is_first.then(|| Fault::After(broken()))
        })
        .await;
        send(&shore, &parent, b"").await.unwrap();
        only(&shore, b"");
    }
}

#[tokio::test]
async fn a_replaced_content_whose_last_answer_was_lost_stays_the_one_file() {
    let shore = Shore::start(|asked| {
        let is_second = asked.path == CHUNK && asked.param("offset") == Some("0") && asked.earlier == 1;
        is_second.then(|| Fault::After(broken()))
    })
    .await;
    assert_eq!(send(&shore, &item(), b"old").await.unwrap().kind, Kind::New);
    let sent = send(&shore, &item(), b"other").await.unwrap();
    only(&shore, b"other");
    assert_eq!(sent.kind, Kind::Replaced);
    assert_eq!(send(&shore, &item(), b"other").await.unwrap().kind, Kind::Unchanged);
    assert_eq!(shore.offsets().len(), 2, "an unchanged one is not sent again");
}

#[tokio::test]
async fn a_server_that_keeps_another_content_than_was_sent_is_not_believed() {
    let shore = Shore::start(|asked| {
        let lies = asked.path == CHUNK && asked.earlier == 0;
        let document = serde_json::json!({"_id": "f9", "name": "out", "size": 3});
        lies.then(|| Fault::Instead(Reply::json(&document)))
    })
    .await;
    let error = send(&shore, &item(), &noise(5)).await.unwrap_err();
    assert!(!shore.files().iter().any(|file| file.content != noise(5)), "{error}");
}

#[tokio::test]
async fn what_no_repetition_mends_ends_the_upload_and_leaves_nothing_behind() {
    for (status, code) in [(403, "girder_forbidden"), (413, "girder_refused")] {
        let shore = Shore::start(move |asked| {
            (asked.path == CHUNK).then(|| Fault::Instead(Reply::error(status, "no")))
        })
        .await;
        let error = send(&shore, &folder(), &noise(35)).await.unwrap_err();
        assert_eq!((error.code.as_str(), shore.offsets().len()), (code, 1), "{error}");
        assert_eq!((shore.files().len(), shore.unfinished()), (0, 0));
    }
}

#[tokio::test]
async fn a_server_that_asks_for_patience_is_given_it_whatever_the_call() {
    let shore = Shore::start(|asked| {
        let asks = matches!(asked.path.as_str(), "/api/v1/file" | CHUNK) && asked.earlier == 0;
        asks.then(|| Fault::Instead(Reply::Whole(429, vec![("Retry-After", "1".into())], Vec::new())))
    })
    .await;
    let (begun, content) = (std::time::Instant::now(), noise(25));
    send(&shore, &folder(), &content).await.unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    only(&shore, &content);
}

#[tokio::test]
async fn a_server_that_stands_still_in_its_answer_is_asked_what_it_has() {
    let seen = Mutex::new(false);
    let shore = Shore::start(move |asked| {
        first_at(asked, "10", &seen).then(|| Fault::After(Reply::Stall(10, Vec::new())))
    })
    .await;
    let content = noise(35);
    send(&shore, &folder(), &content).await.unwrap();
    only(&shore, &content);
}

#[tokio::test]
async fn what_is_sent_is_never_redirected() {
    let elsewhere = Shore::calm().await;
    let to = format!("{}/file/chunk", elsewhere.api_url());
    let shore =
        Shore::start(move |asked| (asked.path == CHUNK).then(|| Fault::Instead(Reply::redirect(&to)))).await;
    let error = send(&shore, &item(), &noise(5)).await.unwrap_err();
    assert_eq!(error.code, "girder_redirect", "{error}");
    assert!(elsewhere.server.asked().is_empty());
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_finalises_nothing() {
    for (content, offsets) in [(noise(25), vec![0, 10]), (noise(0), vec![])] {
        let shore = Shore::calm().await;
        let desk = Desk { overtaken: true, ..Desk::default() };
        let sent = send_by(&shore, (&item(), &parcel(&content)), CHUNKS, &desk).await;
        assert_eq!(sent.unwrap_err().code, "lease_lost");
        assert_eq!((shore.offsets(), shore.files().len()), (offsets, 0));
    }
}

/// What a process that died had written down of `upload`.
fn earlier(upload: String, offset: u64) -> Desk {
    let at = jiff::Timestamp::now();
    Desk { earlier: Some(Begun { upload, at, replaces: None, offset }), ..Desk::default() }
}

#[tokio::test]
async fn a_later_process_goes_on_at_the_acknowledged_boundary() {
    for (parent, named) in [(item(), ("item", "i1")), (folder(), ("folder", "d1"))] {
        let shore = Shore::calm().await;
        let content = noise(35);
        let desk = earlier(shore.begun(named, "out", (35, &content[..20])), 20);
        send_by(&shore, (&parent, &parcel(&content)), CHUNKS, &desk).await.unwrap();
        only(&shore, &content);
        assert_eq!(shore.offsets(), [20, 30]);
    }
}

#[tokio::test]
async fn a_later_process_starts_over_where_more_or_less_arrived_than_was_acknowledged() {
    for arrived in [7, 24] {
        let shore = Shore::calm().await;
        let content = noise(35);
        let desk = earlier(shore.begun(("folder", "d1"), "out", (35, &content[..arrived])), 20);
        send_by(&shore, (&folder(), &parcel(&content)), CHUNKS, &desk).await.unwrap();
        only(&shore, &content);
        assert_eq!(shore.offsets(), [0, 10, 20, 30]);
    }
}

#[tokio::test]
async fn a_later_process_finds_the_file_that_was_finished_and_sends_nothing() {
    for content in [noise(35), noise(0)] {
        let shore = Shore::calm().await;
        let begun = jiff::Timestamp::now();
        send(&shore, &folder(), &content).await.unwrap();
        let before = shore.offsets().len();
        let upload = if content.is_empty() { String::new() } else { "u1".to_owned() };
        let earlier = Begun { upload, at: begun, replaces: None, offset: content.len() as u64 / 10 * 10 };
        let desk = Desk { earlier: Some(earlier), ..Desk::default() };
        send_by(&shore, (&folder(), &parcel(&content)), CHUNKS, &desk).await.unwrap();
        only(&shore, &content);
        assert_eq!(shore.offsets().len(), before);
    }
}

#[tokio::test]
async fn how_far_an_upload_came_is_written_down_before_and_after_girder_is_asked() {
    let shore = Shore::calm().await;
    let desk = Desk::default();
    send_by(&shore, (&item(), &parcel(&noise(25))), CHUNKS, &desk).await.unwrap();
    let written = desk.written.lock().unwrap().clone();
    let upload = "u1".to_owned();
    assert_eq!(written, [(String::new(), 0), (upload.clone(), 0), (upload.clone(), 10), (upload, 20)]);
}

#[tokio::test]
async fn a_file_of_more_than_four_gigabytes_is_sent_with_its_whole_offsets() {
    const SIZE: u64 = (4 << 30) + 5;
    let shore = Shore::calm().await;
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let sent = send_by(&shore, (&folder(), &parcel_of(file, SIZE)), 64 << 20, &Desk::default()).await;
    sent.unwrap();
    let offsets = shore.offsets();
    assert_eq!((offsets.len(), offsets.last()), (65, Some(&(4 << 30))));
    assert_eq!(shore.files()[0].size, SIZE);
}
