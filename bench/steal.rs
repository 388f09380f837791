//! How well lanes share work of very uneven length: the time from the first start to the last settlement, beside what
//! the greedy list schedule (the next task goes to the lane that is free first) takes in theory.

use std::time::Duration;

use longshore::ping::Ping;
use longshore::task::{Arg, ArgMap, Task};

use crate::support::Outcome;
use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};
use crate::support::rig::Rig;

const TASKS: usize = 64;
const LANES: usize = 8;
/// The same work in each run.
const SEED: u64 = 20;

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin(
        "steal",
        "64 tasks of heavy-tailed length on 8 lanes (seconds from first to last; less is better)",
    );
    let lengths = lengths();
    let greedy = greedy(&lengths).as_secs_f64();
    let (mut ours, mut python) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let rig = Rig::start(LANES).await?;
        rig.queue(lengths.iter().map(|length| sleep(*length))).await?;
        ours.push(rig.drain(TASKS, Duration::from_millis(1)).await?.took.as_secs_f64());
        rig.end().await?;
        python.extend(peer.sleeps(&lengths, LANES).await?);
    }
    let row =
        Row::new("limit: the greedy schedule in theory", Figure::of(&ours)).limit(Figure::of(&[greedy]));
    answer.add(row.python(Figure::if_any(&python)).at_most_of_limit(1.05));
    Ok(answer.end())
}

fn sleep(length: Duration) -> Task {
    let mut args = ArgMap::new();
    args.insert("sleep".to_owned(), Arg::Text(format!("{}ms", length.as_millis())));
    Task::new(Ping::KIND, args)
}

/// A Pareto distribution: most are short, and a few hold a large part of all the time.
fn lengths() -> Vec<Duration> {
    const SHORTEST: f64 = 80.0;
    const LONGEST: f64 = 2_500.0;
    const TAIL: f64 = 1.1;
    let mut state = SEED;
    let mut uniform = || {
        // splitmix64: the same numbers on every machine and with every version of every library.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = u32::try_from((mixed ^ (mixed >> 31)) >> 32).expect("invariant: 32 bits are left");
        (f64::from(high) + 0.5) / 4_294_967_296.0
    };
    let millis = std::iter::repeat_with(|| (SHORTEST * uniform().powf(-1.0 / TAIL)).min(LONGEST).round());
    millis.map(|millis| Duration::from_secs_f64(millis / 1_000.0)).take(TASKS).collect()
}

fn greedy(lengths: &[Duration]) -> Duration {
    let mut lanes = [Duration::ZERO; LANES];
    for length in lengths {
        if let Some(first) = lanes.iter_mut().min() {
            *first += *length;
        }
    }
    lanes.into_iter().max().unwrap_or_default()
}
