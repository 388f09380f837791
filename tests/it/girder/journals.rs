//! What a worker had not told its jobs when it was killed: told by whoever comes after it, in order and once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::clerk::{Clerk, SETTINGS, counted};
use super::rig::PATIENCE;
use super::shore::{Fault, broken};
use crate::support::faulty::{Asked, Reply};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;

const ARGS: [&str; 2] = ["--concurrency", "1"];
/// What a worker that was killed had comes back soon.
const SOON: &str = "[worker]\nlease = \"3s\"\nrelease_damping = \"500ms\"\n";

/// A Girder that goes away with the first update and comes back when it is told to.
fn absent(is_back: &Arc<AtomicBool>) -> impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static {
    let (is_back, is_gone) = (is_back.clone(), AtomicBool::new(false));
    move |asked| {
        is_gone.fetch_or(asked.method == "PUT", Ordering::SeqCst);
        let is_away = is_gone.load(Ordering::SeqCst) && !is_back.load(Ordering::SeqCst);
        is_away.then(|| Fault::Instead(broken()))
    }
}

fn journals(longshore: &Longshore) -> Vec<PathBuf> {
    let files = std::fs::read_dir(longshore.state().join("jobs")).into_iter().flatten().flatten();
    files.map(|file| file.path()).collect()
}

/// Waits until `text` stands in a journal.
async fn journaled(longshore: &Longshore, text: &str) {
    eventually(PATIENCE, &format!("{text:?} is journaled"), async || {
        let content = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        journals(longshore).into_iter().any(|path| content(path).contains(text)).then_some(())
    })
    .await;
}

async fn nothing_is_journaled(longshore: &Longshore) {
    eventually(PATIENCE, "no journal is left", async || journals(longshore).is_empty().then_some(())).await;
}

fn the_log_was_whole_at_the_end(clerk: &Clerk) {
    let job = clerk.job();
    assert_eq!(job.at_its_end, job.log.len());
}

#[tokio::test]
async fn lines_of_a_worker_that_was_killed_while_girder_was_away_are_told_by_the_next_one() {
    let is_back = Arc::new(AtomicBool::new(false));
    let mut clerk = Clerk::of(1, &format!("{SOON}{SETTINGS}"), absent(&is_back)).await;
    // The container outlives its worker, and goes on after it.
    let script =
        "for n in $(seq 10); do echo line $n; done; sleep 8; for n in $(seq 11 20); do echo line $n; done";
    let id = clerk.submit(script).await;
    journaled(&clerk.longshore, "line 10").await;
    assert_eq!(clerk.lines("line "), Vec::<String>::new());
    clerk.worker.kill();
    is_back.store(true, Ordering::SeqCst);
    clerk.worker = clerk.longshore.worker(&ARGS).await;
    let record = clerk.ended(&id).await;
    assert_eq!((&record["status"], &record["attempts"]), (&json!("succeeded"), &json!(1)), "{record}");
    assert_eq!(clerk.lines("line "), counted("line ", 20), "{}", clerk.job().log.concat());
    assert_eq!(clerk.job().states, [2, 3]);
    the_log_was_whole_at_the_end(&clerk);
    nothing_is_journaled(&clerk.longshore).await;
}

#[tokio::test]
async fn the_end_of_a_task_is_told_behind_its_last_lines_after_two_kills_and_each_line_once() {
    let is_back = Arc::new(AtomicBool::new(false));
    let lost = AtomicBool::new(false);
    let (away, gate) = (absent(&is_back), is_back.clone());
    // The first text that comes when Girder is back again is taken, and the answer is never heard.
    let mut clerk = Clerk::of(1, &format!("{SOON}{SETTINGS}"), move |asked| {
        let has_text = String::from_utf8_lossy(&asked.body).contains("log=");
        if gate.load(Ordering::SeqCst) && has_text && !lost.swap(true, Ordering::SeqCst) {
            return Some(Fault::After(Reply::Stall(10, Vec::new())));
        }
        away(asked)
    })
    .await;
    let id = clerk.submit("for n in $(seq 30); do echo line $n; done; echo last words >&2; exit 3").await;
    journaled(&clerk.longshore, "last words").await;
    eventually(PATIENCE, "the end is recorded", async || {
        (clerk.record(&id).await?["status"] == "failed").then_some(())
    })
    .await;
    journaled(&clerk.longshore, "DockerException").await;
    clerk.worker.kill();
    assert_eq!(clerk.job().log, Vec::<String>::new());

    is_back.store(true, Ordering::SeqCst);
    clerk.worker = clerk.longshore.worker(&ARGS).await;
    eventually(PATIENCE, "a text came", async || (!clerk.job().log.is_empty()).then_some(())).await;
    clerk.worker.kill();
    clerk.worker = clerk.longshore.worker(&ARGS).await;
    clerk.ended(&id).await;
    assert_eq!(clerk.lines("line "), counted("line ", 30), "{}", clerk.job().log.concat());
    let log = clerk.job().log.concat();
    assert!(
        log.ends_with("DockerException: Non-zero exit code from docker container (3).\nlast words\n"),
        "{log}"
    );
    assert_eq!(log.matches("DockerException").count(), 1, "{log}");
    assert_eq!(clerk.job().states, [2, 4]);
    the_log_was_whole_at_the_end(&clerk);
    nothing_is_journaled(&clerk.longshore).await;
    assert!(!clerk.worker.log().contains("of-the-job"));
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_elsewhere_tells_nothing_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/longshore.db", folder.path().display());
    let settings = format!("brokers = [\"{url}\"]\nstore = \"{url}\"\n{SOON}{SETTINGS}");
    let is_back = Arc::new(AtomicBool::new(false));
    let mut clerk = Clerk::of(1, &settings, absent(&is_back)).await;
    let id = clerk.submit("echo from $(hostname); sleep 6").await;
    journaled(&clerk.longshore, "from ").await;
    clerk.worker.kill();
    is_back.store(true, Ordering::SeqCst);

    let other = Longshore::with_settings(&settings);
    let _worker = other.worker(&ARGS).await;
    let record = clerk.ended(&id).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    let told = clerk.lines("from ");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(journals(&clerk.longshore).len(), 1);
    clerk.worker = clerk.longshore.worker(&ARGS).await;
    nothing_is_journaled(&clerk.longshore).await;
    assert!(clerk.worker.log().contains("was overtaken by another attempt"), "{}", clerk.worker.log());
    assert_eq!(clerk.lines("from "), told);
}
