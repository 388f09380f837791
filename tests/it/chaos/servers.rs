//! The broker itself: it crashes and comes back, stands still, refuses to take anything, gets a task twice.

use std::time::Duration;

use longshore::broker::Submission;
use longshore::failpoint::Moment;
use longshore::task::ContentType;

use super::berth::{Berth, Freezes, Refuses, Restarts};
use super::storm::{Plan, storms};

/// More than fit into what a file still has room for once its disk is full.
const ROOM: usize = 2_000;

pub(super) async fn nothing_is_lost_by_a_crash_of_the_server<B: Restarts>() {
    storms::<B>(
        async |_, scale| Plan::of_outage("server restart", scale),
        async |storm| {
            let workers = storm.two_at_work(10).await;
            storm.berth.restart().await;
            storm.done(40).await;
            storm.berth.restart().await;
            workers
        },
    )
    .await;
}

/// Whatever a worker ran through the crash has a message again by then, which outlives the worker.
pub(super) async fn what_ran_through_a_crash_of_the_server_is_not_lost_with_its_worker<B: Restarts>() {
    storms::<B>(
        async |_, scale| Plan {
            runs: 6_000..8_000,
            ..Plan::of_outage("server restart, then kill -9", scale)
        },
        async |storm| {
            let tasks = storm.tasks(8);
            storm.submit_these(&tasks).await;
            let one = storm.worker("one").await;
            storm.reached(Moment::Running, 4).await;
            storm.berth.restart().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            storm.kill(one);
            vec![storm.worker("two").await]
        },
    )
    .await;
}

/// Shorter than a lease: nothing may be begun twice.
pub(super) async fn a_server_that_stands_still_for_less_than_a_lease_delays_and_repeats_nothing<
    B: Freezes,
>() {
    storms::<B>(
        async |_, scale| Plan::of_outage("server frozen", scale),
        async |storm| {
            let workers = storm.two_at_work(20).await;
            storm.berth.freeze().await;
            tokio::time::sleep(storm.scale.outage).await;
            storm.berth.thaw().await;
            workers
        },
    )
    .await;
}

/// Longer than any lease: what ran may be begun again, its stale attempts have no effect.
pub(super) async fn a_server_that_stands_still_for_many_leases_loses_nothing<B: Freezes>() {
    storms::<B>(
        async |_, scale| Plan { lease: scale.outage / 3, ..Plan::of("server frozen > lease") },
        async |storm| {
            let workers = storm.two_at_work(20).await;
            for worker in &workers {
                storm.excuse(worker);
            }
            storm.berth.freeze().await;
            tokio::time::sleep(storm.scale.outage).await;
            storm.berth.thaw().await;
            workers
        },
    )
    .await;
}

pub(super) async fn a_server_that_refuses_writes_for_a_while_delays_and_loses_nothing<B: Refuses>() {
    storms::<B>(
        async |_, scale| Plan::of_outage("writes refused", scale),
        async |storm| {
            let workers = storm.two_at_work(20).await;
            storm.berth.refuse().await;
            // A producer is told, once what a file had room for in itself is full.
            let mut taken = Vec::new();
            for task in storm.tasks(ROOM) {
                let submission = vec![Submission::of(&task, ContentType::Json, 0)];
                if storm.broker.submit.submit(submission).await.is_err() {
                    break;
                }
                taken.push(task);
            }
            assert!(taken.len() < ROOM, "a full broker took {ROOM} tasks");
            storm.count(&taken);
            tokio::time::sleep(storm.scale.outage).await;
            storm.berth.accept().await;
            workers
        },
    )
    .await;
}

/// Each task is published twice, as a producer does that did not hear the first answer; some while it runs, some after.
pub(super) async fn what_is_published_twice_runs_once<B: Berth>() {
    storms::<B>(
        async |_, _| Plan::of("duplicate publish"),
        async |storm| {
            let tasks = storm.tasks(storm.scale.tasks);
            storm.submit_these(&tasks).await;
            let workers = vec![storm.worker("one").await, storm.worker("two").await];
            // Under dedup ids of their own, so that no broker can tell: only the records do.
            let again = |hop| {
                let copies = tasks.iter().map(move |task| Submission::of(task, ContentType::Json, hop));
                storm.broker.submit.submit(copies.collect())
            };
            again(1).await.unwrap();
            storm.done(50).await;
            again(2).await.unwrap();
            storm.done(100).await;
            again(3).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            workers
        },
    )
    .await;
}
