//! Celery's side of a test: messages as its producers send them, and its own clients and workers in Python.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::process::Command;

/// The Python environment of Celery's clients.
pub(crate) struct Peer {
    folder: PathBuf,
    python: PathBuf,
}

impl Peer {
    /// Installed where it is not.
    pub(crate) async fn installed() -> Peer {
        Peer::made("celery", &[], "celery").await
    }

    /// With the library for Redis, which the client of RabbitMQ has not, as many have it not.
    pub(crate) async fn of_redis() -> Peer {
        Peer::made("celery", &["redis"], "celery-redis").await
    }

    async fn made(kind: &str, arguments: &[&str], environment: &str) -> Peer {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let folder = tests.join("peer").join(kind);
        let installed = Command::new(folder.join("install")).args(arguments).status().await;
        let installed = installed.expect("a script can be started");
        assert!(installed.success(), "the Python environment {environment} cannot be installed");
        Peer { folder, python: tests.join(".cache").join(environment).join("bin/python") }
    }

    /// Girder's, which has girder_worker and its tasks.
    pub(crate) async fn girder() -> Peer {
        Peer::made("girder", &[], "girder").await
    }

    /// Python with these arguments, beside the peer's scripts.
    pub(crate) fn python(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.python);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs one to its end and reads the JSON in its last line; what girder_worker logs stands before it.
    pub(crate) async fn ask(&self, command: std::process::Command, within: Duration) -> Value {
        let running = Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(within, running).await.expect("the client ends");
        let output = output.expect("python can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout);
        let last = printed.lines().next_back().unwrap_or_default();
        serde_json::from_str(last)
            .unwrap_or_else(|error| panic!("the client prints JSON ({error}): {printed}"))
    }
}

/// A producer in the place of Celery's, on one queue.
pub(crate) struct Producer {
    _connection: Connection,
    channel: Channel,
    queue: String,
    answers: Option<String>,
}

impl Producer {
    /// On the broker at `url`; the queue is made as Celery makes it.
    pub(crate) async fn on(url: &str, queue: &str) -> Producer {
        let connection =
            Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ accepts");
        let channel = connection.create_channel().await.expect("RabbitMQ opens a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("RabbitMQ confirms");
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let made = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        made.expect("the queue can be declared");
        Producer { _connection: connection, channel, queue: queue.to_owned(), answers: None }
    }

    /// The same with results in this queue.
    pub(crate) fn answered_in(self, queue: &str) -> Producer {
        Producer { answers: Some(queue.to_owned()), ..self }
    }

    /// Sends a task of protocol 2; `headers` are laid over the usual ones.
    pub(crate) async fn send(&self, task: &str, id: &str, headers: &Value, kwargs: &Value) {
        let mut all = json!({
            "lang": "py", "task": task, "id": id, "root_id": id, "parent_id": null, "retries": 0, "eta": null,
            "expires": null, "timelimit": [null, null], "ignore_result": false,
        });
        for (name, value) in headers.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let body: Value =
            json!([[], kwargs, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
        let body = body.to_string();
        let AMQPValue::FieldTable(table) = amqp(&all) else { panic!("headers are a map") };
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(2)
            .with_priority(0)
            .with_correlation_id(id.into())
            .with_headers(table);
        if let Some(answers) = &self.answers {
            properties = properties.with_reply_to(answers.as_str().into());
        }
        let sent = self.channel.basic_publish(
            "".into(),
            self.queue.as_str().into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            properties,
        );
        sent.await.expect("RabbitMQ takes it").await.expect("RabbitMQ confirms it");
    }
}

fn amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(truth) => AMQPValue::Boolean(*truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => AMQPValue::LongLongInt(integer),
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        Value::Array(items) => AMQPValue::FieldArray(items.iter().map(amqp).collect::<Vec<_>>().into()),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(name, value)| (ShortString::from(name.as_str()), amqp(value)));
            AMQPValue::FieldTable(FieldTable::from(entries.collect::<BTreeMap<_, _>>()))
        }
    }
}
