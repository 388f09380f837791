//! `doctor`: looks for what is missing; each finding names its remedy.
//!
//! `doctor --quick` is for health checks: it asks only what a worker cannot do without, says nothing while all is well, and
//! bounds each look.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use crate::broker::celery::speaker;
use crate::broker::{Broker, BrokerUrl, Intake};
use crate::celery::Backend;
use crate::config::Address;
use crate::docker::DockerApi;
use crate::docker::engine::Survey;
use crate::worker;

const EXAMPLES: &str = "\
Examples:
  longshore doctor
  longshore --broker sqlite:///srv/longshore.db doctor --output json
  longshore doctor --quick                 as the health check of a container

Each thing that is found comes with its remedy. --quick looks whether the settings can be read, the
state and work folders can be written, the clock is set, the policy is one, and every broker and the
store answer within 5 seconds each. It leaves out the engine, queues and workers, and prints only
what is broken. Exit codes: 0 nothing is broken, 2 wrong settings, 3 something is broken.";

/// Look for what is missing: engine, disk, brokers, store, policy, clock.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// Only what a health check needs, in silence while all is well
    #[arg(long)]
    quick: bool,
}

/// How closely one looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// For a health check.
    Quick,
    /// For a person.
    Whole,
}

/// The longest that a broker or store may take to answer a quick look.
const QUICK_ANSWER: Duration = Duration::from_secs(5);

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// Nothing to do.
    Good,
    /// It works, but a person should know.
    Doubtful,
    /// It does not work.
    Broken,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    what: &'static str,
    /// How it is.
    health: Health,
    /// What was seen.
    seen: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, health: Health::Good, seen: seen.into(), remedy: None }
    }
    fn doubtful(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { health: Health::Doubtful, remedy: Some(remedy.into()), ..Self::good(what, seen) }
    }
    fn broken(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { health: Health::Broken, ..Self::doubtful(what, seen, remedy) }
    }
}

impl Doctor {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let look = if self.quick { Look::Quick } else { Look::Whole };
        let mut findings = vec![settings(context)];
        findings.extend(folders(context));
        findings.push(clock());
        findings.extend(policy(context));
        if look == Look::Whole {
            findings.push(engine(context).await);
        }
        for address in &context.settings().brokers {
            findings.extend(bounded(look, "broker", broker(context, address, look)).await);
        }
        let store = async { vec![store(context).await] };
        findings.extend(bounded(look, "store", store).await);
        if look == Look::Whole {
            findings.extend(results(context).await);
        }
        let broken = findings.iter().filter(|finding| finding.health == Health::Broken).count();
        if context.output.is_json() {
            context.output.document(&json!({ "findings": findings, "broken": broken }))?;
        } else {
            let told =
                findings.iter().filter(|finding| look == Look::Whole || finding.health == Health::Broken);
            print(context, &told.collect::<Vec<_>>())?;
        }
        if broken == 0 {
            Ok(())
        } else {
            Err(CliError::Infrastructure(format!(
                "{broken} of {} looks found something broken",
                findings.len()
            )))
        }
    }
}

/// What a look found, or that it found nothing in the time that a health check has.
async fn bounded(
    look: Look,
    what: &'static str,
    findings: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    match look {
        Look::Whole => findings.await,
        Look::Quick => tokio::time::timeout(QUICK_ANSWER, findings).await.unwrap_or_else(|_| {
            let seen = format!("no answer within {} s", QUICK_ANSWER.as_secs());
            vec![Finding::broken(what, seen, "longshore doctor waits longer and looks closer")]
        }),
    }
}

fn print(context: &Context, findings: &[&Finding]) -> Result<(), CliError> {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for finding in findings {
        let mark = match finding.health {
            Health::Good => "ok    ",
            Health::Doubtful => "doubt ",
            Health::Broken => "BROKEN",
        };
        context.output.line(format_args!("{mark}  {:<width$}  {}", finding.what, finding.seen))?;
        if let Some(remedy) = &finding.remedy {
            context.output.line(format_args!("{:8}{:<width$}  → {remedy}", "", ""))?;
        }
    }
    Ok(())
}

fn settings(context: &Context) -> Finding {
    match &context.loaded.file {
        Some(file) => Finding::good("settings", format!("{} is right", file.display())),
        None => Finding::good("settings", "no file; defaults, environment and flags"),
    }
}

/// Share of a file system above which intake would soon pause.
const FULL: f64 = 0.8;

fn folders(context: &Context) -> Vec<Finding> {
    let settings = context.settings();
    vec![
        folder("state folder", &settings.state_dir, "set state_dir to a folder that this user may write"),
        folder("work folder", &settings.work_dir, "set work_dir to a folder that this user may write"),
    ]
}

/// Whether a folder can be made, written, and has room.
fn folder(what: &'static str, folder: &Path, remedy: &str) -> Finding {
    let shown = folder.display();
    if let Err(error) = std::fs::create_dir_all(folder) {
        return Finding::broken(what, format!("{shown} cannot be made: {error}"), remedy);
    }
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    let written = nix::unistd::mkfifo(&probe, nix::sys::stat::Mode::S_IRWXU);
    if let Err(error) = written {
        return Finding::broken(what, format!("{shown} cannot hold pipes: {error}"), remedy);
    }
    if let Err(error) = std::fs::remove_file(&probe) {
        return Finding::broken(what, format!("{shown} cannot be cleaned: {error}"), remedy);
    }
    match nix::sys::statvfs::statvfs(folder) {
        Err(error) => {
            Finding::doubtful(what, format!("{shown}: its file system does not answer: {error}"), remedy)
        }
        Ok(room) => {
            let (free, all) = (room.blocks_available(), room.blocks().max(1));
            #[expect(clippy::cast_precision_loss, reason = "a share in percent")]
            let used = 1.0 - free as f64 / all as f64;
            let free = free * room.fragment_size() / (1 << 30);
            let seen = format!("{shown}, {free} GiB free, {:.0} % used", used * 100.0);
            if used >= FULL {
                Finding::doubtful(what, seen, "free some space: tasks that write much will fail")
            } else {
                Finding::good(what, seen)
            }
        }
    }
}

/// Leases, records and fences count in wall-clock time: a clock that stands in the past breaks their order.
fn clock() -> Finding {
    let now = Timestamp::now();
    let built = Timestamp::from_second(1_760_000_000).unwrap_or(Timestamp::UNIX_EPOCH);
    if now < built {
        Finding::broken("clock", format!("{now} is in the past"), "set the clock, and keep it with NTP")
    } else {
        Finding::good("clock", super::output::time(now))
    }
}

fn policy(context: &Context) -> Vec<Finding> {
    let policy = match worker::handlers::policy(context.settings()) {
        Ok(policy) => policy,
        Err(error) => {
            return vec![Finding::broken("policy", error.to_string(), "correct the settings of policy")];
        }
    };
    let warnings = policy.warnings();
    if warnings.is_empty() {
        let profile = context.settings().policy.profile.unwrap_or_default();
        let name = serde_json::to_value(profile).unwrap_or_default();
        return vec![Finding::good("policy", format!("profile {}", name.as_str().unwrap_or_default()))];
    }
    let remedy =
        "set policy.profile and policy.mode as they are meant; longshore policy show lists the rules";
    warnings.into_iter().map(|warning| Finding::doubtful("policy", warning, remedy)).collect()
}

/// The longest that the engine may take to say its version.
const ENGINE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

async fn engine(context: &Context) -> Finding {
    let started = Instant::now();
    let remedy =
        "start Docker or Podman, let this user use its socket, or name it with docker.host or DOCKER_HOST";
    let docker = &context.settings().docker;
    let address = match crate::docker::Address::read(&docker.host) {
        Ok(address) => address,
        Err(error) => {
            return Finding::broken("engine", error.to_string(), "correct docker.host or DOCKER_HOST");
        }
    };
    let engine = DockerApi::new(address, docker.client_timeout.get().min(ENGINE_ANSWERS_WITHIN));
    match engine.version().await {
        Ok(version) => Finding::good(
            "engine",
            format!("{}, version {version}, answered in {}", engine.address(), ms(started)),
        ),
        Err(error) => Finding::broken("engine", error.to_string(), remedy),
    }
}

async fn broker(context: &Context, address: &Address, look: Look) -> Vec<Finding> {
    let started = Instant::now();
    let remedy = "check brokers in the settings, and that the server runs and lets us in";
    let broker = match context.broker_at(address, Vec::new()).await {
        Ok(broker) => broker,
        Err(error) => return vec![Finding::broken("broker", bare(&error), remedy)],
    };
    if look == Look::Quick {
        // Opening it asked it already.
        return vec![Finding::good("broker", format!("{}, answered in {}", broker.name, ms(started)))];
    }
    let queues = match broker.admin.queues().await {
        Ok(queues) => queues,
        Err(error) => return vec![Finding::broken("broker", error.to_string(), remedy)],
    };
    let waits: u64 = queues.iter().map(|queue| queue.ready + queue.delayed).sum();
    let seen = format!(
        "{}, {}, {} waiting, answered in {}",
        broker.name,
        counted(queues.len() as u64, "queue"),
        counted(waits, "task"),
        ms(started)
    );
    let mut findings = vec![Finding::good("broker", seen)];
    for queue in queues.iter().filter(|queue| queue.intake == Intake::Paused) {
        let name = &queue.name;
        findings.push(Finding::doubtful(
            "queue",
            format!("{name} is paused"),
            format!("longshore queue resume {name}"),
        ));
    }
    for queue in queues.iter().filter(|queue| queue.dead > 0) {
        let seen = format!("{} has {}", queue.name, counted(queue.dead, "dead letter"));
        findings.push(Finding::doubtful("queue", seen, "longshore dead list tells why"));
    }
    findings.push(workers(&broker, waits).await);
    findings
}

async fn workers(broker: &Broker, waits: u64) -> Finding {
    match broker.fleet.workers().await {
        Err(error) => Finding::doubtful("workers", error.to_string(), "the broker cannot tell who lives"),
        Ok(workers) if workers.is_empty() && waits > 0 => {
            Finding::doubtful("workers", "none lives, and tasks wait", "start one with longshore worker")
        }
        Ok(workers) if workers.is_empty() => Finding::good("workers", "none lives, and nothing waits"),
        Ok(workers) => {
            let (busy, lanes) = workers.iter().fold((0, 0), |(b, l), w| (b + w.busy, l + w.lanes));
            Finding::good("workers", format!("{} live, {busy} of {lanes} slots taken", workers.len()))
        }
    }
}

async fn store(context: &Context) -> Finding {
    let started = Instant::now();
    let remedy = "check store in the settings, and that the server runs and lets us in";
    let store = match context.store().await {
        Ok(store) => store,
        Err(error) => return Finding::broken("store", bare(&error), remedy),
    };
    let query = crate::store::RecordQuery { limit: 1, ..crate::store::RecordQuery::default() };
    if let Err(error) = store.list(&query).await {
        return Finding::broken("store", error.to_string(), remedy);
    }
    let info = store.describe();
    let remote = context.settings().brokers.iter().any(|broker| !is_local(broker.expose()));
    if remote && !info.shared {
        return Finding::doubtful(
            "store",
            format!("{} is this host's alone: effects are not fenced between hosts", info.name),
            "set store to one that all workers share, unless this is the only worker",
        );
    }
    Finding::good("store", format!("{}, answered in {}", info.name, ms(started)))
}

/// Where the results of Celery's tasks go; nothing where Celery is not spoken.
async fn results(context: &Context) -> Option<Finding> {
    let settings = context.settings();
    let url = BrokerUrl::parse(settings.brokers.first()?.expose()).ok()?;
    speaker(&url)?;
    let started = Instant::now();
    let named = settings.celery.result_backend.expose();
    let remedy = "set celery.result_backend as the senders have it, such as redis://host:6379/0 or rpc://";
    Some(match Backend::open(named, &url, settings.connect_timeout.get()).await {
        Err(error) => Finding::broken("results", error.to_string(), remedy),
        Ok(None) => {
            Finding::doubtful("results", "none are kept: whoever waits for one waits for ever", remedy)
        }
        Ok(Some(Backend::Rpc(_))) => {
            Finding::good("results", "go to the queue that each sender names (rpc://)")
        }
        Ok(Some(Backend::Redis(_))) => {
            Finding::good("results", format!("go to Redis, answered in {}", ms(started)))
        }
    })
}

fn is_local(address: &str) -> bool {
    address.starts_with("sqlite:") || address.starts_with("memory:")
}

/// Without the hint at doctor itself.
fn bare(error: &CliError) -> String {
    match error {
        CliError::Broker(error) => error.to_string(),
        CliError::Store(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn ms(since: Instant) -> String {
    format!("{} ms", Duration::as_millis(&since.elapsed()))
}
