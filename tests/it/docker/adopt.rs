//! Containers that outlive their worker: left by one that is upgraded, or running on under one that was killed. Each test
//! runs the binary over SQLite at the real engine.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::support::docker::{clean_up, containers_labelled, docker, engine};
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;

const SOON: Duration = Duration::from_secs(60);

/// A worker that leaves what runs as soon as it drains, and whose leases end soon when it dies.
const LEAVES: &str = "[worker]\nlease = \"3s\"\ndrain_timeout = \"0s\"\non_drain_timeout = \"leave\"\nrelease_damping = \"500ms\"\n";

/// An installation whose containers go with it.
pub(crate) struct Quay {
    longshore: Longshore,
    /// Notes each container that is made: the engine itself remembers only the last 256 events of all.
    _witness: Child,
}

impl Quay {
    pub(crate) async fn new(settings: &str) -> Self {
        engine().await;
        let longshore = Longshore::with_settings(settings);
        let made = File::create(longshore.folder().join("made")).unwrap();
        let began = jiff::Timestamp::now().to_string();
        let form = "{{.Actor.ID}} {{index .Actor.Attributes \"longshore.task\"}}";
        let mut witness = Command::new("docker");
        witness.args(["events", "--since", &began, "--filter", "event=create", "--format", form]);
        let witness = witness.stdin(Stdio::null()).stdout(made).kill_on_drop(true).spawn().unwrap();
        Self { longshore, _witness: witness }
    }

    pub(crate) async fn worker(&self, more: &[&str]) -> Worker {
        self.longshore.worker(&[&["--name", "quay"], more].concat()).await
    }

    /// Submits `docker_run` with these arguments; the task's id.
    pub(crate) async fn submit(&self, args: Value, hooks: Value) -> String {
        let task = json!({"v": 1, "task": "docker_run", "args": args, "result_hooks": hooks});
        let file = self.longshore.folder().join("task.json");
        std::fs::write(&file, task.to_string()).unwrap();
        self.longshore.ok(&["submit", "--file", file.to_str().unwrap()]).await
    }

    /// Submits so many with these arguments; the tasks' ids.
    pub(crate) async fn submit_many(&self, args: Value, count: usize) -> BTreeSet<String> {
        let file = self.longshore.folder().join("task.json");
        std::fs::write(&file, json!({"v": 1, "task": "docker_run", "args": args}).to_string()).unwrap();
        let count = count.to_string();
        let told = self.longshore.ok(&["submit", "--count", &count, "--file", file.to_str().unwrap()]).await;
        told.lines().map(str::to_owned).collect()
    }

    /// At most so many records.
    pub(crate) async fn records(&self, limit: usize) -> Vec<Value> {
        let args = ["--output", "json", "task", "list", "--limit", &limit.to_string()];
        let listed: Value = serde_json::from_str(&self.longshore.ok(&args).await).unwrap();
        listed["tasks"].as_array().unwrap().clone()
    }

    async fn record(&self, task: &str) -> Value {
        let shown = self.longshore.ok(&["--output", "json", "task", "show", task]).await;
        serde_json::from_str(&shown).unwrap()
    }

    pub(crate) async fn logs(&self, task: &str) -> String {
        self.longshore.ok(&["task", "logs", task]).await
    }

    /// Its events so far.
    async fn events(&self, task: &str) -> Vec<Value> {
        let told = self.longshore.ok(&["events", "--task", task, "--since", "1h"]).await;
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the task has said `line`.
    pub(crate) async fn says(&self, task: &str, line: &str) {
        eventually(SOON, &format!("{task} says {line}"), async || {
            let events = self.events(task).await;
            let said = events.iter().filter_map(|event| event["data"]["text"].as_str());
            said.flat_map(str::lines).any(|said| said == line).then_some(())
        })
        .await;
    }

    async fn finished(&self, task: &str) -> Value {
        eventually(SOON, "the task is finished", async || {
            let record = self.record(task).await;
            let status = record["status"].as_str()?;
            ["succeeded", "failed", "canceled", "dead"].contains(&status).then_some(record)
        })
        .await
    }

    /// Every container that was ever made for the task.
    pub(crate) fn made_for(&self, task: &str) -> BTreeSet<String> {
        let made = std::fs::read_to_string(self.longshore.folder().join("made")).unwrap();
        let made = made.lines().filter_map(|line| line.split_once(' '));
        made.filter(|(_, of)| *of == task).map(|(id, _)| id.to_owned()).collect()
    }

    /// Waits until nothing of the task is left on this host.
    pub(crate) async fn nothing_is_left_of(&self, task: &str) {
        eventually(SOON, "its containers and folders are gone", async || {
            let label = format!("longshore.task={task}");
            (containers_labelled(&label).await.is_empty() && self.workspaces().is_empty()).then_some(())
        })
        .await;
    }

    fn workspaces(&self) -> Vec<String> {
        let parents = std::fs::read_dir(self.longshore.state().join("work")).into_iter().flatten().flatten();
        let all = parents.flat_map(|parent| std::fs::read_dir(parent.path()).into_iter().flatten().flatten());
        all.map(|entry| entry.path().display().to_string()).collect()
    }
}

impl Drop for Quay {
    fn drop(&mut self) {
        let instances = std::fs::read_dir(self.longshore.state().join("instances")).into_iter().flatten();
        for id in instances.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()) {
            let filter = format!("label=longshore.instance={}", id.trim());
            for id in clean_up(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).lines() {
                clean_up(&["rm", "--force", "--volumes", id]);
            }
        }
    }
}

/// Says `line 0`, `line 1`, … ten times a second, then writes a file into its volume.
fn counting(lines: u32) -> Value {
    let script = format!(
        "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.1; done; echo whole > $0"
    );
    json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
           "container_args": ["-c", script, {"$": "VolumePath", "filename": "out.txt"}]})
}

pub(crate) fn all_lines(lines: u32) -> Vec<String> {
    (0..lines).map(|n| format!("line {n}")).collect()
}

/// The events' numbers under the record's fence, as a reader has them who passes over what is sent again.
async fn numbers(quay: &Quay, task: &str, record: &Value) -> Vec<u64> {
    let events = quay.events(task).await;
    let sequences = events.iter().map(|event| event["sequence"].as_str().unwrap().split_once('-').unwrap());
    let fence = format!("{:020}", record["fence"].as_u64().unwrap());
    let mut numbers: Vec<u64> = Vec::new();
    for (_, number) in sequences.filter(|(of, _)| *of == fence) {
        let number = number.parse().unwrap();
        if numbers.last().is_none_or(|last| *last < number) {
            numbers.push(number);
        }
    }
    numbers
}

/// The task's one attempt went from one process to another without anybody noticing.
async fn went_over(quay: &Quay, task: &str, container: &str, lines: u32) {
    let record = quay.finished(task).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    assert_eq!((&record["attempts"], &record["details"]["exit_code"]), (&json!(1), &json!(0)), "{record}");
    assert_eq!(record["details"]["container"], container);
    let hook = record["details"]["result"].as_array().unwrap()[0].as_str().unwrap();
    assert!(hook.ends_with("/out.txt"), "{hook}");
    assert_eq!(quay.made_for(task), BTreeSet::from([container.to_owned()]));
    assert_eq!(quay.logs(task).await.lines().collect::<Vec<_>>(), all_lines(lines));
    let tail = record["details"]["log_tail"].as_str().unwrap();
    assert_eq!(tail.lines().filter(|line| line.starts_with("line ")).collect::<Vec<_>>(), all_lines(lines));
    let numbers = numbers(quay, task, &record).await;
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    quay.nothing_is_left_of(task).await;
}

#[tokio::test]
async fn what_a_draining_worker_leaves_is_gone_on_with_by_its_next_process() {
    let quay = Quay::new(LEAVES).await;
    let mut first = quay.worker(&[]).await;
    let hooks = json!([{"$": "VolumePath", "filename": "out.txt"}]);
    let task = quay.submit(counting(50), hooks).await;
    quay.says(&task, "line 5").await;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().await.code(), Some(0), "{}", first.log());
    let left = quay.record(&task).await;
    assert!(left["left"].is_string() && left["status"] == "running", "{left}");
    let container = left["details"]["container"].as_str().unwrap().to_owned();
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &container]).await, "true");
    let _second = quay.worker(&[]).await;
    went_over(&quay, &task, &container, 50).await;
}

#[tokio::test]
async fn what_ended_while_no_worker_was_there_is_finished_by_the_next() {
    let quay = Quay::new(LEAVES).await;
    let mut first = quay.worker(&[]).await;
    let hooks = json!([{"$": "VolumePath", "filename": "out.txt"}]);
    let task = quay.submit(counting(20), hooks).await;
    quay.says(&task, "line 3").await;
    first.signal(Signal::SIGTERM);
    first.end().await;
    let container = quay.record(&task).await["details"]["container"].as_str().unwrap().to_owned();
    docker(&["wait", &container]).await;
    let _second = quay.worker(&[]).await;
    went_over(&quay, &task, &container, 20).await;
}

#[tokio::test]
async fn what_runs_on_under_a_killed_worker_is_gone_on_with_when_it_is_started_again() {
    let quay = Quay::new(LEAVES).await;
    let mut first = quay.worker(&[]).await;
    let hooks = json!([{"$": "VolumePath", "filename": "out.txt"}]);
    let task = quay.submit(counting(80), hooks).await;
    quay.says(&task, "line 5").await;
    first.kill();
    let [container] = &containers_labelled(&format!("longshore.task={task}")).await[..] else { panic!() };
    let mut second = quay.worker(&[]).await;
    quay.says(&task, "line 40").await;
    second.kill();
    let _third = quay.worker(&[]).await;
    went_over(&quay, &task, container, 80).await;
}

#[tokio::test]
async fn what_ended_under_a_worker_that_was_killed_in_the_middle_of_its_uploads_is_finished_by_the_next() {
    let quay = Quay::new(LEAVES).await;
    let dies = [("LONGSHORE_FAILPOINT", "uploading:kill@1")];
    let mut first = quay.longshore.worker_in(&["--name", "quay"], &dies).await;
    let hooks = json!([{"$": "VolumePath", "filename": "out.txt"}]);
    let task = quay.submit(counting(5), hooks).await;
    first.end().await;
    let [container] = &containers_labelled(&format!("longshore.task={task}")).await[..] else { panic!() };
    let _second = quay.worker(&[]).await;
    went_over(&quay, &task, container, 5).await;
}

#[tokio::test]
async fn a_container_with_a_pipe_is_removed_after_its_workers_death_and_its_task_run_again() {
    let quay = Quay::new(LEAVES).await;
    let mut first = quay.worker(&[]).await;
    let script =
        "if [ $(cat /proc/uptime | cut -d. -f1) -lt $1 ]; then echo early; sleep 600; else echo late; fi";
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: u64 = uptime.split('.').next().unwrap().parse().unwrap();
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
        "container_args": ["-c", script, {"$": "ProgressPipe"}, (uptime + 12).to_string()]});
    let task = quay.submit(args, json!([])).await;
    quay.says(&task, "early").await;
    first.kill();
    let [old] = &containers_labelled(&format!("longshore.task={task}")).await[..] else { panic!() };
    eventually(SOON, "the time has come", async || {
        let now = std::fs::read_to_string("/proc/uptime").unwrap();
        let now: u64 = now.split('.').next().unwrap().parse().unwrap();
        (now >= uptime + 12).then_some(())
    })
    .await;
    let second = quay.worker(&[]).await;
    let record = quay.finished(&task).await;
    assert_eq!((&record["status"], &record["attempts"]), (&json!("succeeded"), &json!(2)), "{record}");
    let made = quay.made_for(&task);
    assert!(made.len() == 2 && made.contains(old), "{made:?}");
    assert_ne!(record["details"]["container"], *old);
    assert!(second.log().contains(old.as_str()), "it was removed by its id: {}", second.log());
    quay.nothing_is_left_of(&task).await;
}

#[tokio::test]
async fn a_container_with_a_pipe_is_stopped_by_a_drain_and_its_task_given_back_uncharged() {
    let quay = Quay::new(LEAVES).await;
    let mut first = quay.worker(&[]).await;
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh",
        "container_args": ["-c", "trap 'exit 0' TERM; echo up; sleep 600 & wait", {"$": "ProgressPipe"}]});
    let task = quay.submit(args, json!([])).await;
    quay.says(&task, "up").await;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().await.code(), Some(0), "{}", first.log());
    let record = quay.record(&task).await;
    assert_eq!((&record["status"], &record["attempts"]), (&json!("released"), &json!(0)), "{record}");
    quay.nothing_is_left_of(&task).await;
}

#[tokio::test]
async fn another_worker_takes_over_when_a_killed_one_does_not_come_back_and_the_stale_container_goes_when_it_does()
 {
    let quay = Quay::new(LEAVES).await;
    let mut dies = quay.worker(&[]).await;
    let task = quay.submit(counting(30), json!([])).await;
    quay.says(&task, "line 3").await;
    let other = quay.longshore.worker(&["--name", "other"]).await;
    dies.kill();
    let [stale] = &containers_labelled(&format!("longshore.task={task}")).await[..] else { panic!() };
    let record = quay.finished(&task).await;
    assert_eq!((&record["status"], &record["attempts"]), (&json!("succeeded"), &json!(2)), "{record}");
    assert_eq!(record["owner"]["worker"], "other");
    assert!(other.log().contains("adopted").then_some(()).is_none(), "{}", other.log());
    let _back = quay.worker(&[]).await;
    eventually(SOON, "the stale container is gone", async || {
        (!containers_labelled(&format!("longshore.task={task}")).await.contains(stale)).then_some(())
    })
    .await;
    assert_eq!(quay.record(&task).await["fence"], record["fence"]);
}

#[tokio::test]
async fn nothing_is_lost_when_a_worker_is_killed_again_and_again_and_every_end_is_told() {
    let quay = Quay::new("[worker]\nlease = \"1s\"\nupkeep_interval = \"1s\"\npoison_limit = 50\n").await;
    let file = quay.longshore.folder().join("ping.json");
    std::fs::write(&file, json!({"v": 1, "task": "longshore.ping", "args": {"sleep": "20ms"}}).to_string())
        .unwrap();
    let told = quay.longshore.ok(&["submit", "--count", "300", "--file", file.to_str().unwrap()]).await;
    let tasks: BTreeSet<String> = told.lines().map(str::to_owned).collect();
    assert_eq!(tasks.len(), 300);
    let succeeded = async || -> Vec<Value> {
        let args = ["--output", "json", "task", "list", "--status", "succeeded", "--limit", "1000"];
        let listed: Value = serde_json::from_str(&quay.longshore.ok(&args).await).unwrap();
        listed["tasks"].as_array().unwrap().clone()
    };
    for round in 1..=4 {
        let mut worker = quay.worker(&["--concurrency", "8"]).await;
        eventually(SOON, "it has done some", async || (succeeded().await.len() >= round * 30).then_some(()))
            .await;
        worker.kill();
    }
    let _last = quay.worker(&["--concurrency", "8"]).await;
    eventually(SOON, "all are done and told", async || {
        let done = succeeded().await;
        let told = done.iter().filter(|record| record["owed"].is_null());
        (told.count() == tasks.len()).then_some(())
    })
    .await;
    let told = quay.longshore.ok(&["events", "--since", "1h"]).await;
    let ends: BTreeSet<String> = told
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["type"] == "longshore.task.succeeded.v1")
        .map(|event| event["subject"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ends, tasks);
}
