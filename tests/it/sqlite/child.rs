//! Other processes of a test: this binary again, told by a variable to play one part on the same file.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use longshore::broker::{self, Broker, Settlement};

use super::open;
use crate::contract::dock::{fetch_within, message, settle, submit};

const PART: &str = "LONGSHORE_TEST_PART";
const FILE: &str = "LONGSHORE_TEST_FILE";

/// What another process does.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Submits one message for each line that it reads, and says its name once it is queued.
    SubmitsWhenTold,
    /// Submits as fast as it can until it is killed, and says each name once it is queued.
    SubmitsForEver,
    /// Fetches and acknowledges until nothing comes for a second; says `acking NAME` before and `acked NAME` after.
    Works,
    /// Says `canceled NAME` for each cancel that it hears.
    HearsCancels,
}

impl Part {
    const ALL: [(Self, &str); 4] = [
        (Self::SubmitsWhenTold, "submits_when_told"),
        (Self::SubmitsForEver, "submits_for_ever"),
        (Self::Works, "works"),
        (Self::HearsCancels, "hears_cancels"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|(_, known)| *known == name).expect("a known part").0
    }
}

/// A process that plays a part; killed when dropped.
pub(super) struct Other {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Other {
    /// Starts it and waits until it has opened the file.
    pub(super) fn start(part: Part, file: &Path) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(this)
            .args(["--exact", "sqlite::child::a_child_plays_its_part", "--nocapture", "--test-threads=1"])
            .env(PART, part.name())
            .env(FILE, file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, said };
        assert_eq!(other.hear().as_deref(), Some("ready"), "the other process opens the file");
        other
    }

    /// The next thing it says; `None` once it has ended.
    pub(super) fn hear(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The test harness talks too, also in front of the first line.
            if let Some((_, said)) = line.split_once('>') {
                // A line that was cut short by a kill was not said.
                return said.strip_suffix('\n').map(str::to_owned);
            }
        }
    }

    /// All that it still says.
    pub(super) fn hear_all(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    /// Tells it to do its part once, as `name`.
    pub(super) fn tell(&mut self, name: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{name}").unwrap();
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, ">{text}").unwrap();
    out.flush().unwrap();
}

/// Nothing unless started by [`Other::start`].
#[tokio::test]
async fn a_child_plays_its_part() {
    let (Ok(part), Some(file)) = (std::env::var(PART), std::env::var_os(FILE)) else { return };
    let name = format!("child-{}", std::process::id());
    let broker = open(&PathBuf::from(file), &name, Duration::from_millis(500)).await;
    match Part::named(&part) {
        Part::SubmitsWhenTold => submit_when_told(&broker).await,
        Part::SubmitsForEver => submit_for_ever(&broker).await,
        Part::Works => work(&broker).await,
        Part::HearsCancels => hear_cancels(&broker).await,
    }
}

async fn submit_when_told(broker: &Broker) {
    say("ready");
    for line in std::io::stdin().lines() {
        let name = line.unwrap();
        submit(broker, vec![message(&name)]).await;
        say(&name);
    }
}

async fn submit_for_ever(broker: &Broker) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    say("ready");
    let one = async || loop {
        let name = format!("m{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        submit(broker, vec![message(&name)]).await;
        say(&name);
    };
    futures_util::future::join_all((0..16).map(|_| one())).await;
}

async fn work(broker: &Broker) {
    say("ready");
    loop {
        let deliveries = fetch_within(broker, 4, Duration::from_secs(1)).await;
        if deliveries.is_empty() {
            return;
        }
        for delivery in deliveries {
            let name = String::from_utf8(delivery.body.to_vec()).unwrap();
            say(&format!("acking {name}"));
            settle(delivery, Settlement::Ack).await;
            say(&format!("acked {name}"));
        }
    }
}

async fn hear_cancels(broker: &Broker) {
    let mut commands = broker.topic.commands().await.unwrap();
    say("ready");
    while let Some(command) = commands.next().await {
        if let broker::Command::Cancel { task, .. } = command.unwrap() {
            say(&format!("canceled {task}"));
        }
    }
}
