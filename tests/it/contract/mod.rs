//! What every broker and every store must do, whichever it is: one rule per function, one macro line per adapter.
//!
//! A rule knows the traits only. What an adapter cannot do by its own word (`Capabilities`) is not asked of it.

mod admin;
mod dead;
pub(crate) mod dock;
mod fleet;
mod leases;
mod order;
mod store;
mod submit;
mod topic;

/// The tests of one adapter: a module of its name with one test per rule.
macro_rules! contract {
    ($adapter:ident, $dock:ty, $test:tt) => {
        mod $adapter {
            contract!(@broker $dock, $test);
            contract!(@store $dock, $test);
        }
    };
    // An adapter of a broker that keeps no records.
    ($adapter:ident, $dock:ty, $test:tt, broker only) => {
        mod $adapter {
            contract!(@broker $dock, $test);
        }
    };
    (@broker $dock:ty, $test:tt) => {
            contract!(@room admin, $dock, $test;
                a_paused_queue_hands_nothing_out_until_it_is_resumed,
                purging_leaves_what_is_leased,
                queues_are_counted_by_state,
                waiting_messages_know_how_many_stand_before_them,
                waiting_messages_come_with_their_contents_when_asked_for,
            );
            contract!(@room dead, $dock, $test;
                a_dead_letter_keeps_its_original_bytes,
                dead_letters_are_listed_newest_first_and_by_queue,
                a_dropped_letter_is_gone,
            );
            contract!(@room fleet, $dock, $test;
                a_presence_is_seen_until_its_deadline,
                a_worker_that_left_is_not_seen,
            );
            contract!(@room leases, $dock, $test;
                an_acknowledged_message_is_gone,
                a_lapsed_lease_hands_the_same_message_over_again,
                an_extended_lease_keeps_the_message,
                a_stale_owner_is_told_that_he_lost,
                a_settled_lease_cannot_be_extended,
                a_retry_waits_for_its_delay,
                a_release_never_counts,
                a_damped_release_waits_for_its_delay,
                a_fetch_that_is_stopped_is_empty_and_loses_nothing,
                a_waiting_fetch_hears_a_submission_at_once,
                an_idle_fetch_looks_rarely,
            );
            contract!(@room order, $dock, $test;
                credit_is_never_exceeded_over_queues_and_priorities,
                two_consumers_share_without_overlap,
                the_best_priority_comes_first_and_then_the_oldest,
                a_message_is_not_handed_over_before_its_time,
                only_named_queues_are_fetched,
            );
            contract!(@room submit, $dock, $test;
                a_message_arrives_as_it_was_sent,
                one_dedup_id_is_queued_once_also_after_it_was_done,
                a_new_generation_is_no_duplicate,
                an_expired_message_is_still_handed_over,
            );
            contract!(@room topic, $dock, $test;
                events_arrive_in_the_order_of_publishing,
                a_replay_goes_on_live_without_gap_or_repetition,
                a_reader_gets_what_he_filters_for,
                a_reader_may_start_in_the_middle,
                a_replay_ends_with_what_was_told_before_it_was_asked_for,
                a_flood_of_chatter_evicts_no_status,
                a_cancel_is_found_until_it_is_forgotten,
                commands_are_heard_as_they_come,
            );
    };
    (@store $dock:ty, $test:tt) => {
            contract!(@room store, $dock, $test;
                a_record_comes_back_as_it_was_put,
                of_two_who_expect_the_same_one_wins,
                the_fence_never_goes_back,
                a_touch_prolongs_the_current_attempt_only,
                a_served_sink_is_struck_off_the_outbox,
                records_are_found_by_state_queue_label_and_time,
                an_open_outbox_is_found_once_nobody_works_on_it,
                old_records_go_unless_they_are_unfinished_or_owe,
                beyond_their_size_the_oldest_records_go,
                no_revision_comes_back_with_a_new_record,
                an_empty_store_lists_nothing_and_sweeps_nothing,
            );
    };
    (@room $room:ident, $dock:ty, $test:tt; $($rule:ident,)+) => {
        mod $room {
            $(
                #$test
                async fn $rule() {
                    let dock = <$dock as crate::contract::dock::Dock>::start().await;
                    crate::contract::$room::$rule(&dock).await;
                }
            )+
        }
    };
}

contract!(memory, crate::contract::dock::Memory, [tokio::test(start_paused = true)]);
contract!(sqlite, crate::contract::dock::Sqlite, [tokio::test]);
contract!(nats, crate::support::nats::Nats, [tokio::test]);
contract!(redis, crate::support::redis::Redis, [tokio::test]);
contract!(amqp, crate::contract::dock::Amqp, [tokio::test], broker only);
contract!(celery_redis, crate::celery_redis::dock::CeleryRedis, [tokio::test], broker only);
