//! The store on a server of its own, while the broker is well: away, and emptied.

use std::cell::RefCell;

use super::berth::Berth;
use super::storm::{Plan, Storm, storms};
use crate::support::longshore::Worker;
use crate::support::redis::Redis;

async fn apart<B: Berth>(
    fault: &str,
    weather: impl AsyncFn(&mut Storm<B>, &RefCell<Option<Redis>>) -> Vec<Worker>,
) {
    let shop = &RefCell::new(None::<Redis>);
    storms::<B>(
        async |_: &B, scale| {
            let redis = Redis::start().await;
            let store = Some(redis.url());
            *shop.borrow_mut() = Some(redis);
            Plan { store, ..Plan::of_outage(fault, scale) }
        },
        async |storm| weather(storm, shop).await,
    )
    .await;
}

/// Taken out for the while, so that no borrow lasts over a wait.
async fn hurt(shop: &RefCell<Option<Redis>>, how: impl AsyncFnOnce(&mut Redis)) {
    let mut redis = shop.borrow_mut().take().unwrap();
    how(&mut redis).await;
    *shop.borrow_mut() = Some(redis);
}

/// It crashes, and comes back with all that it had confirmed. What ends meanwhile waits.
pub(super) async fn a_store_that_is_away_delays_and_loses_nothing<B: Berth>() {
    apart::<B>("store away", async |storm, shop| {
        let workers = storm.two_at_work(20).await;
        let outage = storm.scale.outage;
        hurt(shop, async |redis| {
            redis.server().kill();
            tokio::time::sleep(outage).await;
            redis.server().start_again().await;
        })
        .await;
        workers
    })
    .await;
}

/// The same, and a worker dies while ends wait for the store in its journal.
pub(super) async fn ends_that_wait_for_the_store_outlive_their_worker<B: Berth>() {
    apart::<B>("store away, then kill -9", async |storm, shop| {
        storm.submit().await;
        let one = storm.worker("one").await;
        storm.done(20).await;
        let outage = storm.scale.outage;
        hurt(shop, async |redis| {
            redis.server().kill();
            tokio::time::sleep(outage).await;
            storm.kill(one);
            redis.server().start_again().await;
        })
        .await;
        vec![storm.worker("one").await]
    })
    .await;
}

/// What ran goes on to its end, what waited is done; what had ended is forgotten, and not done again.
pub(super) async fn a_store_that_is_emptied_loses_no_task<B: Berth>() {
    apart::<B>("store emptied", async |storm, shop| {
        let workers = storm.two_at_work(30).await;
        storm.forgives_forgotten_records();
        hurt(shop, async |redis| {
            let mut operator = redis.connection().await;
            let _: () = redis::cmd("FLUSHALL").query_async(&mut operator).await.unwrap();
        })
        .await;
        workers
    })
    .await;
}
