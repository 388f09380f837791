//! Real containers and kill -9 at random moments: each is run once unless its worker died before it could note it, its log
//! is whole whoever read it, and nothing of it stays behind.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::scale::Scale;
use crate::docker::adopt::{Quay, all_lines};
use crate::support::poll::eventually;

/// Attempts that one process has at most: lanes and as many staged.
const IN_FLIGHT: usize = 8;
const LINES: u32 = 15;
const SETTINGS: &str = "[worker]\nconcurrency = 4\nstaging_ahead = 4\nlease = \"3s\"\nupkeep_interval = \"1s\"\n\
                        release_damping = \"200ms\"\npoison_limit = 50\n[docker]\nreap_every = \"2s\"\nreap_grace = \"5s\"\n";

#[tokio::test]
async fn containers_outlive_kills_of_their_worker_at_any_moment_and_none_is_lost() {
    let scale = Scale::read();
    for seed in 0..scale.seeds {
        kills_among_containers(scale, seed).await;
    }
}

async fn kills_among_containers(scale: Scale, seed: u64) {
    let began = std::time::Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let quay = Quay::new(SETTINGS).await;
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.1; done");
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
                      "container_args": ["-c", script]});
    let tasks = quay.submit_many(args, scale.containers).await;
    let done = async || -> Vec<Value> {
        let records = quay.records(scale.containers).await;
        records
            .into_iter()
            .filter(|record| record["status"] == "succeeded" && record["owed"].is_null())
            .collect()
    };
    let mut kills = 0;
    // At least two, and one for every ten containers.
    for round in 0..(scale.containers / 10).max(2) {
        let mut worker = quay.worker(&[]).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..3_000))).await;
        let is_over = done().await.len() == tasks.len();
        worker.kill();
        kills += 1;
        if is_over && round > 0 {
            break;
        }
    }
    let _last = quay.worker(&[]).await;
    let within = Duration::from_secs(60) + Duration::from_secs(2) * u32::try_from(scale.containers).unwrap();
    eventually(within, "all are done and told", async || (done().await.len() == tasks.len()).then_some(()))
        .await;
    let mut extra = 0;
    for task in &tasks {
        let made = quay.made_for(task);
        assert!(!made.is_empty(), "{task} had no container");
        extra += made.len() - 1;
        assert_eq!(quay.logs(task).await.lines().collect::<Vec<_>>(), all_lines(LINES), "the log of {task}");
    }
    assert!(extra <= kills * IN_FLIGHT, "{extra} extra containers after {kills} kills");
    for task in &tasks {
        quay.nothing_is_left_of(task).await;
    }
    let lost = tasks.difference(&named(&done().await)).count();
    let took = began.elapsed().as_secs_f64();
    let allowed = kills * IN_FLIGHT;
    super::tally::write_row(&format!(
        "sqlite\tcontainers, {kills} kills\t{seed}\t{}\t{lost}\t{extra}/{allowed}\t0\t0\t0\t{took:.1}",
        tasks.len()
    ));
}

fn named(records: &[Value]) -> BTreeSet<String> {
    records.iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
}
