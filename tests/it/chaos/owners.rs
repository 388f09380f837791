//! Two workers that believe they own one task: the first stands still for longer than its leases, and goes on when another
//! has begun or ended its tasks.

use longshore::failpoint::Moment;
use nix::sys::signal::Signal;

use super::berth::Berth;
use super::storm::{Plan, storms};

async fn overtaken<B: Berth>(moment: Moment) {
    storms::<B>(
        async |_, _| Plan::of(format!("two owners: {moment}")),
        async |storm| {
            let count = storm.random(1..storm.scale.tasks as u64 / 4);
            // Ready before there is anything to freeze at.
            let one = storm.failing_lane("one", &format!("{moment}:freeze@{count}")).await;
            storm.submit().await;
            storm.reached(moment, usize::try_from(count).unwrap()).await;
            storm.excuse(&one);
            if storm.berth.is_held_up() {
                // Then nobody overtakes it: there is nothing to see but that all goes on with it.
                one.signal(Signal::SIGCONT);
                return vec![one];
            }
            let two = storm.worker("two").await;
            // What the frozen one holds can be done only after its leases.
            storm.all_ended().await;
            one.signal(Signal::SIGCONT);
            vec![one, two]
        },
    )
    .await;
}

pub(super) async fn an_attempt_that_was_overtaken_while_it_ran_has_no_effect<B: Berth>() {
    overtaken::<B>(Moment::Running).await;
}

pub(super) async fn an_attempt_that_was_overtaken_before_its_effect_has_none<B: Berth>() {
    overtaken::<B>(Moment::Uploading).await;
}

pub(super) async fn an_end_that_was_told_by_another_is_told_no_different<B: Berth>() {
    overtaken::<B>(Moment::Recorded).await;
}

/// While both run: the first goes on in the middle of the second's attempts.
pub(super) async fn an_attempt_that_goes_on_beside_its_successor_has_no_effect<B: Berth>() {
    storms::<B>(
        async |_, _| Plan { runs: 300..900, ..Plan::of("two owners at once") },
        async |storm| {
            let one = storm.failing_lane("one", "running:freeze@2").await;
            storm.submit().await;
            storm.reached(Moment::Running, 2).await;
            storm.excuse(&one);
            if storm.berth.is_held_up() {
                one.signal(Signal::SIGCONT);
                return vec![one];
            }
            let two = storm.worker("two").await;
            let first = storm.begun_by(&one);
            storm.begun_again(&first).await;
            one.signal(Signal::SIGCONT);
            vec![one, two]
        },
    )
    .await;
}
