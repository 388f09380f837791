//! When tasks begin and how they end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::site::{
    CANCELED, CANCELING, Carrier, ERROR, INACTIVE, PATIENCE, QUEUED, RUNNING, SUCCESS, Sent, Site, has_lines,
    nothing,
};
use crate::support::docker::containers_labelled;
use crate::support::girder::log;
use crate::support::poll::eventually;

/// How long a cancellation may take here, where much else goes on; the figures stand in the report of a quiet machine.
const CANCELED_WITHIN: f64 = 20.0;

/// How long the broker's line is watched, which is a measurement and no waiting.
const QUIET: Duration = Duration::from_secs(5);

pub(super) async fn fails(site: Arc<Site>) {
    let sent = site.send("fails", json!({"code": 3})).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("DockerException: Non-zero exit code from docker container (3)."), "{said}");
    has_lines(&said, &["cannot go on"]);
}

pub(super) async fn lacks_its_image(site: Arc<Site>) {
    let sent = site.send("missing_image", nothing()).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("longshore-test/no-such-image:1"), "{said}");
}

pub(super) async fn waits_for_its_countdown(site: Arc<Site>) {
    let sent = site.send("countdown", json!({"seconds": 4})).await;
    let job = site.ended(&sent, SUCCESS).await;
    let created: jiff::Timestamp = job["created"].as_str().unwrap().parse().unwrap();
    let said = log(&job);
    let ran = said.lines().find_map(|line| line.strip_suffix(" ran")).unwrap_or_else(|| panic!("{said}"));
    let waited = ran.parse::<i64>().unwrap() - created.as_second();
    assert!((3..90).contains(&waited), "it ran after {waited} s");
}

pub(super) async fn expires(site: Arc<Site>) {
    let sent = site.send("expires", json!({"countdown": 3, "expires": 1})).await;
    let job = site.ended(&sent, CANCELED).await;
    assert!(!log(&job).contains("ran\n"), "{job}");
}

pub(super) async fn runs_out_of_time(site: Arc<Site>) {
    let sent = site.send("time_limit", json!({"hard": 3})).await;
    let said = log(&site.ended(&sent, ERROR).await);
    assert!(said.contains("TimeLimitExceeded"), "{said}");
    no_container(&sent).await;
}

pub(super) async fn is_awaited(site: Arc<Site>) {
    let (good, bad) = tokio::join!(
        site.send("awaited", json!({"script": "exit 0"})),
        site.send("awaited", json!({"script": "exit 3"})),
    );
    assert_eq!((&good.answer["state"], &good.answer["value"]), (&json!("SUCCESS"), &Value::Null));
    assert_eq!(bad.answer["state"], "FAILURE");
    assert_eq!(bad.answer["value"], "DockerException: Non-zero exit code from docker container (3).");
}

pub(super) async fn is_scheduled_by_girder(site: Arc<Site>) {
    let sent = site.send("scheduled", json!({"script": "echo of the old kind"})).await;
    let job = site.ended(&sent, SUCCESS).await;
    has_lines(&log(&job), &["of the old kind"]);
    let states: Vec<i64> = Site::times(&job).into_iter().map(|(status, _)| status).collect();
    assert_eq!(states, [QUEUED, RUNNING, SUCCESS]);
}

pub(super) async fn is_canceled_before_its_time(site: Arc<Site>) {
    let sent = site.send("countdown", json!({"seconds": 8})).await;
    assert_eq!(site.job(&sent).await["status"], INACTIVE);
    site.cancel(&sent).await;
    site.ended(&sent, CANCELED).await;
    // Another one, whose time comes later, runs; by then this one would have.
    let after = site.send("countdown", json!({"seconds": 9})).await;
    site.ended(&after, SUCCESS).await;
    let job = site.job(&sent).await;
    assert_eq!((&job["status"], log(&job).contains(" ran")), (&json!(CANCELED), false), "{job}");
}

/// All lanes are busy and one task is ready for the next, so that what is sent then waits in the queue; nothing else may
/// run at that time.
pub(super) async fn all_wait_are_seen_and_canceled(site: &Site) {
    let item = site.item().await;
    let mut running = vec![site.send("stops_on_term", json!({"item": item})).await];
    for _ in 1..4 {
        running.push(site.send("stops_on_term", nothing()).await);
    }
    for sent in &running {
        site.says(sent, "up\n").await;
    }
    let ready = site.send("stops_on_term", nothing()).await;
    site.job_in(&ready, RUNNING).await;
    let waiting = site.send("scheduled", json!({"script": "echo started"})).await;
    is_seen(site, &running, &ready).await;
    is_quiet(site).await;

    assert_eq!(site.job(&waiting).await["status"], QUEUED);
    site.cancel(&waiting).await;
    assert_eq!(site.job(&waiting).await["status"], CANCELING);
    site.cancel(&ready).await;
    let job = site.ended(&ready, CANCELED).await;
    assert!(!log(&job).contains("up\n"), "{job}");
    for sent in &running {
        site.cancel(sent).await;
        let job = site.ended(sent, CANCELED).await;
        has_lines(&log(&job), &["asked to stop"]);
        let times = Site::times(&job);
        let at = |status| times.iter().find(|(seen, _)| *seen == status).unwrap().1;
        let took = at(CANCELED) - at(CANCELING);
        assert!(took < CANCELED_WITHIN, "canceled after {took} s");
        eprintln!("canceled after {took:.3} s");
        no_container(sent).await;
    }
    assert_eq!(site.files_of(&item).await, [], "what was canceled is not uploaded");
    let job = site.ended(&waiting, CANCELED).await;
    let states: Vec<i64> = Site::times(&job).into_iter().map(|(status, _)| status).collect();
    assert_eq!(states, [QUEUED, CANCELING, CANCELED]);
    assert!(!log(&job).contains("started\n"), "{job}");
}

/// Containers that run cause no traffic on the broker but the line's own heartbeats.
async fn is_quiet(site: &Site) {
    let tap = match &site.carrier {
        Carrier::RabbitMq(_, tap) => tap,
        // It has no heartbeats; who reads its lists asks again and again.
        Carrier::Redis(_) => return,
    };
    // What the questions before caused is over once a while passes with heartbeats alone.
    let mut rounds = 0;
    let kept = loop {
        tap.open();
        tokio::time::sleep(QUIET).await;
        let kept = tap.close();
        rounds += 1;
        if kept.is_quiet() || rounds == 3 {
            break kept;
        }
    };
    assert!(kept.is_quiet(), "{kept:?}");
    assert!(!kept.sent.is_empty() && !kept.received.is_empty(), "no heartbeat passed the tap");
    eprintln!("{QUIET:?}: {} heartbeats sent, {} received", kept.sent.len() / 8, kept.received.len() / 8);
}

/// Girder's page of its workers.
async fn is_seen(site: &Site, running: &[Sent], ready: &Sent) {
    let node = "longshore@quay";
    let status = site.girder.get("worker/status").await;
    assert_eq!(status["ping"][node], json!({"ok": "pong"}), "{status}");
    assert!(status["report"][node]["ok"].as_str().unwrap().contains("longshore"), "{status}");
    assert_eq!(status["stats"][node]["pool"]["max-concurrency"], 4, "{status}");
    let ids = |list: &Value| -> Vec<String> {
        let tasks = list[node].as_array().unwrap_or_else(|| panic!("{status}")).iter();
        tasks.map(|task| task["id"].as_str().unwrap().to_owned()).collect()
    };
    let (mut active, mut expected) = (ids(&status["active"]), Vec::new());
    expected.extend(running.iter().map(|sent| sent.task.clone()));
    active.sort();
    expected.sort();
    assert_eq!(active, expected);
    assert_eq!(ids(&status["reserved"]), [ready.task.as_str()]);
    assert!(!status.to_string().contains("Girder-Token"), "{status}");
}

async fn no_container(sent: &Sent) {
    eventually(PATIENCE, "its container is gone", async || {
        containers_labelled(&format!("longshore.task={}", sent.task)).await.is_empty().then_some(())
    })
    .await;
}

pub(super) async fn come_twenty_at_once(site: Arc<Site>) {
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.push(site.send("hello", json!({"name": format!("number {n}")})).await);
    }
    for (n, sent) in sent.iter().enumerate() {
        let said = log(&site.ended(sent, SUCCESS).await);
        has_lines(&said, &[&format!("hello, number {n}")]);
    }
}
