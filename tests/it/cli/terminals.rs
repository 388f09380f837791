//! Three terminals on one file: one submits, one works, one waits. Whoever waits sleeps until the bell rings.

use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::Value;

use super::{Harbour, Worker};

/// How often the threads of a process went to sleep so far: each wake-up ends in another sleep.
fn sleeps(process: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let sleeps = threads.filter_map(|thread| {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).ok()?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Some(count.unwrap().trim().parse::<u64>().unwrap())
    });
    sleeps.sum()
}

fn time(shown: &Value, what: &str) -> Timestamp {
    shown["times"][what].as_str().unwrap_or_else(|| panic!("{what} in {shown}")).parse().unwrap()
}

#[test]
fn whoever_waits_in_another_terminal_sleeps_until_the_bell_rings() {
    let harbour = Harbour::new();
    let worker = harbour.worker(&[]);
    let id = harbour.ping(r#"{"sleep": "6s"}"#, &[]);
    let mut command = harbour.command(&["task", "wait", "--progress", &id]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let processes = [("the worker", worker.child.id()), ("the wait", waiting.id())];
    // So long after their start both have begun to wait, and the task runs on for seconds.
    std::thread::sleep(Duration::from_secs(2));
    let before = processes.map(|(_, process)| sleeps(process));
    std::thread::sleep(Duration::from_secs(3));
    for ((who, process), before) in processes.into_iter().zip(before) {
        let woke = sleeps(process).saturating_sub(before);
        assert!(woke <= 12, "{who} woke {woke} times in three seconds in which nothing happened");
    }
    let ended = waiting.wait().unwrap();
    let heard = Timestamp::now();
    assert!(ended.success());
    let shown = harbour.run(&["task", "show", &id, "--output", "json"]).json();
    let late = heard.duration_since(time(&shown, "finished"));
    assert!(late.as_millis() < 5_000, "heard {late:?} after the end: looks for safety are 15 s apart");

    // An idle worker hears of a submission at once.
    let id = harbour.ping("{}", &[]);
    assert_eq!(harbour.run(&["task", "wait", &id]).good(), format!("{id}  succeeded\n"));
    let shown = harbour.run(&["task", "show", &id, "--output", "json"]).json();
    let late = time(&shown, "admitted").duration_since(time(&shown, "queued"));
    assert!(late.as_millis() < 5_000, "taken {late:?} after its submission");
}

#[test]
fn kill_9_of_any_of_the_three_corrupts_nothing_and_every_end_is_told() {
    let harbour = Harbour::new();
    let task = r#"{"v": 1, "task": "longshore.ping", "args": {"sleep": "20ms"}}"#;
    let task = harbour.file("ping.json", task).to_str().unwrap().to_owned();
    let hasty = |args: &[&str]| {
        let mut command = harbour.command(args);
        command.env("LONGSHORE_WORKER__LEASE", "2s").env("LONGSHORE_WORKER__UPKEEP_INTERVAL", "1s");
        // Nobody reads what it logs.
        command.env("LONGSHORE_LOG__LEVEL", "error");
        command
    };
    for round in 0..4_u64 {
        let start = |args: &[&str]| hasty(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut submitting = start(&["submit", "--file", &task, "--count", "400"]);
        let mut working = Worker::ready(hasty(&["worker", "--name", "quay", "--concurrency", "16"]));
        let mut waiting = start(&["task", "wait", "last"]);
        // Nothing is waited for: the moments of the kills shall differ.
        std::thread::sleep(Duration::from_millis(60 + 110 * round));
        for child in [&mut submitting, &mut working.child, &mut waiting] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let file = Connection::open(harbour.path().join("longshore.db")).unwrap();
    let verdict: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let count = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let begun = count("SELECT count(*) FROM records");
    assert!(begun > 0, "something was at work when the workers were killed");

    let _worker = Worker::ready(hasty(&["worker", "--name", "quay", "--concurrency", "64"]));
    let begin = Instant::now();
    let open =
        "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM records WHERE owed IS NOT NULL)";
    while count(open) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} are still open", count(open));
        std::thread::sleep(Duration::from_millis(50));
    }
    let (records, ended) = (
        count("SELECT count(*) FROM records"),
        count("SELECT count(DISTINCT task) FROM status WHERE data LIKE '%\"succeeded\"%'"),
    );
    assert_eq!(records, ended, "each end was told");
    let submitted = count("SELECT count(*) FROM dedup");
    assert_eq!(records, submitted, "whatever was queued came to its end");
}
