//! Events and commands.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use longshore::broker::{Broker, BrokerError, Command};
use longshore::events::{Event, EventData, EventFilter, EventKind, EventStart, LogStream, Progress};
use longshore::task::{Fence, Secret};

use super::dock::{Dock, LONG, PROMPT, queue, task};

fn event(name: &str, number: u64, data: EventData) -> Event {
    Event {
        task: task(name),
        queue: queue("default"),
        fence: Fence(7),
        number,
        // In whole microseconds, as brokers keep it.
        time: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap(),
        data,
    }
}

fn log(name: &str, number: u64) -> Event {
    let text = format!("line {number}");
    event(name, number, EventData::Log { stream: LogStream::Stdout, text })
}

fn ended(name: &str, number: u64) -> Event {
    event(name, number, EventData::Succeeded { exit_code: Some(0) })
}

async fn follow(
    broker: &Broker,
    filter: EventFilter,
    start: EventStart,
) -> BoxStream<'static, Result<Event, BrokerError>> {
    broker.topic.follow(filter, start).await.unwrap()
}

async fn next<T>(stream: &mut BoxStream<'static, Result<T, BrokerError>>) -> T {
    let next = tokio::time::timeout(PROMPT, stream.next()).await.expect("it comes at once");
    next.expect("the stream goes on").unwrap()
}

async fn take<T>(stream: &mut BoxStream<'static, Result<T, BrokerError>>, count: usize) -> Vec<T> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(stream).await);
    }
    taken
}

async fn assert_silent<T: std::fmt::Debug>(stream: &mut BoxStream<'static, Result<T, BrokerError>>) {
    let next = tokio::time::timeout(Duration::from_millis(100), stream.next()).await;
    assert!(next.is_err(), "nothing should have come, but {next:?} did");
}

pub(crate) async fn events_arrive_in_the_order_of_publishing(dock: &impl Dock) {
    let one = dock.one().await;
    let mut live = follow(&one, EventFilter::default(), EventStart::Now).await;
    let attempt = |n| EventData::Staging { attempt: n, worker: "w".to_owned() };
    let progress = Progress { message: Some("ä".to_owned()), current: Some(0.1), total: Some(3.0) };
    let all = vec![
        event("a", 0, EventData::Queued),
        event("a", 0, attempt(1)),
        event("a", 1, EventData::Progress(progress)),
        log("a", 2),
        event("b", 0, attempt(2)),
        log("a", 3),
        ended("a", 4),
    ];
    one.topic.publish(&all[..3]).await.unwrap();
    one.topic.publish(&all[3..]).await.unwrap();
    assert_eq!(take(&mut live, all.len()).await, all);
    if !one.capabilities.replay {
        return;
    }
    let mut replayed = follow(&one, EventFilter::default(), EventStart::Oldest).await;
    assert_eq!(take(&mut replayed, all.len()).await, all);
    assert_silent(&mut replayed).await;
}

pub(crate) async fn a_replay_goes_on_live_without_gap_or_repetition(dock: &impl Dock) {
    let one = dock.one().await;
    if !one.capabilities.replay {
        return;
    }
    let other = dock.client("other", &[], LONG).await;
    let before: Vec<Event> = (0..40).map(|n| log("a", n)).collect();
    one.topic.publish(&before).await.unwrap();
    let mut stream = follow(&other, EventFilter::default(), EventStart::Oldest).await;
    let publish = async {
        for number in 40..140 {
            one.topic
                .publish(&[if number % 3 == 0 { ended("a", number) } else { log("a", number) }])
                .await
                .unwrap();
            tokio::task::yield_now().await;
        }
    };
    let ((), taken) = tokio::join!(publish, take(&mut stream, 140));
    let numbers: Vec<u64> = taken.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (0..140).collect::<Vec<u64>>());
    assert_silent(&mut stream).await;
}

pub(crate) async fn a_reader_gets_what_he_filters_for(dock: &impl Dock) {
    let one = dock.one().await;
    if !one.capabilities.replay {
        return;
    }
    let elsewhere = Event { queue: queue("gpu"), ..log("b", 3) };
    one.topic.publish(&[log("a", 0), ended("a", 1), log("b", 2), elsewhere, ended("b", 4)]).await.unwrap();
    let numbers = async |filter: EventFilter, count| {
        let mut stream = follow(&one, filter, EventStart::Oldest).await;
        let taken = take(&mut stream, count).await;
        assert_silent(&mut stream).await;
        taken.into_iter().map(|event| event.number).collect::<Vec<_>>()
    };
    let all = EventFilter::default();
    assert_eq!(numbers(EventFilter { task: Some(task("b")), ..all.clone() }, 3).await, [2, 3, 4]);
    assert_eq!(numbers(EventFilter { queue: Some(queue("gpu")), ..all.clone() }, 1).await, [3]);
    assert_eq!(numbers(EventFilter { kinds: vec![EventKind::Succeeded], ..all.clone() }, 2).await, [1, 4]);
    let one_of_two = EventFilter { task: Some(task("a")), kinds: vec![EventKind::Log], ..all };
    assert_eq!(numbers(one_of_two, 1).await, [0]);
}

pub(crate) async fn a_reader_may_start_in_the_middle(dock: &impl Dock) {
    let one = dock.one().await;
    if !one.capabilities.replay {
        return;
    }
    let early = Event { time: Timestamp::now() - Duration::from_secs(60), ..log("a", 0) };
    one.topic.publish(&[early, log("a", 1), ended("a", 2)]).await.unwrap();
    let since = EventStart::Since(Timestamp::now() - Duration::from_secs(30));
    let mut recent = follow(&one, EventFilter::default(), since).await;
    assert_eq!(take(&mut recent, 2).await.iter().map(|event| event.number).collect::<Vec<_>>(), [1, 2]);
    let mut live = follow(&one, EventFilter::default(), EventStart::Now).await;
    assert_silent(&mut live).await;
    one.topic.publish(&[log("a", 3)]).await.unwrap();
    assert_eq!(next(&mut live).await.number, 3);
}

pub(crate) async fn a_replay_ends_with_what_was_told_before_it_was_asked_for(dock: &impl Dock) {
    let one = dock.one().await;
    if !one.capabilities.replay {
        let asked = one.topic.replay(EventFilter::default(), EventStart::Oldest).await;
        assert!(matches!(asked, Err(BrokerError::Unsupported { .. })), "what cannot be replayed is refused");
        return;
    }
    let replayed = async |filter: EventFilter, start| {
        let stream = one.topic.replay(filter, start).await.unwrap();
        let all = tokio::time::timeout(PROMPT, stream.try_collect::<Vec<Event>>()).await;
        let all = all.expect("a replay ends by itself").unwrap();
        all.into_iter().map(|event| event.number).collect::<Vec<u64>>()
    };
    let all = EventFilter::default();
    assert!(replayed(all.clone(), EventStart::Oldest).await.is_empty());
    let early = Event { time: Timestamp::now() - Duration::from_secs(60), ..log("a", 0) };
    one.topic.publish(&[early]).await.unwrap();
    // More than any adapter reads at once, on both shelves, and the last one of another task.
    let many: Vec<Event> = (1..700).map(|n| if n % 2 == 0 { ended("a", n) } else { log("a", n) }).collect();
    one.topic.publish(&many).await.unwrap();
    one.topic.publish(&[ended("b", 700)]).await.unwrap();
    assert_eq!(replayed(all.clone(), EventStart::Oldest).await, (0..=700).collect::<Vec<u64>>());
    let since = EventStart::Since(Timestamp::now() - Duration::from_secs(30));
    assert_eq!(replayed(all.clone(), since).await, (1..=700).collect::<Vec<u64>>());
    assert!(replayed(all.clone(), EventStart::Now).await.is_empty());
    let of = |name: &str| EventFilter { task: Some(task(name)), ..EventFilter::default() };
    assert_eq!(replayed(of("b"), EventStart::Oldest).await, [700]);
    assert_eq!(replayed(of("a"), EventStart::Oldest).await.len(), 700);
    assert!(replayed(of("c"), EventStart::Oldest).await.is_empty());
}

pub(crate) async fn a_flood_of_chatter_evicts_no_status(dock: &impl Dock) {
    let one = dock.one().await;
    if !one.capabilities.replay {
        return;
    }
    one.topic.publish(&[ended("a", 0)]).await.unwrap();
    // Five times what the options let it keep.
    for batch in 0..50 {
        let lines: Vec<Event> = (0..100).map(|line| log("loud", batch * 100 + line)).collect();
        one.topic.publish(&lines).await.unwrap();
    }
    let mut all = follow(&one, EventFilter::default(), EventStart::Oldest).await;
    assert_eq!(next(&mut all).await, ended_at(&one).await);
    let first_line = next(&mut all).await.number;
    assert!(first_line > 3_500, "chatter from number {first_line} on is kept: more than was asked for");
    let left = take(&mut all, usize::try_from(4_999 - first_line).unwrap()).await;
    assert_eq!(left.last().unwrap().number, 4_999);
}

/// The one terminal event, as it is kept.
async fn ended_at(broker: &Broker) -> Event {
    let filter = EventFilter { kinds: vec![EventKind::Succeeded], ..EventFilter::default() };
    let mut stream = follow(broker, filter, EventStart::Oldest).await;
    let event = next(&mut stream).await;
    assert_eq!((&event.task, event.number), (&task("a"), 0));
    event
}

pub(crate) async fn a_cancel_is_found_until_it_is_forgotten(dock: &impl Dock) {
    let one = dock.one().await;
    let other = dock.client("other", &[], LONG).await;
    let mut heard = one.topic.commands().await.unwrap();
    assert_eq!(one.topic.cancel_requested(&task("a")).await.unwrap(), None);
    let cancel = |reason: &str| Command::Cancel { task: task("a"), reason: reason.to_owned() };
    other.topic.command(cancel("by hand")).await.unwrap();
    assert_eq!(next(&mut heard).await, cancel("by hand"));
    assert_eq!(one.topic.cancel_requested(&task("a")).await.unwrap().as_deref(), Some("by hand"));
    assert_eq!(one.topic.cancel_requested(&task("b")).await.unwrap(), None);
    // One that starts later finds it as well.
    let late = dock.client("late", &[], LONG).await;
    assert_eq!(late.topic.cancel_requested(&task("a")).await.unwrap().as_deref(), Some("by hand"));
    late.topic.forget_cancel(&task("a")).await.unwrap();
    assert_eq!(one.topic.cancel_requested(&task("a")).await.unwrap(), None);
    late.topic.forget_cancel(&task("a")).await.unwrap();
}

pub(crate) async fn commands_are_heard_as_they_come(dock: &impl Dock) {
    let one = dock.one().await;
    let other = dock.client("other", &[], LONG).await;
    one.topic.command(Command::Drain { worker: "before".to_owned() }).await.unwrap();
    let (mut first, mut second) =
        (one.topic.commands().await.unwrap(), other.topic.commands().await.unwrap());
    let sent: Vec<Command> = (0..6)
        .map(|n| match n % 3 {
            0 => Command::Drain { worker: n.to_string() },
            1 => Command::Resume { worker: n.to_string() },
            _ => Command::Upload { task: task("a"), token: (n > 3).then(|| Secret::new("fresh")) },
        })
        .collect();
    for command in &sent {
        other.topic.command(command.clone()).await.unwrap();
    }
    assert_eq!(take(&mut first, sent.len()).await, sent);
    assert_eq!(take(&mut second, sent.len()).await, sent);
    assert_silent(&mut first).await;
}
