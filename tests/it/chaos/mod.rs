//! One fault script on every broker: workers are killed and frozen, servers go away and come back, networks are cut, disks
//! fill up. After each storm nothing may be lost, everybody must have been told what the record says, nothing was begun
//! again but what a fault cut short, and no effect came from an attempt that was overtaken.
//!
//! `sample` runs with all other tests; `make chaos` runs everything, bigger, and prints a table (`CHAOS_*` in `scale`).

mod berth;
mod clocks;
mod containers;
mod drains;
mod kills;
mod network;
mod owners;
mod peer;
mod readers;
mod scale;
mod servers;
mod stores;
mod storm;
mod tally;
mod witness;

/// The storms of one broker.
macro_rules! storms {
    ($name:ident, $berth:ty; sample { $($sample:tt)* } rest { $($rest:tt)* }) => {
        mod $name {
            mod sample { storms!(@faults $berth; $($sample)*); }
            mod rest { storms!(@faults $berth; $($rest)*); }
        }
    };
    (@faults $berth:ty; $($room:ident::$fault:ident,)*) => {
        $(
            #[tokio::test]
            async fn $fault() {
                crate::chaos::$room::$fault::<$berth>().await;
            }
        )*
    };
}

storms!(sqlite, crate::chaos::berth::Sqlite;
    sample {
        kills::nothing_is_lost_by_a_kill_on_receipt,
        kills::nothing_is_lost_by_a_kill_while_staging,
        kills::nothing_is_lost_by_a_kill_while_running,
        kills::nothing_is_lost_by_a_kill_while_uploading,
        kills::what_is_recorded_when_its_worker_is_killed_is_told_and_not_run_again,
        kills::what_is_told_when_its_worker_is_killed_is_not_run_again,
        owners::an_attempt_that_was_overtaken_before_its_effect_has_none,
        owners::an_end_that_was_told_by_another_is_told_no_different,
        servers::a_server_that_stands_still_for_less_than_a_lease_delays_and_repeats_nothing,
        stores::ends_that_wait_for_the_store_outlive_their_worker,
        clocks::a_clock_that_jumps_ahead_ends_no_lease,
        drains::a_drain_that_stops_what_runs_loses_nothing,
    }
    rest {
        kills::nothing_is_lost_by_kills_at_any_moment,
        drains::a_drain_that_leaves_what_can_be_left_loses_nothing,
        owners::an_attempt_that_was_overtaken_while_it_ran_has_no_effect,
        owners::an_attempt_that_goes_on_beside_its_successor_has_no_effect,
        servers::a_server_that_stands_still_for_many_leases_loses_nothing,
        servers::what_is_published_twice_runs_once,
        stores::a_store_that_is_away_delays_and_loses_nothing,
        stores::a_store_that_is_emptied_loses_no_task,
        readers::a_reader_that_stands_still_holds_nobody_up_and_misses_no_end,
        clocks::a_clock_that_jumps_back_ends_no_lease,
    }
);

storms!(sqlite_on_a_small_disk, crate::chaos::berth::SqliteOnSmallDisk;
    sample {
        servers::a_server_that_refuses_writes_for_a_while_delays_and_loses_nothing,
    }
    rest {}
);

storms!(redis, crate::support::redis::Redis;
    sample {
        kills::nothing_is_lost_by_a_kill_on_receipt,
        kills::nothing_is_lost_by_a_kill_while_staging,
        kills::nothing_is_lost_by_a_kill_while_running,
        kills::nothing_is_lost_by_a_kill_while_uploading,
        kills::what_is_recorded_when_its_worker_is_killed_is_told_and_not_run_again,
        kills::what_is_told_when_its_worker_is_killed_is_not_run_again,
        drains::a_drain_that_leaves_what_can_be_left_loses_nothing,
        owners::an_attempt_that_goes_on_beside_its_successor_has_no_effect,
        servers::nothing_is_lost_by_a_crash_of_the_server,
        servers::a_server_that_stands_still_for_many_leases_loses_nothing,
        servers::a_server_that_refuses_writes_for_a_while_delays_and_loses_nothing,
        servers::what_is_published_twice_runs_once,
        network::a_network_that_is_cut_delays_and_loses_nothing,
        network::workers_that_hear_nothing_delay_and_lose_nothing,
        stores::a_store_that_is_away_delays_and_loses_nothing,
        stores::a_store_that_is_emptied_loses_no_task,
        readers::a_reader_that_stands_still_holds_nobody_up_and_misses_no_end,
        clocks::a_clock_that_jumps_back_ends_no_lease,
    }
    rest {
        servers::what_ran_through_a_crash_of_the_server_is_not_lost_with_its_worker,
        kills::nothing_is_lost_by_kills_at_any_moment,
        drains::a_drain_that_stops_what_runs_loses_nothing,
        owners::an_attempt_that_was_overtaken_while_it_ran_has_no_effect,
        owners::an_attempt_that_was_overtaken_before_its_effect_has_none,
        owners::an_end_that_was_told_by_another_is_told_no_different,
        servers::a_server_that_stands_still_for_less_than_a_lease_delays_and_repeats_nothing,
        network::a_network_that_holds_everything_up_delays_and_loses_nothing,
        network::a_server_that_hears_nothing_delays_and_loses_nothing,
        stores::ends_that_wait_for_the_store_outlive_their_worker,
        clocks::a_clock_that_jumps_ahead_ends_no_lease,
    }
);

storms!(nats, crate::support::nats::Nats;
    sample {
        kills::nothing_is_lost_by_a_kill_while_running,
        owners::an_attempt_that_was_overtaken_while_it_ran_has_no_effect,
        servers::nothing_is_lost_by_a_crash_of_the_server,
        servers::a_server_that_refuses_writes_for_a_while_delays_and_loses_nothing,
    }
    rest {
        kills::nothing_is_lost_by_a_kill_on_receipt,
        kills::nothing_is_lost_by_a_kill_while_staging,
        kills::nothing_is_lost_by_a_kill_while_uploading,
        kills::what_is_recorded_when_its_worker_is_killed_is_told_and_not_run_again,
        kills::what_is_told_when_its_worker_is_killed_is_not_run_again,
        network::a_network_that_holds_everything_up_delays_and_loses_nothing,
        network::a_server_that_hears_nothing_delays_and_loses_nothing,
        kills::nothing_is_lost_by_kills_at_any_moment,
        drains::a_drain_that_stops_what_runs_loses_nothing,
        drains::a_drain_that_leaves_what_can_be_left_loses_nothing,
        owners::an_attempt_that_was_overtaken_before_its_effect_has_none,
        owners::an_attempt_that_goes_on_beside_its_successor_has_no_effect,
        owners::an_end_that_was_told_by_another_is_told_no_different,
        servers::what_ran_through_a_crash_of_the_server_is_not_lost_with_its_worker,
        servers::a_server_that_stands_still_for_less_than_a_lease_delays_and_repeats_nothing,
        servers::a_server_that_stands_still_for_many_leases_loses_nothing,
        servers::what_is_published_twice_runs_once,
        network::a_network_that_is_cut_delays_and_loses_nothing,
        network::workers_that_hear_nothing_delay_and_lose_nothing,
        stores::a_store_that_is_away_delays_and_loses_nothing,
        stores::ends_that_wait_for_the_store_outlive_their_worker,
        stores::a_store_that_is_emptied_loses_no_task,
        readers::a_reader_that_stands_still_holds_nobody_up_and_misses_no_end,
        clocks::a_clock_that_jumps_ahead_ends_no_lease,
        clocks::a_clock_that_jumps_back_ends_no_lease,
    }
);

storms!(nats_cluster, crate::support::nats_cluster::NatsCluster;
    sample {
        servers::nothing_is_lost_by_a_crash_of_the_server,
    }
    rest {
        kills::nothing_is_lost_by_kills_at_any_moment,
    }
);

storms!(amqp, crate::chaos::berth::Amqp;
    sample {
        kills::nothing_is_lost_by_a_kill_while_running,
        kills::what_is_recorded_when_its_worker_is_killed_is_told_and_not_run_again,
        owners::an_attempt_that_goes_on_beside_its_successor_has_no_effect,
    }
    rest {
        kills::nothing_is_lost_by_a_kill_on_receipt,
        kills::nothing_is_lost_by_a_kill_while_staging,
        kills::nothing_is_lost_by_a_kill_while_uploading,
        kills::what_is_told_when_its_worker_is_killed_is_not_run_again,
        kills::nothing_is_lost_by_kills_at_any_moment,
        drains::a_drain_that_stops_what_runs_loses_nothing,
        drains::a_drain_that_leaves_what_can_be_left_loses_nothing,
        owners::an_attempt_that_was_overtaken_while_it_ran_has_no_effect,
        owners::an_attempt_that_was_overtaken_before_its_effect_has_none,
        owners::an_end_that_was_told_by_another_is_told_no_different,
        servers::what_is_published_twice_runs_once,
        network::a_network_that_is_cut_delays_and_loses_nothing,
        network::a_network_that_holds_everything_up_delays_and_loses_nothing,
        network::a_server_that_hears_nothing_delays_and_loses_nothing,
        network::workers_that_hear_nothing_delay_and_lose_nothing,
        stores::a_store_that_is_away_delays_and_loses_nothing,
        stores::ends_that_wait_for_the_store_outlive_their_worker,
        stores::a_store_that_is_emptied_loses_no_task,
        clocks::a_clock_that_jumps_ahead_ends_no_lease,
        clocks::a_clock_that_jumps_back_ends_no_lease,
    }
);

storms!(amqp_alone, crate::chaos::berth::AmqpAlone;
    sample {
        servers::what_ran_through_a_crash_of_the_server_is_not_lost_with_its_worker,
        servers::a_server_that_refuses_writes_for_a_while_delays_and_loses_nothing,
    }
    rest {
        servers::nothing_is_lost_by_a_crash_of_the_server,
        servers::a_server_that_stands_still_for_less_than_a_lease_delays_and_repeats_nothing,
        servers::a_server_that_stands_still_for_many_leases_loses_nothing,
    }
);
