//! What must be at the server: the streams and buckets of a namespace, and a durable consumer per queue and class.
//!
//! # Decisions
//! - What waits for its time lies in the stream of work under subjects of its own, with a consumer of its own that holds any
//!   number of unacknowledged messages: dedup ids are known per stream, and so are the same for what is due and what is not.
//! - `max_deliver` is without bound everywhere: a message beyond a bound is stranded, neither pending nor handed over
//!   again. Starts are counted in the record.
//! - Streams of work and dead letters refuse new messages when an operator's bound is reached, and drop none.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::DEDUP_WINDOW;
use super::names::{Names, Wait, bucket_stream};
use crate::broker::OpenOptions;
use crate::events::EventKind;
use crate::nats::stream::{self, Ensured, Wanted};
use crate::nats::{Link, LinkError, Place};
use crate::task::{PriorityClass, QueueName};

/// How long a cancel is remembered; no task waits longer.
const CONTROL_AGE: Duration = Duration::from_secs(400 * 86_400);
/// How long the presence of a worker that vanished is kept; its own deadline ends it long before.
const PRESENCE_AGE: Duration = Duration::from_secs(86_400);
/// Requests that may wait with one consumer: one of each idle worker.
const MAX_WAITING: u32 = 8_192;
/// How long moving a due message may take before another moves it.
pub(super) const MOVE_WAIT: Duration = Duration::from_secs(30);

/// Every stream of a namespace, with what it must keep at least.
pub(super) fn streams(names: &Names, place: &Place, options: &OpenOptions) -> Vec<Wanted> {
    let window = place.dedup.unwrap_or(DEDUP_WINDOW);
    let [status, chatter] = names.event_streams();
    let (chatty, telling): (Vec<EventKind>, Vec<EventKind>) =
        EventKind::ALL.into_iter().partition(|kind| kind.is_chatter());
    let told = |name: String, kinds: Vec<EventKind>| {
        let subjects: Vec<String> = kinds.into_iter().map(|kind| names.events_of(kind)).collect();
        let config = json!({
            "subjects": subjects, "retention": "limits", "discard": "old",
            "max_msgs": (options.event_count / 2).max(1), "max_age": nanos(options.event_age),
            "duplicate_window": nanos(options.event_age.min(Duration::from_secs(120))), "allow_direct": true,
        });
        wanted(name, config)
    };
    vec![
        wanted(
            names.work_stream(),
            json!({
                "subjects": names.all_places(), "retention": "workqueue", "discard": "new",
                "max_msgs": -1, "max_bytes": -1, "max_age": 0,
                "duplicate_window": nanos(window), "allow_direct": true,
            }),
        ),
        wanted(
            names.dead_stream(),
            json!({
                "subjects": [names.all_dead()], "retention": "limits", "discard": "new",
                "max_msgs": -1, "max_bytes": -1, "max_age": 0, "allow_direct": true,
            }),
        ),
        told(status, telling),
        told(chatter, chatty),
        bucket(&names.control_bucket(), CONTROL_AGE),
        bucket(&names.workers_bucket(), PRESENCE_AGE),
    ]
}

/// The bucket of records, as the store of the same address has it.
pub(super) fn records(prefix: &str) -> Wanted {
    bucket(&format!("{prefix}_records"), Duration::ZERO)
}

fn bucket(name: &str, age: Duration) -> Wanted {
    wanted(
        bucket_stream(name),
        json!({
            "subjects": [format!("$KV.{name}.>")], "retention": "limits", "discard": "new",
            "max_msgs_per_subject": 1, "max_age": nanos(age), "allow_direct": true,
            "allow_rollup_hdrs": true, "deny_delete": false,
        }),
    )
}

fn wanted(name: String, config: Value) -> Wanted {
    let Value::Object(config) = config else { return Wanted { name, config: Map::new() } };
    Wanted { name, config }
}

/// Makes and repairs all streams; what was done to each.
pub(super) async fn ensure(
    link: &Link,
    place: &Place,
    wanted: &[Wanted],
) -> Result<Vec<(String, Ensured)>, LinkError> {
    let made = wanted
        .iter()
        .map(|wanted| async { Ok((wanted.name.clone(), stream::ensure(link, place, wanted).await?)) });
    futures_util::future::try_join_all(made).await
}

/// Makes sure of the consumer of `queue` and `class`; how long the server waits for an acknowledgement there.
pub(super) async fn ensure_consumer(
    link: &Link,
    place: &Place,
    names: &Names,
    (queue, class): (&QueueName, PriorityClass),
    lease: Duration,
) -> Result<Duration, LinkError> {
    let name = Names::consumer(queue, class);
    let filter = names.place(Wait::Turn, queue, class);
    durable(link, place, &names.work_stream(), (&name, &filter), lease).await
}

/// Makes sure of the consumer of what waits for its time.
pub(super) async fn ensure_later(link: &Link, place: &Place, names: &Names) -> Result<(), LinkError> {
    let (name, filter) = (Names::later_consumer(), names.places(Wait::Time));
    durable(link, place, &names.work_stream(), (&name, &filter), MOVE_WAIT).await.map(drop)
}

/// An existing consumer stays as it is: others reckon with its acknowledgement time.
async fn durable(
    link: &Link,
    place: &Place,
    stream: &str,
    (name, filter): (&str, &str),
    ack_wait: Duration,
) -> Result<Duration, LinkError> {
    let info = match link.ask(&format!("CONSUMER.INFO.{stream}.{name}"), &json!({})).await {
        Ok(info) => info,
        Err(LinkError::Missing(_)) if place.manage => {
            let config = json!({
                "durable_name": name, "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
                "ack_wait": nanos(ack_wait), "max_deliver": -1, "max_ack_pending": -1, "max_waiting": MAX_WAITING,
                "filter_subject": filter,
            });
            let payload = json!({ "stream_name": stream, "config": config });
            link.ask(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &payload).await?
        }
        Err(LinkError::Missing(_)) => {
            return Err(LinkError::Missing(format!(
                "the consumer {name} of the stream {stream} is not there, and the address says manage=no: run longshore broker init --queue NAME"
            )));
        }
        Err(error) => return Err(error),
    };
    let config = info.get("config");
    let number = |field: &str| config.and_then(|config| config.get(field)).and_then(Value::as_u64);
    Ok(number("ack_wait").map_or(Duration::from_secs(30), Duration::from_nanos))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
