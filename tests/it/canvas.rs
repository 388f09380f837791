//! Chains, callbacks and errbacks of a real Celery producer: longshore runs a task, a Python worker what follows it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::celery::Peer;
use crate::support::docker::engine;
use crate::support::longshore::Longshore;
use crate::support::process::tied_to_this_thread;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const CLIENT_WITHIN: Duration = Duration::from_secs(110);

/// What Celery's programs talk over.
struct Site {
    peer: Peer,
    broker: String,
    backend: String,
    /// The same in longshore's settings.
    settings: String,
}

impl Site {
    async fn on(rabbit: &RabbitMq) -> Site {
        let settings = format!("brokers = [\"{}\"]\n", rabbit.url());
        let peer = Peer::installed().await;
        Site { peer, broker: rabbit.url(), backend: "rpc://".to_owned(), settings }
    }

    async fn on_redis(redis: &Redis) -> Site {
        let url = redis.url();
        let settings = format!("brokers = [\"celery+{url}\"]\n[celery]\nresult_backend = \"{url}\"\n");
        Site { peer: Peer::of_redis().await, broker: url.clone(), backend: url, settings }
    }

    /// Python in the environment of `tests/peer/celery/tasks.py`.
    fn python(&self, arguments: &[&str], notes: &Path) -> Command {
        let mut command = self.peer.python(arguments);
        command.env("PEER_BROKER", &self.broker).env("PEER_BACKEND", &self.backend).env("PEER_NOTES", notes);
        command
    }
}

/// A Python worker of the queue `celery`; dropping it kills it.
struct PythonWorker(std::process::Child);

impl PythonWorker {
    fn arguments(app: &str) -> [&str; 11] {
        ["-m", "celery", "-A", app, "worker", "-P", "solo", "-n", "peer@here", "-l", "warning"]
    }

    fn run(command: &Command) -> Self {
        let folder = command.get_current_dir().unwrap();
        Self(tied_to_this_thread(command).current_dir(folder).env("C_FORCE_ROOT", "1").spawn().unwrap())
    }
}

impl Drop for PythonWorker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_follows_a_task_runs_in_a_python_worker_as_from_celery_itself() {
    let rabbit = RabbitMq::vhost().await;
    everything_follows(Site::on(&rabbit).await).await;
}

#[tokio::test]
async fn what_follows_a_task_runs_in_a_python_worker_of_redis_alike() {
    let redis = Redis::start().await;
    everything_follows(Site::on_redis(&redis).await).await;
}

async fn everything_follows(site: Site) {
    let longshore = Longshore::with_settings(&site.settings);
    let notes = longshore.folder().join("notes");
    let _worker = longshore.worker(&["-Q", "ships", "-c", "2", "-n", "quay"]).await;
    let _python = PythonWorker::run(&site.python(&PythonWorker::arguments("tasks"), &notes));
    let seen = site.peer.ask(site.python(&["canvas.py", "ships"], &notes), CLIENT_WITHIN).await;

    assert_eq!(seen["chain"], json!(["second"]), "an immutable one got the result of the one before: {seen}");
    assert_eq!(seen["first"], json!([null, "first"]));
    assert_eq!(seen["two of ours"], json!([null, "after two"]));
    assert_eq!(seen["group"], json!([[null, "g1"], [null, "g2"]]));

    let noted = |call: &Value, text: &str| call["args"].as_array().unwrap().last() == Some(&json!(text));
    let calls = seen["noted"].as_array().unwrap_or_else(|| panic!("{seen}"));
    let find = |text: &str| {
        calls.iter().find(|call| noted(call, text)).unwrap_or_else(|| panic!("no {text} in {calls:?}"))
    };
    let (one, inner, outer) = (find("one"), find("inner"), find("outer"));
    let parent = &seen["called"][0];
    assert_eq!((&one["args"], &one["parent"], &one["root"]), (&json!([null, "one"]), parent, parent));
    assert_eq!((&inner["args"], &inner["parent"]), (&json!([null, "inner"]), parent));
    assert_eq!((&outer["args"], &outer["parent"]), (&json!([[null, "inner"], "outer"]), &inner["id"]));
    assert_eq!(&outer["root"], parent);
    assert_eq!(seen["called"][2], json!([one["group"]]), "its children");
    assert_eq!((&outer["group"], &inner["group"]), (&one["group"], &Value::Null));

    // The chain's last one fails for its caller, too, and the errback got the id of the failed one.
    assert!(seen["failed"][1].as_str().unwrap().starts_with("LongshoreError"), "{}", seen["failed"]);
    let [mourned] = &seen["mourned"].as_array().unwrap()[..] else { panic!("{}", seen["mourned"]) };
    assert_eq!((&mourned["args"], &mourned["parent"]), (&json!([seen["failed"][0]]), &seen["failed"][0]));

    assert_eq!(seen["old"], Value::Null);
    assert_eq!(seen["noted of old"][0]["args"], json!([null, "old"]));
    let refused = seen["chord"].as_str().unwrap();
    assert!(
        refused.starts_with("InvalidTaskError: canvas not supported") && refused.contains("a chord"),
        "{refused}"
    );
    assert_eq!(seen["later"], json!([null, "later"]));
    assert!(seen["later after"].as_f64().unwrap() >= 2.0, "{}", seen["later after"]);
    assert!(!seen["all"].to_string().contains("not called"), "what follows a success followed a failure");
}

#[tokio::test]
async fn girder_worker_runs_what_follows_in_its_own_serializer() {
    engine().await;
    let (rabbit, peer) = (RabbitMq::vhost().await, Peer::girder().await);
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", rabbit.url()));
    let _worker = longshore.worker(&["-Q", "ships", "-c", "2", "-n", "quay"]).await;
    let mut python = peer.python(&PythonWorker::arguments("girder_worker.app"));
    python.env("GIRDER_WORKER_BROKER", rabbit.url());
    let _python = PythonWorker::run(&python);
    let mut client = peer.python(&["chain.py", "ships"]);
    client.env("GIRDER_WORKER_BROKER", rabbit.url());
    let seen = peer.ask(client, CLIENT_WITHIN).await;
    assert_eq!(seen["first"], json!([null, "SUCCESS"]));
    assert_eq!(
        seen["second"],
        json!(["DockerException: Non-zero exit code from docker container (3).", "FAILURE"])
    );
}
