//! The AMQP bridge on a real RabbitMQ: custody of what runs long, forwarding, and the answers to callers.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use longshore::broker::{self, Broker, BrokerUrl, Delivery, Extended, Settled, Settlement};
use longshore::celery::{Backend, Results};
use longshore::events::{Event, EventData, EventSink, Notice};
use longshore::task::celery::{CeleryContext, Signature};
use longshore::task::{ArgMap, Fence, Limits, QueueName, Task, TaskId};

use crate::contract::dock::{
    Amqp, Dock, LONG, PROMPT, assert_nothing_comes, bodies, fetch_one, fetch_within, message, queue, submit,
};
use crate::support::poll::eventually;
use crate::support::redis::Redis;

const LEASE: Duration = Duration::from_secs(2);

/// A client whose deliveries go into custody at once.
async fn hurried(dock: &Amqp, worker: &str) -> Broker {
    let url = BrokerUrl::parse(&format!("{}&handoff_after=100ms", dock.url().expose())).unwrap();
    broker::open(&url, &dock.options(worker, &["default"], LEASE)).await.unwrap()
}

/// Waits until the client's one delivery is in custody; its queue.
async fn custody(broker: &Broker) -> String {
    eventually(Duration::from_secs(10), "the message is in custody", async || {
        let queues = broker.admin.queues().await.unwrap();
        queues
            .into_iter()
            .map(|info| info.name.to_string())
            .find(|name| name.starts_with("longshore.custody."))
    })
    .await
}

/// Extends the lease over `leases` of them.
async fn extend_over(delivery: &Delivery, leases: u32) {
    let end = tokio::time::Instant::now() + LEASE * leases;
    while tokio::time::Instant::now() < end {
        let extended = delivery.lease.extender.extend(LEASE).await.unwrap();
        assert!(matches!(extended, Extended::Until(_)), "a lease in custody was lost");
        tokio::time::sleep(LEASE / 4).await;
    }
}

#[tokio::test]
async fn a_renewed_custody_keeps_its_message_for_many_leases_and_is_gone_when_settled() {
    let dock = Amqp::start().await;
    let (one, other) = (hurried(&dock, "one").await, dock.client("other", &["default"], LONG).await);
    submit(&one, vec![message("a")]).await;
    let delivery = fetch_one(&one).await;
    custody(&one).await;
    extend_over(&delivery, 3).await;
    assert_nothing_comes(&other).await;
    assert_eq!(delivery.lease.settler.settle(Settlement::Ack).await, Settled::Settled);
    assert!(fetch_within(&other, 1, LEASE * 2).await.is_empty(), "a settled message came again");
}

#[tokio::test]
async fn a_message_in_custody_of_a_dead_worker_comes_back_within_a_lease() {
    let dock = Amqp::start().await;
    let (one, other) = (hurried(&dock, "one").await, dock.client("other", &["default"], LONG).await);
    submit(&one, vec![message("a")]).await;
    let delivery = fetch_one(&one).await;
    let id = delivery.message.clone();
    custody(&one).await;
    // Nobody extends it any more, as if its worker and that worker's disk were gone.
    let came = fetch_within(&other, 1, LEASE + PROMPT).await;
    assert_eq!(bodies(&came), ["a"]);
    assert_eq!(came[0].message, id);
    assert!(came[0].redelivered);
    assert_eq!(delivery.lease.settler.settle(Settlement::Ack).await, Settled::Lost);
}

#[tokio::test]
async fn what_is_given_back_from_custody_comes_again_once() {
    let dock = Amqp::start().await;
    let one = hurried(&dock, "one").await;
    submit(&one, vec![message("a")]).await;
    for settlement in [
        Settlement::Release { after: Duration::ZERO },
        Settlement::Retry { after: Duration::from_millis(50) },
    ] {
        let delivery = fetch_one(&one).await;
        custody(&one).await;
        assert_eq!(delivery.lease.settler.settle(settlement).await, Settled::Settled);
    }
    let delivery = fetch_one(&one).await;
    custody(&one).await;
    let reason = "bad".to_owned();
    assert_eq!(delivery.lease.settler.settle(Settlement::DeadLetter { reason }).await, Settled::Settled);
    assert_eq!(one.dead.list(None, 10).await.unwrap().len(), 1);
    assert!(fetch_within(&one, 1, LEASE * 2).await.is_empty(), "it came again though it was parked");
}

#[tokio::test]
async fn a_forwarded_message_keeps_its_bytes_and_headers() {
    let dock = Amqp::start().await;
    let one = dock.one().await;
    let headers =
        [("task".to_owned(), serde_json::json!("other")), ("id".to_owned(), serde_json::json!("x"))];
    let sent = broker::Submission { headers: headers.clone().into(), ..message("a") };
    submit(&one, vec![sent]).await;
    let delivery = fetch_one(&one).await;
    assert!(delivery.lease.settler.forwards());
    assert_eq!(delivery.lease.settler.forward(&queue("python")).await, Settled::Settled);
    let python = dock.client("python", &["python"], LONG).await;
    let delivery = fetch_one(&python).await;
    assert_eq!((delivery.body.as_ref(), delivery.headers), (&b"a"[..], headers.into()));
    assert!(!delivery.redelivered);
}

#[tokio::test]
async fn a_callers_queue_gets_the_result_of_its_task_and_one_that_is_gone_is_no_error() {
    let dock = Amqp::start().await;
    let url = dock.url();
    let address = url.expose();
    let connection = Connection::connect(address.split('?').next().unwrap(), ConnectionProperties::default());
    let channel = connection.await.unwrap().create_channel().await.unwrap();
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("caller".into(), options, FieldTable::default()).await.unwrap();
    let backend = Backend::open("", &url, Duration::from_secs(10)).await.unwrap().unwrap();
    let sink = Results::new(backend, Limits::default());
    for reply_to in ["gone", "caller"] {
        let notice = succeeded(reply_to);
        assert!(sink.wants(notice.task.as_ref().unwrap()));
        sink.deliver(&[notice]).await.unwrap();
    }
    let got = channel.basic_get("caller".into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(got.properties.correlation_id().as_ref().unwrap().as_str(), "asked");
    let result: serde_json::Value = serde_json::from_slice(&got.data).unwrap();
    assert_eq!((&result["status"], &result["task_id"]), (&"SUCCESS".into(), &"t".into()));
}

/// The good end of the task `t`, whose caller reads `reply_to`.
fn succeeded(reply_to: &str) -> Notice {
    let context = CeleryContext {
        id: "t".to_owned(),
        reply_to: Some(reply_to.to_owned()),
        correlation_id: Some("asked".to_owned()),
        ..CeleryContext::default()
    };
    let mut task = Task::new("docker_run", ArgMap::new());
    task.extra.insert(CeleryContext::KEY.to_owned(), context.to_value());
    let event = Event {
        task: TaskId::new("t").unwrap(),
        queue: QueueName::default(),
        fence: Fence(1),
        number: 0,
        time: jiff::Timestamp::now(),
        data: EventData::Succeeded { exit_code: Some(0) },
    };
    Notice { event: Arc::new(event), task: Some(Arc::new(task)) }
}

#[tokio::test]
async fn whoever_waits_for_what_can_never_follow_a_failed_task_hears_of_it() {
    let redis = Redis::start().await;
    let broker = BrokerUrl::parse("amqp://localhost").unwrap();
    let backend = Backend::open(&redis.url(), &broker, Duration::from_secs(10)).await.unwrap().unwrap();
    let sink = Results::new(backend, Limits::default());
    let signature = |id: &str| Signature {
        task: "py.next".to_owned(),
        immutable: false,
        document: serde_json::json!({"task": "py.next", "options": {"task_id": id}}).to_string(),
    };
    let context = CeleryContext {
        id: "t".to_owned(),
        chain: vec![signature("next")],
        chord: Some(signature("body")),
        ..CeleryContext::default()
    };
    let mut notice = succeeded("nobody");
    let mut task = Task::new("docker_run", ArgMap::new());
    task.extra.insert(CeleryContext::KEY.to_owned(), context.to_value());
    let event = Event { data: EventData::Dead { reason: "no chords".to_owned() }, ..(*notice.event).clone() };
    notice.task = Some(Arc::new(task));
    notice.event = Arc::new(event);
    assert!(sink.wants(notice.task.as_ref().unwrap()));
    sink.deliver(&[notice]).await.unwrap();
    let mut connection = redis.connection().await;
    for (id, class) in [("t", "InvalidTaskError"), ("next", "InvalidTaskError"), ("body", "ChordError")] {
        let key = format!("celery-task-meta-{id}");
        let told: String = ::redis::cmd("GET").arg(key).query_async(&mut connection).await.unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["status"], &told["task_id"]), (&"FAILURE".into(), &id.into()));
        assert_eq!(told["result"]["exc_type"], class, "{told}");
        assert!(told["result"]["exc_message"][0].as_str().unwrap().contains("no chords"), "{told}");
    }
}
