//! One storm: tasks on a broker, workers that are hurt while they do them, and what must hold once all is calm again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use longshore::broker::{self, Broker, BrokerUrl, OpenOptions, Submission};
use longshore::events::{EventFilter, EventKind, EventStart};
use longshore::failpoint::Moment;
use longshore::store::{self, Record, RecordQuery, ResultStore};
use longshore::task::{Arg, ContentType, QueueName, Task, TaskId};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::berth::Berth;
use super::scale::Scale;
use super::tally::Tally;
use super::witness::Witness;
use crate::support::longshore::{Longshore, Worker};
use crate::support::poll::eventually;

/// How long a worker may take to come to a moment, or to end after it.
const SOON: Duration = Duration::from_secs(90);
/// Tasks submitted at once.
const BATCH: usize = 200;

/// Where all tasks wait. Not the default one, which is called differently on AMQP.
const QUEUE: &str = "docks";

fn queue() -> QueueName {
    QueueName::new(QUEUE).unwrap()
}

/// What is done in a storm.
pub(super) struct Plan {
    /// For the table.
    pub(super) fault: String,
    /// The lease of every worker.
    pub(super) lease: Duration,
    /// Settings (TOML) within `[worker]`.
    pub(super) worker: String,
    /// How long a task runs, in milliseconds: somewhere between.
    pub(super) runs: std::ops::Range<u64>,
    /// Where records are, instead of where the berth has them.
    pub(super) store: Option<String>,
    /// Where workers find the broker, instead of where it is.
    pub(super) broker: Option<String>,
}

impl Plan {
    /// With leases for which a test can wait.
    pub(super) fn of(fault: impl Into<String>) -> Self {
        Self {
            fault: fault.into(),
            lease: Duration::from_secs(2),
            worker: String::new(),
            runs: Self::runs(Scale::read()),
            store: None,
            broker: None,
        }
    }

    /// Long enough that few tasks do not end before the fault comes, short enough for many.
    fn runs(scale: Scale) -> std::ops::Range<u64> {
        if scale.tasks < 200 { 20..600 } else { 5..150 }
    }

    /// For an outage that no lease ends in.
    pub(super) fn of_outage(fault: impl Into<String>, scale: Scale) -> Self {
        Self { lease: scale.outage * 2 + Duration::from_secs(2), ..Self::of(fault) }
    }
}

/// A running one.
pub(super) struct Storm<B> {
    pub(super) berth: B,
    pub(super) scale: Scale,
    pub(super) broker: Broker,
    pub(super) witness: Witness,
    pub(super) longshore: Longshore,
    pub(super) store: Arc<dyn ResultStore>,
    plan: Plan,
    seed: u64,
    random: StdRng,
    tasks: BTreeSet<TaskId>,
    hurt: BTreeSet<u32>,
    began: Instant,
    forgotten: bool,
}

/// A storm for each seed: `plan` says how, `weather` hurts and returns the workers that live on. Then everything that was
/// submitted must come to its end, and all must hold.
pub(super) async fn storms<B: Berth>(
    plan: impl AsyncFn(&B, Scale) -> Plan,
    weather: impl AsyncFn(&mut Storm<B>) -> Vec<Worker>,
) {
    let scale = Scale::read();
    for seed in 0..scale.seeds {
        let berth = B::start().await;
        let plan = plan(&berth, scale).await;
        let mut storm = Storm::begin(berth, plan, (scale, seed)).await;
        let survivors = weather(&mut storm).await;
        storm.end(survivors).await;
    }
}

impl<B: Berth> Storm<B> {
    async fn begin(berth: B, plan: Plan, (scale, seed): (Scale, u64)) -> Self {
        let address = plan.broker.clone().unwrap_or_else(|| berth.url());
        let records = plan.store.clone().or_else(|| berth.store());
        let longshore = Longshore::with_settings(&settings(&plan, &address, records.as_deref()));
        // Straight, whatever way the workers go.
        let broker = open_broker(&berth.url()).await;
        let store = open_store(records.as_deref().unwrap_or(&berth.url())).await;
        let witness = Witness::in_folder(longshore.folder());
        Self {
            berth,
            scale,
            broker,
            witness,
            longshore,
            store,
            plan,
            seed,
            random: StdRng::seed_from_u64(seed),
            tasks: BTreeSet::new(),
            hurt: BTreeSet::new(),
            began: Instant::now(),
            forgotten: false,
        }
    }

    /// A number that the seed decides.
    pub(super) fn random(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.random.random_range(range)
    }

    /// So many tasks that only run for a while.
    pub(super) fn tasks(&mut self, count: usize) -> Vec<Task> {
        let made = (0..count).map(|_| {
            let sleep = format!("{}ms", self.random.random_range(self.plan.runs.clone()));
            let args = [("sleep".to_owned(), Arg::Text(sleep))].into_iter().collect();
            Task { queue: queue(), ..Task::new("longshore.ping", args) }
        });
        made.collect()
    }

    /// Submits the storm's tasks.
    pub(super) async fn submit(&mut self) {
        let tasks = self.tasks(self.scale.tasks);
        self.submit_these(&tasks).await;
    }

    pub(super) async fn submit_these(&mut self, tasks: &[Task]) {
        for batch in tasks.chunks(BATCH) {
            let submissions = batch.iter().map(|task| Submission::of(task, ContentType::Json, 0)).collect();
            self.broker.submit.submit(submissions).await.unwrap();
        }
        self.count(tasks);
    }

    /// Counts tasks of the storm that were submitted.
    pub(super) fn count(&mut self, tasks: &[Task]) {
        self.tasks.extend(tasks.iter().map(|task| task.id.clone()));
    }

    /// Starts a worker of that name.
    pub(super) async fn worker(&self, name: &str) -> Worker {
        self.worker_in(name, &[]).await
    }

    /// The same with `fails`, such as `recorded:kill@3`.
    pub(super) async fn failing_worker(&self, name: &str, fails: &str) -> Worker {
        self.worker_in(name, &[("LONGSHORE_FAILPOINT", fails.to_owned())]).await
    }

    /// The same with one lane: between the fence's answer and the effect there is always a moment, however short, and with
    /// more lanes another attempt could be frozen in it.
    pub(super) async fn failing_lane(&self, name: &str, fails: &str) -> Worker {
        let lanes = ("LONGSHORE_WORKER__CONCURRENCY", "1".to_owned());
        self.worker_in(name, &[lanes, ("LONGSHORE_FAILPOINT", fails.to_owned())]).await
    }

    /// The same in this environment.
    pub(super) async fn worker_in(&self, name: &str, environment: &[(&str, String)]) -> Worker {
        let mut command = self.longshore.command(&["worker", "--name", name]);
        command.env("LONGSHORE_WITNESS", self.witness.path());
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        self.longshore.start(&command).await
    }

    /// Submits the storm's tasks and starts two workers; they have done that share, in percent, when it returns.
    pub(super) async fn two_at_work(&mut self, percent: usize) -> Vec<Worker> {
        self.submit().await;
        let workers = vec![self.worker("one").await, self.worker("two").await];
        self.done(percent).await;
        workers
    }

    /// What this worker runs may be begun once more by another.
    pub(super) fn excuse(&mut self, worker: &Worker) {
        self.hurt.insert(worker.pid().as_raw().unsigned_abs());
    }

    /// Waits until the worker dies by its failpoint.
    pub(super) async fn dies(&mut self, mut worker: Worker) {
        self.excuse(&worker);
        let ended = eventually(SOON, "the worker dies", async || worker.ended()).await;
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&ended),
            Some(9),
            "{ended}: {}",
            worker.log()
        );
    }

    /// Kills the worker.
    pub(super) fn kill(&mut self, mut worker: Worker) {
        self.excuse(&worker);
        worker.kill();
    }

    /// Waits until so many tasks came to `moment`.
    pub(super) async fn reached(&self, moment: Moment, count: usize) {
        eventually(SOON, &format!("{count} tasks are {moment}"), async || {
            (self.witness.count(moment) >= count).then_some(())
        })
        .await;
    }

    /// Waits until that share of the storm's tasks, in percent, is done.
    pub(super) async fn done(&self, percent: usize) {
        self.reached(Moment::Published, self.scale.tasks * percent / 100).await;
    }

    /// Waits until all is done and told, by whom ever.
    pub(super) async fn all_ended(&self) {
        if let Err(open) = self.calm().await {
            panic!("not all is done: {open}");
        }
    }

    /// The tasks that this worker began and did not end.
    pub(super) fn begun_by(&self, worker: &Worker) -> BTreeSet<String> {
        let pid = worker.pid().as_raw().unsigned_abs();
        let seen = self.witness.seen();
        let of = |moment| {
            let lines = seen.iter().filter(move |seen| seen.pid == pid && seen.moment == moment);
            lines.map(|seen| seen.task.clone()).collect::<BTreeSet<_>>()
        };
        of(Moment::Running).difference(&of(Moment::Recorded)).cloned().collect()
    }

    /// Waits until one of these tasks is begun once more.
    pub(super) async fn begun_again(&self, tasks: &BTreeSet<String>) {
        eventually(SOON, "another begins one of them, too", async || {
            let seen = self.witness.seen();
            let starts = |task: &String| {
                seen.iter().filter(|s| s.moment == Moment::Running && s.task == *task).count()
            };
            tasks.iter().any(|task| starts(task) > 1).then_some(())
        })
        .await;
    }

    /// From now on a task that had its effect needs no record: the records are about to be lost.
    pub(super) fn forgives_forgotten_records(&mut self) {
        self.forgotten = true;
    }

    /// The tasks whose records must be there.
    fn remembered(&self) -> BTreeSet<&TaskId> {
        let seen = if self.forgotten { self.witness.seen() } else { Vec::new() };
        let done: BTreeSet<_> =
            seen.iter().filter(|s| s.moment == Moment::Published).map(|s| s.task.as_str()).collect();
        self.tasks.iter().filter(|task| !done.contains(task.as_str())).collect()
    }

    /// Waits until all is done and told, drains the survivors, and judges.
    async fn end(self, survivors: Vec<Worker>) {
        let calm = self.calm().await;
        if let Err(what) = &calm {
            for worker in &survivors {
                eprintln!("the log of {}:\n{}", worker.pid(), tail(&worker.log()));
            }
            eprintln!("{what}");
        }
        let mut codes = Vec::new();
        for mut worker in survivors {
            worker.signal(Signal::SIGTERM);
            codes.push(worker.end().await.code());
        }
        let tally = self.tally().await;
        tally.write();
        assert!(calm.is_ok(), "not calm after {:?}: {tally}", self.calm_within());
        assert!(tally.holds(), "{tally}");
        assert!(codes.iter().all(|code| *code == Some(0)), "every worker ends well: {codes:?}");
        assert_eq!(self.left_behind(), Vec::<PathBuf>::new(), "nothing is left behind");
    }

    fn calm_within(&self) -> Duration {
        self.scale.calm_within() + B::NOTICES
    }

    async fn calm(&self) -> Result<(), String> {
        let (within, since) = (self.calm_within(), Instant::now());
        loop {
            let Some(open) = self.open_ends().await else { return Ok(()) };
            if since.elapsed() > within {
                return Err(open);
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// What is still to be done; `None`: nothing.
    async fn open_ends(&self) -> Option<String> {
        let queues = match self.broker.admin.queues().await {
            Ok(queues) => queues,
            Err(error) => return Some(error.to_string()),
        };
        if let Some(open) = queues.iter().find(|queue| queue.ready + queue.leased + queue.delayed > 0) {
            return Some(format!("{open:?}"));
        }
        let records = match self.records().await {
            Ok(records) => records,
            Err(error) => return Some(error),
        };
        let open = self.remembered().into_iter().find(|task| {
            records
                .get(task.as_str())
                .is_none_or(|record| !record.status.is_finished() || !record.owed.is_empty())
        });
        open.map(|task| format!("{task}: {:?}", records.get(task.as_str())))
    }

    async fn records(&self) -> Result<BTreeMap<String, Record>, String> {
        let query = RecordQuery { limit: self.tasks.len() * 2 + 10, ..RecordQuery::default() };
        let listed = self.store.list(&query).await.map_err(|error| error.to_string())?;
        Ok(listed.into_iter().map(|record| (record.id.to_string(), record)).collect())
    }

    async fn tally(&self) -> Tally {
        let records = self.records().await.unwrap_or_default();
        let lost = self.remembered().into_iter().filter(|task| {
            records.get(task.as_str()).is_none_or(|record| record.status != store::Status::Succeeded)
        });
        let lost = lost.count();
        let (mut untold, mut wrong, mut again) = (0, 0, 0);
        if self.broker.capabilities.replay {
            let told = self.told().await;
            for task in &self.tasks {
                let ends = told.get(task.as_str()).map_or(&[][..], Vec::as_slice);
                let recorded = records.get(task.as_str()).and_then(Record::last_event);
                let recorded = recorded.map(|event| (event.fence.0, event.number, event.kind()));
                let expected = recorded.or(ends.first().copied().filter(|_| self.forgotten));
                untold += usize::from(ends.is_empty());
                wrong += ends.iter().filter(|end| Some(**end) != expected).count();
                again += ends.len().saturating_sub(1);
            }
        }
        Tally {
            broker: B::NAME,
            fault: self.plan.fault.clone(),
            seed: self.seed,
            tasks: self.tasks.len(),
            lost,
            starts: self.witness.starts(&self.hurt),
            untold,
            wrong,
            again,
            took: self.began.elapsed(),
        }
    }

    /// Every end of a task that was told, as a reader of the past finds it.
    async fn told(&self) -> BTreeMap<String, Vec<(u64, u64, EventKind)>> {
        let kinds = vec![EventKind::Succeeded, EventKind::Failed, EventKind::Canceled, EventKind::Dead];
        let filter = EventFilter { kinds, ..EventFilter::default() };
        let mut events = self.broker.topic.replay(filter, EventStart::Oldest).await.unwrap();
        let mut told: BTreeMap<String, Vec<_>> = BTreeMap::new();
        while let Some(event) = events.next().await {
            let event = event.unwrap();
            told.entry(event.task.to_string()).or_default().push((event.fence.0, event.number, event.kind()));
        }
        told
    }

    /// Ends that nobody recorded and folders of tasks that ended.
    fn left_behind(&self) -> Vec<PathBuf> {
        let state = self.longshore.state();
        ["journal", "work"].iter().flat_map(|room| below(&state.join(room), 2)).collect()
    }
}

/// What lies so many folders deep.
fn below(folder: &std::path::Path, depth: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    if depth == 1 { entries.collect() } else { entries.flat_map(|entry| below(&entry, depth - 1)).collect() }
}

fn tail(log: &str) -> &str {
    let from = log.len().saturating_sub(6_000);
    &log[log.ceil_char_boundary(from)..]
}

fn settings(plan: &Plan, broker: &str, store: Option<&str>) -> String {
    let store = store.map(|store| format!("store = \"{store}\"\n")).unwrap_or_default();
    format!(
        "brokers = [\"{broker}\"]\n{store}connect_timeout = \"5s\"\n\
         [worker]\nqueues = [\"{QUEUE}\"]\nconcurrency = 4\nlease = \"{}ms\"\nupkeep_interval = \"1s\"\npresence_interval = \"1s\"\n\
         release_damping = \"200ms\"\n{}\n",
        plan.lease.as_millis(),
        plan.worker,
    )
}

fn options() -> OpenOptions {
    OpenOptions {
        queues: vec![queue()],
        worker: "harbour master".to_owned(),
        incarnation: TaskId::fresh().to_string(),
        lease: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(10),
        event_age: Duration::from_secs(3_600),
        event_count: 1_000_000,
    }
}

pub(super) async fn open_broker(url: &str) -> Broker {
    broker::open(&BrokerUrl::parse(url).unwrap(), &options()).await.unwrap()
}

pub(super) async fn open_store(url: &str) -> Arc<dyn ResultStore> {
    store::open(&BrokerUrl::parse(url).unwrap(), &options()).await.unwrap()
}
