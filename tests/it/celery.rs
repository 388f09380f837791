//! A worker in a Celery worker's place, seen by a real Celery client over a real RabbitMQ and over a real Redis.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::celery::Peer;
use crate::support::docker::engine;
use crate::support::longshore::Longshore;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const CLIENT_WITHIN: Duration = Duration::from_secs(150);

/// What the client saw.
async fn client(broker: &str, node: &str, backend: &str) -> Value {
    let peer = if broker.starts_with("redis") { Peer::of_redis().await } else { Peer::installed().await };
    peer.ask(peer.python(&["client.py", broker, node, backend]), CLIENT_WITHIN).await
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

#[tokio::test]
async fn its_queues_change_by_remote_control_and_what_was_revoked_outlasts_the_worker() {
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::installed().await);
    let settings = format!("brokers = [\"{}\"]\n", rabbit.url());
    queues_change_and_revocations_last(&peer, &settings, &rabbit.url()).await;
}

#[tokio::test]
async fn over_redis_its_queues_change_and_what_was_revoked_outlasts_the_worker_alike() {
    let (redis, peer) = (Redis::start().await, Peer::of_redis().await);
    let settings = format!("brokers = [\"celery+{}\"]\n[celery]\nresult_backend = \"rpc://\"\n", redis.url());
    queues_change_and_revocations_last(&peer, &settings, &redis.url()).await;
}

async fn queues_change_and_revocations_last(peer: &Peer, settings: &str, url: &str) {
    let longshore = Longshore::with_settings(settings);
    let (node, unborn) = ("longshore@quay", uuid::Uuid::now_v7().to_string());
    let ask = async |when: &str| {
        peer.ask(peer.python(&["remote.py", url, node, when, &unborn]), CLIENT_WITHIN).await
    };
    let mut worker = longshore.worker(&["-c", "1", "-n", "quay"]).await;
    let seen = ask("before").await;
    assert_eq!(seen["added"], json!([{ "ok": "add consumer late" }, { "ok": "add consumer late" }]));
    assert!(seen["exchange"]["error"].as_str().unwrap().contains("bind the queue"), "{}", seen["exchange"]);
    assert!(seen["unnamed"]["error"].as_str().unwrap().contains("queue"), "{}", seen["unnamed"]);
    assert_eq!((&seen["ran"], &seen["queues"]), (&json!(["SUCCESS", null]), &json!(["celery", "late"])));
    assert_eq!(
        (&seen["canceled"], &seen["left"]),
        (&json!({ "ok": "no longer consuming from late" }), &json!(["celery"]))
    );
    let fixed = seen["fixed"].as_array().unwrap();
    assert_eq!(fixed[2], json!({ "error": "unknown task" }));
    for (answer, remedy) in [
        (&fixed[0], "-c"),
        (&fixed[1], "-c"),
        (&fixed[3], "worker.concurrency"),
        (&fixed[4], "worker.task_timeout"),
    ] {
        assert!(answer["error"].as_str().unwrap().contains(remedy), "{answer}");
    }
    assert!(seen["memory"].as_str().unwrap().ends_with("MB"));
    assert_eq!(seen["greeted"], json!([unborn, "told-by-another"]));

    worker.kill();
    // Another one, with nothing of the first one's on its disk.
    let successor = Longshore::with_settings(settings);
    let _worker = successor.worker(&["-c", "1", "-n", "quay"]).await;
    let seen = ask("after").await;
    let revoked = seen["revoked"].as_array().unwrap();
    assert!(revoked.contains(&json!(unborn)) && revoked.contains(&json!("told-by-another")), "{revoked:?}");
    for which in ["unborn", "told"] {
        assert_eq!(seen[which], json!(["REVOKED", "revoked: revoked"]));
    }
}

#[tokio::test]
async fn what_waits_for_its_time_is_shown_and_ends_at_once_when_it_is_revoked() {
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::installed().await);
    let settings = format!("brokers = [\"{}\"]\n", rabbit.url());
    what_waits_is_shown_and_revoked(&peer, &settings, (&rabbit.url(), "rpc://")).await;
}

#[tokio::test]
async fn over_redis_what_waits_for_its_time_is_shown_and_ends_at_once_when_it_is_revoked() {
    let (redis, peer) = (Redis::start().await, Peer::of_redis().await);
    let url = redis.url();
    let settings = format!("brokers = [\"celery+{url}\"]\n[celery]\nresult_backend = \"{url}\"\n");
    what_waits_is_shown_and_revoked(&peer, &settings, (&url, &url)).await;
}

async fn what_waits_is_shown_and_revoked(peer: &Peer, settings: &str, (broker, backend): (&str, &str)) {
    let longshore = Longshore::with_settings(settings);
    let node = "longshore@quay";
    let _worker = longshore.worker(&["-c", "3", "-n", "quay"]).await;
    let seen = peer.ask(peer.python(&["later.py", broker, node, backend]), CLIENT_WITHIN).await;
    let (id, scheduled) = (&seen["id"], &seen["scheduled"][0]);
    assert_eq!(
        (&scheduled["request"]["id"], &scheduled["request"]["name"], &scheduled["request"]["time_start"]),
        (id, &json!("longshore.ping"), &Value::Null),
        "{seen}"
    );
    assert!(scheduled["eta"].as_str().unwrap().starts_with("20"), "{scheduled}");
    assert_eq!((&seen["queried"][0], &seen["queried"][1]["id"]), (&json!("scheduled"), id));
    assert_eq!((&seen["revoked"][0], &seen["revoked"][1]), (&json!("REVOKED"), &json!("revoked: revoked")));
    assert_eq!(seen["left"], json!([]), "what was revoked is still shown");
    // It waits at the broker for ten minutes; its record says now how it ended.
    let record = longshore.ok(&["task", "show", id.as_str().unwrap(), "--output", "json"]).await;
    assert!(record.contains("\"canceled\""), "{record}");

    let pong = json!([{ node: { "ok": "pong" } }]);
    assert_eq!(seen["patterns"], json!([pong, pong, []]));

    let said = |key: &str| seen[key][0][node]["ok"].as_str().unwrap_or_else(|| panic!("{seen}")).to_owned();
    assert_eq!(said("flagged"), "headers {'batch': ['7']} flagged as revoked, but not terminated");
    assert_eq!((&seen["never"][0], &seen["other"][0]), (&json!("REVOKED"), &json!("SUCCESS")));
    assert_eq!(said("terminated"), "headers {'batch': ['7']} revoked");
    assert_eq!(seen["stopped"][0], json!("REVOKED"));
}
