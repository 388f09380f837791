//! `task show`: everything known of one task.

use clap::Args;
use jiff::Timestamp;

use super::Open;
use super::asked::Asked;
use super::list::queued_json;
use crate::broker::Waiting;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::{Output, time};
use crate::cli::watch::{Standing, end_in_words, unknown};
use crate::store::Record;
use crate::units::Size;

const EXAMPLES: &str = "\
Examples:
  longshore task show last
  longshore task show last --output json | jq .details.exit_code

State, attempts, image and its digest, the times of each phase, exit code, processor time and peak
memory, bytes of each stream, and the end of the log. longshore schema result tells the form of the
JSON; longshore task logs prints the whole log.";

/// Show everything known of a task.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// Id of the task; last: the newest one
    #[arg(value_name = "ID")]
    id: String,
}

impl Show {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let ids = open.resolve(&[self.id]).await?;
        let output = context.output;
        match open.standing(&ids[0]).await? {
            Standing::Unknown => Err(unknown(&ids[0])),
            Standing::Queued(message) if output.is_json() => {
                output.document(&queued_json(&message, &Asked::of(&message, context)))
            }
            Standing::Known(record) if output.is_json() => output.document(&record.shown()),
            Standing::Queued(message) => print(output, &queued(&message, &Asked::of(&message, context))),
            Standing::Known(record) => {
                print(output, &lines(&record))?;
                tail(output, &record)
            }
        }
    }
}

type Lines = Vec<(&'static str, String)>;

fn print(output: Output, lines: &Lines) -> Result<(), CliError> {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        output.line(format_args!("{name:<width$}  {value}"))?;
    }
    Ok(())
}

fn queued(message: &Waiting, asked: &Asked) -> Lines {
    let asks = asked.task();
    vec![
        ("task", message.task.to_string()),
        ("state", "queued".to_owned()),
        ("kind", asks.map(|task| task.kind.clone()).unwrap_or_default()),
        ("labels", asks.map(|task| joined(task.labels.iter().map(pair))).unwrap_or_default()),
        ("queue", message.queue.to_string()),
        ("priority", message.priority.get().to_string()),
        ("submitted", time(message.submitted)),
        ("not before", message.not_before.map(time).unwrap_or_default()),
        (
            "before it",
            message.ahead.filter(|ahead| *ahead > 0).map(|ahead| ahead.to_string()).unwrap_or_default(),
        ),
        (
            "leased",
            message
                .lease
                .as_ref()
                .map(|(until, by)| format!("by {by} until {}", time(*until)))
                .unwrap_or_default(),
        ),
    ]
}

fn lines(record: &Record) -> Lines {
    let details = &record.details;
    let mut lines: Lines = vec![
        ("task", record.id.to_string()),
        ("state", end_in_words(record)),
        ("kind", record.kind.clone()),
        ("queue", record.queue.to_string()),
        ("priority", record.priority.get().to_string()),
        ("attempts", record.attempts.to_string()),
    ];
    if !record.generation.is_first() {
        lines.push(("generation", record.generation.to_string()));
    }
    if let Some(owner) = &record.owner {
        lines.push(("worker", format!("{} on {}", owner.worker, owner.host)));
    }
    if record.outcome.is_none() {
        lines.push(("last error", record.last_error.as_ref().map(ToString::to_string).unwrap_or_default()));
        lines.push(("lease until", record.lease_until.map(time).unwrap_or_default()));
        lines.extend(waits(record));
    }
    lines.push(("labels", joined(record.labels.iter().map(pair))));
    lines.push(("image", details.image.clone().unwrap_or_default()));
    lines.push(("digest", details.image_digest.clone().unwrap_or_default()));
    lines.push(("argv", joined(details.argv.iter().map(|word| quoted(word)))));
    lines.push(("container", details.container.clone().unwrap_or_default()));
    lines.push(("gpus", details.gpus.join(", ")));
    lines.push(("exit code", details.exit_code.map(|code| code.to_string()).unwrap_or_default()));
    lines.push((
        "out of memory",
        if details.oom_killed == Some(true) { "yes".to_owned() } else { String::new() },
    ));
    lines.push(("cpu time", details.cpu_seconds.map(|s| format!("{s:.2} s")).unwrap_or_default()));
    lines.push(("peak memory", details.peak_memory.map(in_bytes).unwrap_or_default()));
    lines.extend(phases(record));
    for stream in &details.streams {
        lines.push(("stream", format!("{}: {}", stream.stream, in_bytes(stream.bytes))));
    }
    for upload in &details.uploads {
        lines.push(("upload", upload.to_string()));
    }
    if !details.result.is_null() {
        lines.push(("result", details.result.to_string()));
    }
    for warning in &details.warnings {
        lines.push(("warning", warning.clone()));
    }
    lines.push(("not yet told", joined(record.owed.iter().cloned())));
    lines
}

/// What becomes of outputs that nobody took yet.
fn waits(record: &Record) -> Lines {
    let Some(spooled) = &record.spooled else { return Lines::new() };
    vec![
        ("outputs wait", spooled.error.to_string()),
        ("since", time(spooled.since)),
        ("tries", spooled.tries.to_string()),
        ("next try", spooled.next.map(time).unwrap_or_default()),
        ("kept until", time(spooled.until)),
    ]
}

fn phases(record: &Record) -> Lines {
    let times = &record.times;
    let phases = [
        ("queued", times.queued),
        ("admitted", times.admitted),
        ("pulled", times.pulled),
        ("staged", times.staged),
        ("started", times.started),
        ("ended", times.ended),
        ("uploaded", times.uploaded),
        ("finished", times.finished),
    ];
    let mut before: Option<Timestamp> = None;
    let mut lines = Vec::new();
    for (name, at) in phases {
        let Some(at) = at else { continue };
        let since = before.map(|before| at.duration_since(before).as_secs_f64());
        lines.push((name, since.map_or_else(|| time(at), |since| format!("{}  +{since:.3} s", time(at)))));
        before = Some(at);
    }
    lines
}

fn tail(output: Output, record: &Record) -> Result<(), CliError> {
    let details = &record.details;
    if details.log_tail.is_empty() {
        return Ok(());
    }
    output.line("log")?;
    if details.log_dropped > 0 {
        output.line(format_args!("  … {} before it", in_bytes(details.log_dropped)))?;
    }
    details.log_tail.lines().try_for_each(|line| output.line(format_args!("  {line}")))
}

fn pair((name, value): (&String, &String)) -> String {
    format!("{name}={value}")
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(" ")
}

fn in_bytes(bytes: u64) -> String {
    let size = Size(bytes).to_string();
    if size.ends_with('B') { size } else { format!("{size} bytes") }
}

/// As a shell would take it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
