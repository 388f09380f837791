//! `--output json`: whatever a command says to people it says to programs, too, as one document or one per line.

use longshore::broker::{Settled, Settlement};
use longshore::cancel::CancelScope;
use serde_json::Value;

use super::{Harbour, help};

/// A script, pages and a file: they are for other programs as they are.
const NOT_JSON: &[&str] = &["completions", "man", "config default"];
/// What only groups others.
const GROUPS: &[&str] = &["", "broker", "config", "dead", "policy", "queue", "task"];

const TASK: &str = r#"{"v": 1, "id": "t1", "task": "docker_run", "args": {"image": "busybox"}}"#;

/// A program that asks, and which commands it has asked.
struct Program {
    harbour: Harbour,
    asked: Vec<&'static str>,
}

impl Program {
    /// What a command, whose first words are its name, says: a document, or the list of those on its lines.
    #[track_caller]
    fn told(&mut self, name: &'static str, args: &[&str]) -> Value {
        self.asked.push(name);
        let words: Vec<&str> = name.split(' ').chain(args.iter().copied()).collect();
        let out = self.harbour.run(&[&["--output", "json"][..], &words[..]].concat()).good();
        serde_json::from_str(&out).unwrap_or_else(|_| {
            let lines = out.lines().map(serde_json::from_str::<Value>);
            lines.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{name}: {error}: {out}"))
        })
    }

    /// Parks the next message as a worker would; the letter's id.
    async fn letter(&mut self) -> String {
        let broker = self.harbour.broker().await;
        let delivery = broker.source.fetch(1, &CancelScope::new()).await.unwrap().remove(0);
        let settlement = Settlement::DeadLetter { reason: "for the test".to_owned() };
        assert_eq!(delivery.lease.settler.settle(settlement).await, Settled::Settled);
        self.told("dead list", &[])["dead"][0]["id"].as_str().unwrap().to_owned()
    }

    fn of_queues_and_tasks(&mut self, file: &str) {
        assert_eq!(self.told("submit", &["--file", file])["submitted"][0]["id"], "t1");
        assert_eq!(self.told("task list", &[])["tasks"][0]["id"], "t1");
        assert_eq!(self.told("task show", &["t1"])["status"], "queued");
        assert_eq!(self.told("task explain", &["t1"])["queue"], "default");
        assert_eq!(self.told("queue pause", &["default"])["intake"], "paused");
        assert_eq!(self.told("queue resume", &["default"])["intake"], "open");
        assert_eq!(self.told("queue list", &[])["queues"][0]["ready"], 1);
        assert_eq!(self.told("events", &[])["subject"], "t1");
        self.told("task logs", &["t1"]);
    }

    async fn of_dead_letters(&mut self) {
        let letter = self.letter().await;
        assert_eq!(self.told("dead show", &[&letter])["letter"]["reason"], "for the test");
        assert_eq!(self.told("dead requeue", &[&letter])["requeued"][0]["id"], "t1");
        let letter = self.letter().await;
        assert_eq!(self.told("dead drop", &[&letter])["removed"][0], letter.as_str());
        assert_eq!(self.told("queue purge", &["default", "--yes"])["removed"], 0);
        let [from, to] = ["longshore.db", "elsewhere.db"]
            .map(|name| format!("sqlite://{}", self.harbour.path().join(name).display()));
        assert_eq!(self.told("queue move", &[&from, &to, "--queue", "default"])["moved"], 0);
    }

    fn of_settings(&mut self, file: &str) {
        assert!(self.told("broker init", &[])["done"][0].is_string());
        let hub = ["--broker", "nats://hub", "--role", "worker"];
        assert!(self.told("broker permissions", &hub).is_object());
        assert_eq!(self.told("decode", &[file])["id"], "t1");
        assert_eq!(self.told("policy test", &[file])["granted"], true);
        assert!(self.told("policy show", &[])["rules"].is_object());
        assert_eq!(self.told("doctor", &["--quick"])["broken"], 0);
        assert!(self.told("config show", &[])["settings"].is_object());
        assert_eq!(self.told("config check", &[])["right"], true);
        assert!(self.told("schema", &["task"])["$schema"].is_string());
    }

    fn of_a_worker(&mut self) {
        // Its line is JSON, too; whoever starts a worker of a test reads it.
        self.asked.push("worker");
        let worker = self.harbour.worker(&["--output", "json", "--concurrency", "2"]);
        assert_eq!(self.told("worker list", &[])["workers"][0]["worker"], "quay");
        assert_eq!(self.told("worker info", &["quay"])["lanes"], 2);
        assert_eq!(self.told("worker drain", &["quay"])["told"], "asked to drain");
        let id = self.harbour.ping(r#"{"fail": "permanent"}"#, &[]);
        assert_eq!(self.told("worker resume", &["quay"])["told"], "asked to resume");
        assert_eq!(self.harbour.run(&["task", "wait", &id]).code, 1);
        assert_eq!(self.told("task retry", &[&id])["queued"][0], id.as_str());
        assert_eq!(self.harbour.run(&["task", "wait", &id]).code, 1);
        let id = self.harbour.ping(r#"{"sleep": "1h"}"#, &[]);
        assert_eq!(self.told("task cancel", &[&id])["canceling"][0], id.as_str());
        let id = self.harbour.ping("{}", &[]);
        assert_eq!(self.told("task wait", &[&id])["tasks"][0]["status"], "succeeded");
        // No outputs wait here: girder::spool tries it where some do.
        self.asked.push("task upload");
        let refused = self.harbour.run(&["--output", "json", "task", "upload", &id]).bad(2);
        assert!(serde_json::from_str::<Value>(&refused).unwrap()["error"]["kind"].is_string(), "{refused}");
        assert_eq!(worker.end(), Some(0));
    }
}

#[tokio::test]
async fn every_command_answers_in_json_when_programs_ask() {
    crate::support::docker::engine().await;
    let mut program = Program { harbour: Harbour::new(), asked: Vec::new() };
    let file = program.harbour.file("task.json", TASK).to_str().unwrap().to_owned();
    program.of_queues_and_tasks(&file);
    program.of_dead_letters().await;
    program.of_settings(&file);
    let events = program.told("run", &["busybox:latest", "true"]);
    assert_eq!(events.as_array().unwrap().last().unwrap()["data"]["kind"], "succeeded");
    program.of_a_worker();

    let mut asked = program.asked;
    asked.extend(NOT_JSON.iter().chain(GROUPS));
    asked.sort_unstable();
    asked.dedup();
    let mut all: Vec<String> =
        help::commands(&program.harbour).into_iter().map(|command| command.join(" ")).collect();
    all.sort_unstable();
    assert_eq!(asked, all, "each command is asked above, or stands among those that are no documents");
}
