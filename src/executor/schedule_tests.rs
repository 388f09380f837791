//! The scheduler's rules, without sockets, clocks or tasks.

use proptest::prelude::*;

use super::*;

fn pool(gpus: usize) -> Pool {
    Pool { cpus: 8.0, memory: 1_000, gpus: (0..gpus).map(|n| n.to_string()).collect(), ..Pool::default() }
}

fn schedule(lanes: usize, gpus: usize) -> Schedule<&'static str> {
    Schedule::new(lanes, &pool(gpus), Duration::from_secs(30))
}

fn gpus(gpus: u32) -> Demand {
    Demand { gpus, ..Demand::default() }
}

fn add(
    schedule: &mut Schedule<&'static str>,
    name: &'static str,
    priority: u64,
    demand: Demand,
    now: Instant,
) -> usize {
    schedule.enqueue(name, Priority::new(priority).unwrap(), demand, now).0
}

#[test]
fn attempts_spread_over_the_least_loaded_lanes() {
    let now = Instant::now();
    let mut schedule = schedule(3, 0);
    let lanes: Vec<_> =
        ["a", "b", "c", "d"].map(|name| add(&mut schedule, name, 5, Demand::default(), now)).into();
    assert_eq!(lanes, [0, 1, 2, 0]);
}

#[test]
fn a_lane_takes_its_own_best_before_it_steals() {
    let now = Instant::now();
    let mut schedule = schedule(2, 0);
    for (name, priority) in [("a0", 5), ("b0", 9), ("a1", 7), ("b1", 5)] {
        add(&mut schedule, name, priority, Demand::default(), now);
    }
    let mut take = |lane| schedule.next(lane, now).map(|start| start.item);
    assert_eq!(take(0), Some("a1"));
    assert_eq!(take(0), Some("a0"));
    assert_eq!(take(0), Some("b0"), "stolen: the oldest of the longest sibling");
    assert_eq!(take(0), Some("b1"));
    assert_eq!(take(0), None);
    assert_eq!(schedule.steals(), 2);
}

#[test]
fn what_does_not_fit_is_passed_over_until_it_reserves() {
    let start = Instant::now();
    let mut schedule = schedule(3, 2);
    add(&mut schedule, "one", 5, gpus(1), start);
    let one = schedule.next(0, start).unwrap();
    add(&mut schedule, "two", 5, gpus(2), start);
    add(&mut schedule, "small", 5, gpus(1), start);
    add(&mut schedule, "plain", 5, Demand::default(), start);
    let small = schedule.next(2, start).unwrap();
    assert_eq!(small.item, "small", "it fits, so it does not wait behind the large one");
    assert_eq!(schedule.reservation_due(), Some(start + Duration::from_secs(30)));
    schedule.finish(2, small.grant);
    add(&mut schedule, "small2", 5, gpus(1), start);

    let late = start + Duration::from_secs(31);
    let plain = schedule.next(1, late).unwrap();
    assert_eq!(plain.item, "plain", "it takes nothing that the large one waits for");
    assert!(schedule.next(2, late).is_none(), "a device is free but kept for the large one");
    schedule.finish(0, one.grant);
    let two = schedule.next(0, late).unwrap();
    assert_eq!((two.item, two.grant.gpus.len()), ("two", 2));
}

#[test]
fn a_queued_attempt_can_be_taken_out_and_all_can_be_drained_in_order() {
    let now = Instant::now();
    let mut schedule = schedule(2, 0);
    let first = schedule.enqueue("a", Priority::default(), Demand::default(), now).1;
    for name in ["b", "c", "d"] {
        add(&mut schedule, name, 5, Demand::default(), now);
    }
    assert_eq!(schedule.remove(first), Some("a"));
    assert_eq!(schedule.remove(first), None);
    assert_eq!(schedule.drain(), ["b", "c", "d"]);
    assert_eq!(schedule.queued(), 0);
}

proptest! {
    /// Whatever arrives and ends in whatever order: nothing is lost or started twice, the pool is never overdrawn,
    /// and a lane stays idle only while nothing that waits fits.
    #[test]
    fn nothing_is_lost_and_lanes_are_not_idle_without_reason(
        steps in proptest::collection::vec((0_u8..3, 0_usize..4, 0_u64..10, 0_u32..3), 1..200),
    ) {
        let now = Instant::now();
        let mut schedule: Schedule<usize> = Schedule::new(4, &pool(2), Duration::from_secs(30));
        let mut running: Vec<Option<Grant>> = vec![None, None, None, None];
        let mut started = std::collections::BTreeSet::new();
        let mut added = 0;
        for (step, lane, priority, wanted) in steps {
            match step {
                0 => {
                    schedule.enqueue(added, Priority::new(priority).unwrap(), gpus(wanted), now);
                    added += 1;
                }
                1 => if running[lane].is_none() {
                    if let Some(start) = schedule.next(lane, now) {
                        prop_assert!(started.insert(start.item));
                        running[lane] = Some(start.grant);
                    } else if schedule.queued() > 0 {
                        let held: usize = running.iter().flatten().map(|grant| grant.gpus.len()).sum();
                        prop_assert!(held > 0, "nothing runs, something waits, and nothing was started");
                    }
                },
                _ => if let Some(grant) = running[lane].take() {
                    schedule.finish(lane, grant);
                },
            }
            let held: usize = running.iter().flatten().map(|grant| grant.gpus.len()).sum();
            prop_assert!(held <= 2);
            prop_assert_eq!(started.len() + schedule.queued(), added);
        }
    }
}
