//! A worker in a Celery worker's place, seen by a real Celery client over a real RabbitMQ and over a real Redis.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::docker::engine;
use crate::support::longshore::Longshore;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const CLIENT_WITHIN: Duration = Duration::from_secs(150);

/// What the client saw.
async fn client(broker: &str, node: &str, backend: &str) -> Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    // The client of RabbitMQ has no library for Redis, as many have none.
    let environment = if broker.starts_with("redis") { "redis" } else { "" };
    let mut install = Command::new(tests.join("peer/celery/install"));
    install.args(Some(environment).filter(|name| !name.is_empty()));
    assert!(install.status().await.unwrap().success());
    let folder = if environment.is_empty() { "celery".to_owned() } else { format!("celery-{environment}") };
    let running = Command::new(tests.join(".cache").join(folder).join("bin/python"))
        .arg(tests.join("peer/celery/client.py"))
        .args([broker, node, backend])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(CLIENT_WITHIN, running).await.expect("the client ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_celery_client_gets_results_looks_at_the_worker_revokes_and_shuts_it_down() {
    let rabbit = RabbitMq::vhost().await;
    let settings = format!("brokers = [\"{}\"]\n", rabbit.url());
    a_client_is_served(&settings, &rabbit.url(), "rpc://").await;
}

#[tokio::test]
async fn a_celery_client_of_redis_is_served_alike() {
    let redis = Redis::start().await;
    let settings =
        format!("brokers = [\"celery+{}\"]\n[celery]\nresult_backend = \"{}\"\n", redis.url(), redis.url());
    a_client_is_served(&settings, &redis.url(), &redis.url()).await;
}

#[tokio::test]
async fn a_celery_client_of_redis_may_read_its_results_from_a_queue_of_its_own() {
    let redis = Redis::start().await;
    let settings = format!("brokers = [\"celery+{}\"]\n[celery]\nresult_backend = \"rpc://\"\n", redis.url());
    a_client_is_served(&settings, &redis.url(), "rpc://").await;
}

async fn a_client_is_served(settings: &str, broker: &str, backend: &str) {
    engine().await;
    let longshore = Longshore::with_settings(settings);
    let mut worker = longshore.worker(&["-Q", "celery,gpu", "-c", "2", "-n", "quay", "-Ofair"]).await;
    let node = "longshore@quay";
    let seen = client(broker, node, backend).await;

    assert_eq!(seen["good"], json!(["SUCCESS", null]));
    assert_eq!(
        seen["bad"],
        json!(["FAILURE", "DockerException: Non-zero exit code from docker container (3)."])
    );
    assert_eq!(seen["ping"], json!({ "ok": "pong" }));
    assert_eq!(seen["registered"][0], "girder_worker.docker.tasks.docker_run");
    assert_eq!(
        (&seen["active_queues"][0]["name"], &seen["active_queues"][1]["name"]),
        (&json!("celery"), &json!("gpu"))
    );
    assert_eq!((&seen["scheduled"], &seen["reserved"]), (&json!([]), &json!([])));
    assert_eq!(seen["stats"]["pool"]["max-concurrency"], 2);
    assert!(seen["report"]["ok"].as_str().unwrap().contains("longshore"));
    assert!(seen["clock"]["clock"].as_u64().unwrap() > 0);
    assert_eq!(seen["conf"]["worker_concurrency"], 2);
    assert!(!seen["conf"].to_string().contains("guest:guest"), "{}", seen["conf"]);
    assert_eq!(seen["unknown"], json!([{ node: { "error": "KeyError('no_such')" } }]));
    assert_eq!(seen["others"], json!([]), "a request for another was answered");
    assert_eq!(seen["greeted"][node]["revoked"], json!([]));

    let (running, unborn) = (&seen["ids"]["running"], &seen["ids"]["unborn"]);
    assert_eq!((&seen["active"][node][0]["id"], &seen["active"][node][0]["args"]), (running, &json!([])));
    assert_eq!(seen["queried"][node][running.as_str().unwrap()][0], "active");
    assert_eq!(seen["stopped"], json!(["REVOKED", "revoked: revoked"]));
    assert_eq!(seen["unborn"], json!(["REVOKED", "revoked: revoked"]), "a revoked task was started");
    assert_eq!(seen["revoked"][node], json!([running, unborn]));
    assert_eq!(seen["told"], false, "a value of the environment was told");

    assert_eq!(seen["enabled"][0], json!([{ node: { "ok": "task events enabled" } }]));
    assert_eq!(seen["enabled"][1], json!([{ node: { "ok": "task events already enabled" } }]));
    let kinds = |uuid: &Value| -> Vec<&str> {
        let events = seen["events"].as_array().unwrap().iter().filter(|event| event[1] == *uuid);
        events.map(|event| event[0].as_str().unwrap()).collect()
    };
    assert_eq!(kinds(running), ["task-received", "task-started", "task-revoked"]);
    assert_eq!(kinds(unborn), ["task-revoked"]);
    for kind in ["worker-heartbeat", "worker-offline", "task-succeeded", "task-failed"] {
        assert!(seen["events"].to_string().contains(kind), "no {kind} in {}", seen["events"]);
    }
    let name = "girder_worker.docker.tasks.docker_run";
    assert_eq!(seen["states"][running.as_str().unwrap()], json!([name, "REVOKED", node]));
    // The AMQP client writes whole messages to its log, tokens and all.
    assert!(!worker.log().contains("io_loop"), "{}", worker.log());
    assert!(worker.end().await.success());
}
