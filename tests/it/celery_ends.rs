//! Celery tasks that must not start, or not go on: wherever they are, their Girder job gets its final status.

use std::time::Duration;

use longshore::broker::{self, Broker, BrokerUrl, Command, OpenOptions};
use longshore::task::TaskId;
use serde_json::{Value, json};

use crate::support::celery::Producer;
use crate::support::docker::{docker, engine};
use crate::support::girder::{Girder, GirderJob};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;

const PATIENCE: Duration = Duration::from_secs(60);
const PING: &str = "longshore.ping";
/// What Girder calls these states.
const ERROR: i64 = 4;
const CANCELED: i64 = 5;

struct Rig {
    longshore: Longshore,
    girder: Girder,
    producer: Producer,
    broker: Broker,
}

impl Rig {
    async fn new() -> Rig {
        let (rabbit, girder) = (RabbitMq::vhost().await, Girder::shared().await);
        let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", rabbit.url()));
        let producer = Producer::on(&rabbit.url(), "celery").await;
        let options = OpenOptions {
            queues: Vec::new(),
            worker: "test".to_owned(),
            incarnation: "1".to_owned(),
            lease: PATIENCE,
            connect_timeout: PATIENCE,
            event_age: PATIENCE,
            event_count: 1,
        };
        let broker = broker::open(&BrokerUrl::parse(&rabbit.url()).unwrap(), &options).await.unwrap();
        Rig { longshore, girder, producer, broker }
    }

    /// Sends a task with a job of its own; its id.
    async fn send(&self, task: &str, job: &GirderJob, mut headers: Value, kwargs: &Value) -> String {
        let id = uuid::Uuid::now_v7().to_string();
        headers["jobInfoSpec"] = job.spec.clone();
        headers["girder_api_url"] = json!(self.girder.api_url());
        self.producer.send(task, &id, &headers, kwargs).await;
        id
    }

    /// As a worker puts it down that hears of a revocation.
    async fn revoke(&self, id: &str) {
        let task = TaskId::new(id).unwrap();
        self.broker.topic.command(Command::Cancel { task, reason: "revoked".to_owned() }).await.unwrap();
    }

    async fn job_is(&self, job: &GirderJob, status: i64) -> Value {
        eventually(PATIENCE, &format!("the job has the status {status}"), async || {
            let seen = self.girder.get(&format!("job/{}", job.id)).await;
            (seen["status"] == status).then_some(seen)
        })
        .await
    }

    async fn record(&self, id: &str) -> Value {
        let said = self.longshore.run(&["task", "show", id, "--output", "json"]).await;
        serde_json::from_str(&said.stdout).unwrap_or_default()
    }

    /// The task ended without ever having run.
    async fn never_ran(&self, id: &str, why: &str) {
        let record = self.record(id).await;
        assert_eq!(record["status"], "canceled", "{record}");
        assert!(record["outcome"]["reason"].as_str().unwrap().contains(why), "{record}");
        assert_eq!(record["times"].get("started"), None, "{record}");
    }
}

fn in_seconds(seconds: i64) -> Value {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    json!(at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string())
}

#[tokio::test]
async fn a_task_that_expired_in_its_queue_never_starts_and_its_job_is_canceled() {
    let rig = Rig::new().await;
    let job = rig.girder.job("expired").await;
    let expired = rig.send(PING, &job, json!({"expires": in_seconds(-1)}), &json!({})).await;
    let early = rig.girder.job("expired-before-its-time").await;
    let headers = json!({"expires": in_seconds(-1), "eta": in_seconds(3_600)});
    let held = rig.send(PING, &early, headers, &json!({})).await;
    let _worker = rig.longshore.worker(&["-c", "2"]).await;
    for (id, job) in [(&expired, &job), (&held, &early)] {
        rig.job_is(job, CANCELED).await;
        rig.never_ran(id, "it expired").await;
    }
}

#[tokio::test]
async fn a_revoked_task_never_starts_whether_it_waits_in_its_queue_or_for_its_time_or_was_taken_already() {
    let rig = Rig::new().await;
    let [queued, held, taken] =
        [rig.girder.job("queued").await, rig.girder.job("held").await, rig.girder.job("taken").await];
    let queued_id = rig.send(PING, &queued, json!({}), &json!({})).await;
    rig.revoke(&queued_id).await;
    let worker = rig.longshore.worker(&["-c", "1"]).await;
    rig.job_is(&queued, CANCELED).await;
    rig.never_ran(&queued_id, "").await;

    let held_id = rig.send(PING, &held, json!({"eta": in_seconds(4)}), &json!({})).await;
    let busy = uuid::Uuid::now_v7().to_string();
    rig.producer.send(PING, &busy, &json!({}), &json!({"sleep": "300s"})).await;
    let taken_id = rig.send(PING, &taken, json!({}), &json!({})).await;
    eventually(PATIENCE, "it waits for the lane", async || {
        (rig.record(&taken_id).await["status"] == "staging").then_some(())
    })
    .await;
    for id in [&held_id, &taken_id] {
        rig.revoke(id).await;
    }
    rig.job_is(&taken, CANCELED).await;
    rig.never_ran(&taken_id, "").await;
    rig.job_is(&held, CANCELED).await;
    rig.never_ran(&held_id, "").await;
    assert_eq!(rig.record(&busy).await["status"], "staging", "{}", worker.log());
}

#[tokio::test]
async fn a_time_limit_stops_the_container_and_fails_task_and_job() {
    engine().await;
    let rig = Rig::new().await;
    let _worker = rig.longshore.worker(&["-c", "2"]).await;
    for (limits, class) in [(json!([2, null]), "hard"), (json!([60, 1.5]), "soft")] {
        let job = rig.girder.job(class).await;
        let kwargs = json!({
            "image": "busybox:latest", "pull_image": false, "entrypoint": ["sleep"], "container_args": ["300"],
            "network_mode": "none",
        });
        let name = "girder_worker.docker.tasks.docker_run";
        let id = rig.send(name, &job, json!({"timelimit": limits}), &kwargs).await;
        let seen = rig.job_is(&job, ERROR).await;
        assert!(seen["log"].to_string().contains("time limit"), "{seen}");
        let record = rig.record(&id).await;
        assert_eq!(
            (&record["status"], &record["outcome"]["error"]["code"]),
            (&json!("failed"), &json!("time_limit")),
            "{record}"
        );
        let container = record["details"]["container"].as_str().unwrap();
        eventually(PATIENCE, "the container is gone", async || {
            docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &format!("id={container}")])
                .await
                .is_empty()
                .then_some(())
        })
        .await;
    }
}
