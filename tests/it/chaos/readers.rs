//! A reader of events that stands still, while tasks talk a lot.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use longshore::failpoint::Moment;
use longshore::task::{Arg, Task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::berth::Berth;
use super::storm::{Plan, storms};
use crate::support::poll::eventually;
use crate::support::process::tied_to_this_thread;

/// Most by which a worker may grow, in KiB.
const GROWTH: usize = 64 * 1024;
const SOON: Duration = Duration::from_secs(60);

pub(super) async fn a_reader_that_stands_still_holds_nobody_up_and_misses_no_end<B: Berth>() {
    storms::<B>(
        async |_, _| Plan::of("slow subscriber"),
        async |storm| {
            let heard = storm.longshore.folder().join("heard");
            let command = storm.longshore.command(&["events", "--follow", "--since", "1h"]);
            let mut reader = tied_to_this_thread(&command)
                .stdin(Stdio::null())
                .stdout(File::create(&heard).unwrap())
                .spawn()
                .unwrap();
            let worker = storm.worker("one").await;
            let first = storm.tasks(1);
            storm.submit_these(&first).await;
            let lines = || std::fs::read_to_string(&heard).unwrap_or_default();
            eventually(SOON, "the reader hears", async || lines().contains("succeeded").then_some(())).await;
            let pid = Pid::from_raw(i32::try_from(reader.id()).unwrap());
            kill(pid, Signal::SIGSTOP).unwrap();
            let before = resident(worker.pid());
            let tasks: Vec<Task> = storm.tasks(storm.scale.tasks).into_iter().map(talkative).collect();
            storm.submit_these(&tasks).await;
            storm.reached(Moment::Published, tasks.len() + 1).await;
            let grown = resident(worker.pid()).saturating_sub(before);
            assert!(grown < GROWTH, "the worker grew by {grown} KiB while nobody read");
            kill(pid, Signal::SIGCONT).unwrap();
            eventually(SOON, "the reader has heard of every end", async || {
                let lines = lines();
                let ends = lines.lines().filter(|line| line.contains("longshore.task.succeeded.v1"));
                tasks.iter().all(|task| ends.clone().any(|end| end.contains(task.id.as_str()))).then_some(())
            })
            .await;
            reader.kill().unwrap();
            reader.wait().unwrap();
            vec![worker]
        },
    )
    .await;
}

fn talkative(mut task: Task) -> Task {
    task.args.insert("progress".to_owned(), Arg::Number(2_000.into()));
    task.args.insert("sleep".to_owned(), Arg::Text("0s".to_owned()));
    task
}

/// In KiB.
fn resident(pid: Pid) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
