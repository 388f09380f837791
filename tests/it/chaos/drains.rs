//! SIGTERM under load: what can be finished is, everything else is given back and done by others.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::berth::Berth;
use super::storm::{Plan, storms};

/// How long the draining worker lets its tasks run, and may take to end them.
const DRAIN: Duration = Duration::from_millis(500);
const STOP: Duration = Duration::from_secs(5);
/// Beyond that, for the worker's own end.
const LENIENCY: Duration = Duration::from_secs(5);

async fn drained<B: Berth>(then: &str) {
    storms::<B>(
        async |_, scale| Plan {
            worker: format!(
                "drain_timeout = \"{}ms\"\nstop_timeout = \"{}ms\"\non_drain_timeout = \"{then}\"",
                DRAIN.as_millis(),
                STOP.as_millis()
            ),
            // Some end within the drain, some do not.
            runs: if scale.tasks < 200 { 5..1_500 } else { 5..700 },
            ..Plan::of(format!("SIGTERM: {then}"))
        },
        async |storm| {
            storm.submit().await;
            let mut one = storm.worker("one").await;
            storm.done(10).await;
            storm.excuse(&one);
            let asked = Instant::now();
            one.signal(Signal::SIGTERM);
            let two = storm.worker("two").await;
            let ended = one.end().await;
            assert_eq!(ended.code(), Some(0), "it ends well: {}", one.log());
            assert!(asked.elapsed() < DRAIN + STOP + LENIENCY, "it ended after {:?}", asked.elapsed());
            vec![two]
        },
    )
    .await;
}

pub(super) async fn a_drain_that_stops_what_runs_loses_nothing<B: Berth>() {
    drained::<B>("stop").await;
}

pub(super) async fn a_drain_that_leaves_what_can_be_left_loses_nothing<B: Berth>() {
    drained::<B>("leave").await;
}
