//! The way between workers and broker: cut, held up, or carrying in one direction only.

use std::cell::RefCell;

use super::berth::Reached;
use super::storm::{Plan, storms};
use crate::support::proxy::{Passage, Proxy};

async fn cut<B: Reached>(fault: &str, passage: Passage) {
    // The plan makes it, the weather cuts it.
    let proxy = &RefCell::new(None::<Proxy>);
    storms::<B>(
        async |berth: &B, scale| {
            let made = Proxy::before(&berth.address()).await;
            let broker = Some(berth.url_at(made.address()));
            *proxy.borrow_mut() = Some(made);
            Plan { broker, ..Plan::of_outage(fault, scale) }
        },
        async |storm| {
            let workers = storm.two_at_work(20).await;
            let let_pass = |passage| proxy.borrow().as_ref().unwrap().let_pass(passage);
            let_pass(passage);
            tokio::time::sleep(storm.scale.outage).await;
            let_pass(Passage::Open);
            workers
        },
    )
    .await;
}

pub(super) async fn a_network_that_is_cut_delays_and_loses_nothing<B: Reached>() {
    cut::<B>("network cut", Passage::Closed).await;
}

pub(super) async fn a_network_that_holds_everything_up_delays_and_loses_nothing<B: Reached>() {
    cut::<B>("network held up", Passage::Held).await;
}

pub(super) async fn a_server_that_hears_nothing_delays_and_loses_nothing<B: Reached>() {
    cut::<B>("network: deaf server", Passage::DeafServer).await;
}

pub(super) async fn workers_that_hear_nothing_delay_and_lose_nothing<B: Reached>() {
    cut::<B>("network: deaf workers", Passage::DeafClients).await;
}
