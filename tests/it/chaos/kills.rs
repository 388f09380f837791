//! kill -9 of a worker in each moment of a task's way, and at any.

use std::time::Duration;

use longshore::failpoint::Moment;

use super::berth::Berth;
use super::storm::{Plan, storms};

/// Another worker and the next process of the same one go on.
async fn killed<B: Berth>(moment: Moment) {
    storms::<B>(
        async |_, _| Plan::of(format!("kill -9: {moment}")),
        async |storm| {
            let half = storm.scale.tasks as u64 / 2;
            let count = storm.random(2..half.max(3));
            // Ready before there is anything to die of.
            let one = storm.failing_worker("one", &format!("{moment}:kill@{count}")).await;
            storm.submit().await;
            storm.dies(one).await;
            vec![storm.worker("one").await, storm.worker("two").await]
        },
    )
    .await;
}

pub(super) async fn nothing_is_lost_by_a_kill_on_receipt<B: Berth>() {
    killed::<B>(Moment::Received).await;
}

pub(super) async fn nothing_is_lost_by_a_kill_while_staging<B: Berth>() {
    killed::<B>(Moment::Staging).await;
}

pub(super) async fn nothing_is_lost_by_a_kill_while_running<B: Berth>() {
    killed::<B>(Moment::Running).await;
}

pub(super) async fn nothing_is_lost_by_a_kill_while_uploading<B: Berth>() {
    killed::<B>(Moment::Uploading).await;
}

pub(super) async fn what_is_recorded_when_its_worker_is_killed_is_told_and_not_run_again<B: Berth>() {
    killed::<B>(Moment::Recorded).await;
}

pub(super) async fn what_is_told_when_its_worker_is_killed_is_not_run_again<B: Berth>() {
    killed::<B>(Moment::Published).await;
}

/// Workers of one name come and go; the other one is there all the time.
pub(super) async fn nothing_is_lost_by_kills_at_any_moment<B: Berth>() {
    storms::<B>(
        async |_, _| Plan { worker: "poison_limit = 50".to_owned(), ..Plan::of("kill -9: any") },
        async |storm| {
            storm.submit().await;
            let two = storm.worker("two").await;
            for _ in 0..4 {
                let one = storm.worker("one").await;
                tokio::time::sleep(Duration::from_millis(storm.random(1..400))).await;
                storm.kill(one);
            }
            vec![storm.worker("one").await, two]
        },
    )
    .await;
}
