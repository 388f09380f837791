//! What tasks say, and how data comes to them.

use std::sync::Arc;

use serde_json::json;

use super::site::{SUCCESS, Site, has_lines, nothing};
use crate::support::girder::log;

pub(super) async fn says_hello(site: Arc<Site>) {
    let sent = site.send("hello", json!({"name": "Girder"})).await;
    let job = site.ended(&sent, SUCCESS).await;
    has_lines(&log(&job), &["hello, Girder"]);
    has_lines(&log(&job), &["oops"]);
    let states: Vec<i64> = Site::times(&job).into_iter().map(|(status, _)| status).collect();
    assert_eq!(states, [2, 3], "{job}");
}

pub(super) async fn says_one_word(site: Arc<Site>) {
    for n in 0..3 {
        let said = site.said("say", json!({"script": format!("printf 'word {n}'")})).await;
        has_lines(&said, &[&format!("word {n}")]);
    }
}

pub(super) async fn says_much(site: Arc<Site>) {
    let said = site.said("say", json!({"script": "for n in $(seq 3000); do echo line $n; done"})).await;
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (1..=3000).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, expected);
}

pub(super) async fn speaks_unicode(site: Arc<Site>) {
    let said = site.said("hello", json!({"name": "Größe 世界 🚢 \u{301}"})).await;
    has_lines(&said, &["hello, Größe 世界 🚢 \u{301}"]);
}

pub(super) async fn has_a_title(site: Arc<Site>) {
    let sent = site.send("titled", json!({"title": "Étude"})).await;
    let job = site.ended(&sent, SUCCESS).await;
    assert_eq!(
        (&job["title"], &job["type"], &job["public"]),
        (&"Étude".into(), &"site".into(), &true.into())
    );
    has_lines(&log(&job), &["titled"]);
}

pub(super) async fn takes_docker_keywords(site: Arc<Site>) {
    let said = site.said("keywords", nothing()).await;
    has_lines(&said, &["ä b|/tmp|1234|quay"]);
    has_lines(&said, &["read-only"]);
}

pub(super) async fn takes_other_values(site: Arc<Site>) {
    has_lines(&site.said("values", nothing()).await, &["1 2.5 True None a b"]);
}

pub(super) async fn reads_a_file(site: Arc<Site>) {
    let (file, _) = site.file("input.txt", b"from Girder\n").await;
    has_lines(&site.said("file", json!({"file": file})).await, &["from Girder"]);
}

pub(super) async fn reads_a_file_by_another_name(site: Arc<Site>) {
    let (file, _) = site.file("input.txt", b"by name\n").await;
    has_lines(&site.said("named_file", json!({"file": file})).await, &["by name", "given name.txt"]);
}

pub(super) async fn reads_a_file_of_a_foreign_name(site: Arc<Site>) {
    let (file, _) = site.file("Gr%C3%BCne%20St%C3%A4dte%20%E4%B8%96%E7%95%8C.txt", "grün\n".as_bytes()).await;
    has_lines(&site.said("file", json!({"file": file})).await, &["grün"]);
}

pub(super) async fn reads_a_file_in_a_bound_folder(site: Arc<Site>) {
    let (file, _) = site.file("bound.txt", b"bound\n").await;
    let host = site.host_folder("inputs", &[]);
    has_lines(
        &site.said("file_in_bind", json!({"file": file, "host": host})).await,
        &["bound", "/mnt/inputs"],
    );
}

pub(super) async fn reads_an_item(site: Arc<Site>) {
    let (_, item) = site.file("a.txt", b"first\n").await;
    let more = format!("file?parentType=item&parentId={item}&name=b.txt&size=7");
    site.girder.post(&more, b"second\n").await;
    has_lines(&site.said("item", json!({"item": item})).await, &["first", "second"]);
}

pub(super) async fn reads_a_folder(site: Arc<Site>) {
    let top = site.folder_in(None, "tree").await;
    let sub = site.folder_in(Some(&top), "sub").await;
    site.girder.upload(&top, "top.txt", b"top\n").await;
    site.girder.upload(&sub, "inner.txt", b"inner\n").await;
    let said = site.said("folder", json!({"folder": top})).await;
    has_lines(&said, &["./sub/inner.txt", "./top.txt", "top", "inner"]);
}

/// More than pipes and sockets hold.
fn large() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_000).collect();
    bytes.extend_from_slice(b"end\n");
    bytes
}

pub(super) async fn reads_a_stream(site: Arc<Site>) {
    let (file, _) = site.file("stream.bin", &large()).await;
    has_lines(&site.said("pipe_in", json!({"file": file})).await, &["same"]);
}

pub(super) async fn reads_a_stream_slowly(site: Arc<Site>) {
    let (file, _) = site.file("slow.bin", &large()).await;
    has_lines(&site.said("slow_reader", json!({"file": file})).await, &["end"]);
}

pub(super) async fn reads_the_beginning_of_a_stream(site: Arc<Site>) {
    let content = [b"four".to_vec(), large()].concat();
    let (file, _) = site.file("early.bin", &content).await;
    has_lines(&site.said("early_reader", json!({"file": file})).await, &["four", "enough"]);
}

pub(super) async fn reads_nothing_of_a_stream(site: Arc<Site>) {
    let (file, _) = site.file("absent.bin", &large()).await;
    has_lines(&site.said("absent_reader", json!({"file": file})).await, &["not interested"]);
}
