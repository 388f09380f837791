//! The Python worker beside it: what one kill -9 costs there. Its app and settings are girder_worker's own, its tasks sleep.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;

const TASKS: usize = 16;
const CONCURRENCY: &str = "4";
const SOON: Duration = Duration::from_secs(90);
/// Tasks sleep for two seconds: when nothing began for so long, nothing will.
const QUIET: Duration = Duration::from_secs(8);

/// Its process group, which dies with it.
struct Python {
    child: Child,
}

impl Python {
    fn start(program: &Path, args: &[&str], (broker, moments): (&str, &Path)) -> Self {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers");
        let log =
            std::fs::File::options().append(true).create(true).open(moments.with_extension("log")).unwrap();
        let mut command = Command::new(program);
        command.args(args).current_dir(moments.parent().unwrap());
        command.env("PYTHONPATH", peers).env("BENCH_BROKER", broker).env("BENCH_QUEUE", "lossy");
        command.env("BENCH_MOMENTS", moments).env("C_FORCE_ROOT", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        Self { child: command.spawn().unwrap() }
    }

    fn kill(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // It may have gone.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn the_python_worker_loses_what_it_had_begun() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = Command::new(root.join("bench/peers/install")).status().unwrap();
    assert!(installed.success(), "the Python worker is installed");
    let celery = root.join("bench/.cache/python/bin/celery");
    let (rabbit, folder) = (RabbitMq::vhost().await, tempfile::tempdir().unwrap());
    let (moments, broker) = (folder.path().join("moments"), rabbit.url());
    let place = (broker.as_str(), moments.as_path());
    let count = |what: &str| {
        let text = std::fs::read_to_string(&moments).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.map(|rest| rest.split(' ').nth(2).unwrap().to_owned()).collect::<BTreeSet<_>>().len()
    };
    let began = Instant::now();
    let python = root.join("bench/.cache/python/bin/python");
    let script = root.join("bench/peers/lossy.py");
    let mut publisher = Python::start(&python, &[script.to_str().unwrap(), &TASKS.to_string()], place);
    eventually(SOON, "the tasks are sent", async || publisher.child.try_wait().unwrap()).await;
    let work =
        ["-A", "lossy", "worker", "--concurrency", CONCURRENCY, "--without-mingle", "--without-gossip"];
    let mut first = Python::start(&celery, &work, place);
    eventually(SOON, "some run", async || (count("begin") >= 4).then_some(())).await;
    first.kill();
    let begun = count("begin");
    let _second = Python::start(&celery, &work, place);
    eventually(SOON, "the others run", async || (count("begin") > begun).then_some(())).await;
    let (mut ended, mut since) = (0, Instant::now());
    eventually(SOON, "nothing happens any more", async || {
        if count("end") != ended {
            (ended, since) = (count("end"), Instant::now());
        }
        (since.elapsed() > QUIET).then_some(())
    })
    .await;
    let lost = TASKS - ended;
    let took = began.elapsed().as_secs_f64();
    super::tally::write_row(&format!("(python)\tkill -9\t0\t{TASKS}\t{lost}\t0/4\t-\t-\t-\t{took:.1}"));
    assert!(lost > 0, "the Python worker lost nothing this time: {begun} had begun");
}
