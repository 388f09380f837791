//! The bridge among queues, exchanges and accidents that are not its own: quorum queues, native delays, queues that are
//! deleted, connections that are cut, declarations that clash.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lapin::options::{
    BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use longshore::broker::{BrokerError, Settled, Settlement, Submission};
use longshore::cancel::CancelScope;
use longshore::task::celery::CeleryContext;
use longshore::task::{Decoded, Limits, message as messages};
use serde_json::{Value, json};

use crate::contract::dock::{Amqp, Dock, LONG, bodies, fetch_one, message, submit};
use crate::support::celery::{Peer, Producer};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;

const PATIENCE: Duration = Duration::from_secs(30);

/// An operator on the virtual host of `dock`.
async fn operator(dock: &Amqp) -> (Connection, Channel) {
    let url = dock.url();
    let address = url.expose();
    let connection = Connection::connect(address.split('?').next().unwrap(), ConnectionProperties::default());
    let connection = connection.await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn declare(channel: &Channel, name: &str, arguments: &[(&str, AMQPValue)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, table).await.unwrap();
}

#[tokio::test]
async fn a_quorum_queue_of_others_is_used_as_it_is_and_its_delivery_limit_is_never_reached() {
    let dock = Amqp::start().await;
    let (_connection, channel) = operator(&dock).await;
    let limited = [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-delivery-limit", AMQPValue::LongInt(4)),
    ];
    declare(&channel, "default", &limited).await;
    let one = dock.one().await;
    submit(&one, vec![message("a"), message("b")]).await;
    for _ in 0..9 {
        let delivery = fetch_one(&one).await;
        let back = Settlement::Release { after: Duration::ZERO };
        assert_eq!(delivery.lease.settler.settle(back).await, Settled::Settled);
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        let delivery = fetch_one(&one).await;
        seen.extend(bodies(std::slice::from_ref(&delivery)));
        assert_eq!(delivery.lease.settler.settle(Settlement::Ack).await, Settled::Settled);
    }
    seen.sort();
    assert_eq!(seen, ["a", "b"]);
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_its_consumer_is_made_again() {
    let dock = Amqp::start().await;
    let (_connection, channel) = operator(&dock).await;
    let (one, producer) = (dock.one().await, dock.client("producer", &["default"], LONG).await);
    submit(&one, vec![message("a")]).await;
    assert_eq!(fetch_one(&one).await.lease.settler.settle(Settlement::Ack).await, Settled::Settled);
    let waiting = tokio::spawn({
        let one = one.clone();
        async move {
            let stop = CancelScope::new();
            loop {
                // As intake does: what fails once is asked for again.
                match one.source.fetch(1, &stop).await {
                    Ok(found) => break found,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    channel.queue_delete("default".into(), QueueDeleteOptions::default()).await.unwrap();
    submit(&producer, vec![message("b")]).await;
    let found = tokio::time::timeout(PATIENCE, waiting).await.expect("the queue is read again").unwrap();
    assert_eq!(bodies(&found), ["b"]);
}

#[tokio::test]
async fn a_message_that_celery_delayed_natively_is_of_the_queue_it_comes_from_and_due() {
    let dock = Amqp::start().await;
    let (_connection, channel) = operator(&dock).await;
    declare(&channel, "default", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let exchange = "celery_delayed_delivery";
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .unwrap();
    let options = QueueBindOptions::default();
    channel
        .queue_bind("default".into(), exchange.into(), "#.default".into(), options, FieldTable::default())
        .await
        .unwrap();
    let mut headers = FieldTable::default();
    for (name, value) in [("task", "longshore.ping"), ("id", "t"), ("eta", "2026-01-01T00:00:00+00:00")] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    headers.insert(
        "x-death".into(),
        AMQPValue::FieldArray(vec![AMQPValue::FieldTable(FieldTable::default())].into()),
    );
    let properties =
        BasicProperties::default().with_content_type("application/json".into()).with_headers(headers);
    let key = format!("{}.default", ["0"; 28].join("."));
    let body = b"[[], {}, {}]";
    channel
        .basic_publish(exchange.into(), key.as_str().into(), BasicPublishOptions::default(), body, properties)
        .await
        .unwrap();
    let delivery = fetch_one(&dock.one().await).await;
    assert!(!delivery.headers.contains_key("x-death"), "{:?}", delivery.headers);
    let Ok(Decoded::Task(task)) = messages::decode(&delivery.raw(), &Limits::default()) else { panic!() };
    assert_eq!((task.queue.as_str(), task.kind.as_str()), ("default", "longshore.ping"));
    assert!(
        task.not_before.is_some_and(|due| due < Timestamp::now())
            && task.extra.contains_key(CeleryContext::KEY)
    );
}

/// A real Celery producer of quorum queues: what it saw of one task.
async fn producer_of_quorum_queues(peer: &Peer, rabbit: &RabbitMq, when: &str) -> (Value, f64) {
    let seen = peer.ask(peer.python(&["delayed.py", &rabbit.url(), when]), PATIENCE * 2).await;
    assert_eq!((&seen[0], &seen[1]), (&json!("SUCCESS"), &Value::Null), "{seen}");
    (seen[0].clone(), seen[2].as_f64().unwrap())
}

#[tokio::test]
async fn what_a_celery_producer_delays_natively_reaches_a_worker_that_found_its_quorum_queue() {
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::installed().await);
    let connection = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare(&channel, "celery", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", rabbit.url()));
    let _worker = longshore.worker(&["-c", "1"]).await;
    producer_of_quorum_queues(&peer, &rabbit, "now").await;
    let (_, after) = producer_of_quorum_queues(&peer, &rabbit, "later").await;
    assert!(after >= 2.5, "it came after {after} s");
}

#[tokio::test]
async fn a_worker_may_make_the_quorum_queue_itself_and_all_that_native_delays_need() {
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::installed().await);
    let settings = format!("brokers = [\"{}?queue_type=quorum\"]\n", rabbit.url());
    let longshore = Longshore::with_settings(&settings);
    let _worker = longshore.worker(&["-c", "1"]).await;
    // What is answered shows that its queue is read.
    producer_of_quorum_queues(&peer, &rabbit, "now").await;
    let (_, after) = producer_of_quorum_queues(&peer, &rabbit, "later").await;
    assert!(after >= 2.5, "it came after {after} s");
    // A Python worker that comes later declares the same.
    let script = "import sys\nfrom kombu import Connection, Exchange, Queue\nfrom kombu.transport import native_delayed_delivery as native\n\
                  with Connection(sys.argv[1]) as connection:\n    \
                  native.declare_native_delayed_delivery_exchanges_and_queues(connection, 'quorum')\nprint('[]')";
    assert_eq!(peer.ask(peer.python(&["-c", script, &rabbit.url()]), PATIENCE * 2).await, json!([]));
}

#[tokio::test]
async fn a_declaration_that_clashes_is_explained_with_the_remedy() {
    let dock = Amqp::start().await;
    let (_connection, channel) = operator(&dock).await;
    declare(&channel, "longshore.delay.default.10000", &[]).await;
    let one = dock.one().await;
    let later = Submission {
        not_before: Some(Timestamp::now() + Duration::from_millis(10_900)),
        headers: BTreeMap::new(),
        ..message("a")
    };
    let error = one.submit.submit(vec![later]).await.unwrap_err();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    let told = error.to_string();
    assert!(
        told.contains("longshore.delay.default.10000") && told.contains("406") && told.contains("delete it"),
        "{told}"
    );
}

#[tokio::test]
async fn a_worker_whose_connections_are_cut_goes_on_with_all_that_it_had_declared() {
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::installed().await);
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", rabbit.url()));
    let _worker = longshore.worker(&["-c", "2", "-n", "quay"]).await;
    let record = async |id: &str| -> Value {
        let said = longshore.run(&["task", "show", id, "--output", "json"]).await;
        serde_json::from_str(&said.stdout).unwrap_or_default()
    };
    let until = async |id: &str, status: &str| {
        eventually(PATIENCE, &format!("{id} is {status}"), async || {
            (record(id).await["status"] == status).then_some(())
        })
        .await;
    };
    let before = Producer::on(&rabbit.url(), "celery").await;
    before.send("longshore.ping", "running", &json!({}), &json!({"sleep": "300s"})).await;
    until("running", "staging").await;
    rabbit.disconnect();
    // Its tasks, its commands and its remote control.
    let after = Producer::on(&rabbit.url(), "celery").await;
    after.send("longshore.ping", "next", &json!({}), &json!({})).await;
    until("next", "succeeded").await;
    longshore.ok(&["task", "cancel", "running"]).await;
    until("running", "canceled").await;
    // What is broadcast before the mailbox stands again reaches nobody.
    let script = "import json, sys\nfrom celery import Celery\napp = Celery(broker=sys.argv[1], backend='rpc://')\n\
                  asked = (app.control.ping(destination=['longshore@quay'], timeout=1, limit=1) for _ in range(30))\n\
                  print(json.dumps(next((answer for answer in asked if answer), [])))";
    let answer = peer.ask(peer.python(&["-c", script, &rabbit.url()]), PATIENCE * 2).await;
    assert_eq!(answer, json!([{ "longshore@quay": { "ok": "pong" } }]));
    assert_eq!(record("running").await["attempts"], 1);
}
