//! `task list`: records and what waits in queues, newest first.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Open;
use super::asked::Asked;
use crate::broker::{BrokerError, Contents, Waiting, WaitingQuery};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::events::since;
use crate::cli::output::{age, short};
use crate::cli::request::pair;
use crate::cli::watch::{Standing, end_in_words, stands, submitted};
use crate::store::{Record, RecordQuery, Status};
use crate::task::QueueName;

const EXAMPLES: &str = "\
Examples:
  longshore task list --status running --status staging
  longshore task list --label study=a --since 2h
  longshore task list --output json | jq -r '.tasks[].id'";

/// List tasks, newest first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// Only in this state: queued, staging, running, uploading, retrying, released, succeeded, failed, canceled, dead; can be repeated
    #[arg(long, value_name = "STATE", value_parser = status)]
    status: Vec<Status>,
    /// Only of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only with this label, NAME=VALUE; can be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Only changed since this time, or within so much time
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

fn status(text: &str) -> Result<Status, String> {
    Status::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        format!("{text:?} is no state: choose of {}", known.join(", "))
    })
}

impl List {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let rows = self.rows(context, open).await?;
        let output = context.output;
        if output.is_json() {
            let tasks: Vec<Value> = rows.iter().map(to_json).collect();
            return output.document(&json!({ "tasks": tasks }));
        }
        if rows.is_empty() {
            output.note("there are no such tasks");
            return Ok(());
        }
        let now = Timestamp::now();
        let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, now)).collect();
        output.table(&["ID", "STATE", "QUEUE", "KIND", "TRY", "AGE", "WORKER", "WHAT"], &cells)
    }

    async fn rows(&self, context: &Context, open: &Open) -> Result<Vec<Row>, CliError> {
        let labels = self.label.iter().map(|text| pair("--label", text)).collect::<Result<Vec<_>, _>>()?;
        let wants_queued = self.status.is_empty() || self.status.contains(&Status::Queued);
        let waiting = if wants_queued { self.waiting(context, open, &labels).await? } else { Vec::new() };
        let query = RecordQuery {
            status: self.status.clone(),
            queue: self.queue.clone(),
            labels,
            since: self.since,
            owing: false,
            limit: self.limit,
        };
        let only_queued = self.status == [Status::Queued];
        let mut records = if only_queued { Vec::new() } else { open.store.list(&query).await? };
        let mut rows = Vec::new();
        for (message, asked) in waiting {
            let known = match records.iter().position(|record| record.id == message.task) {
                Some(place) => Some(records.swap_remove(place)),
                None => open.store.load(&message.task).await?.map(|versioned| versioned.record),
            };
            let row = Row { standing: stands(known, vec![message]), asked };
            if self.wants(&row) {
                rows.push(row);
            }
            // The newest came first: older ones would be cut off.
            if rows.len() >= self.limit {
                break;
            }
        }
        let known = |record| Row { standing: Standing::Known(Box::new(record)), asked: Asked::Untold };
        rows.extend(records.into_iter().map(known).filter(|row| self.wants(row)));
        rows.sort_by_key(|row| std::cmp::Reverse(when(&row.standing)));
        rows.truncate(self.limit);
        Ok(rows)
    }

    fn wants(&self, row: &Row) -> bool {
        self.status.is_empty() || self.status.contains(&state(&row.standing))
    }

    /// What waits and is asked for, newest first.
    async fn waiting(
        &self,
        context: &Context,
        open: &Open,
        labels: &[(String, String)],
    ) -> Result<Vec<(Waiting, Asked)>, CliError> {
        let contents = if labels.is_empty() { Contents::Left } else { Contents::Given };
        let query = WaitingQuery { task: None, queue: self.queue.clone(), limit: LOOKED_THROUGH, contents };
        let found = match open.broker.admin.waiting(&query).await {
            Ok(found) => found,
            Err(BrokerError::Unsupported { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        if found.len() >= LOOKED_THROUGH {
            context.output.note(format_args!(
                "only the first {LOOKED_THROUGH} queued tasks were looked through; --queue narrows it down"
            ));
        }
        let is_recent = |message: &Waiting| self.since.is_none_or(|since| message.submitted >= since);
        let mut waiting: Vec<(Waiting, Asked)> = found
            .into_iter()
            .filter(is_recent)
            .map(|mut message| {
                let asked = Asked::of(&message, context);
                message.raw = None;
                (message, asked)
            })
            .collect();
        let untold = waiting.iter().filter(|(_, asked)| *asked == Asked::Untold).count();
        if !labels.is_empty() && untold > 0 {
            context.output.note(format_args!(
                "the labels of {untold} queued tasks are not known: the broker does not show what they hold"
            ));
        }
        waiting.retain(|(_, asked)| asked.has_labels(labels));
        waiting.sort_by_key(|(message, _)| std::cmp::Reverse(message.submitted));
        Ok(waiting)
    }
}

/// Most queued tasks that a list looks through.
const LOOKED_THROUGH: usize = 10_000;

/// A line of the list.
struct Row {
    standing: Standing,
    asked: Asked,
}

fn state(row: &Standing) -> Status {
    match row {
        Standing::Known(record) => record.status,
        Standing::Queued(_) | Standing::Unknown => Status::Queued,
    }
}

fn when(row: &Standing) -> Timestamp {
    match row {
        Standing::Known(record) => submitted(record),
        Standing::Queued(message) => message.submitted,
        Standing::Unknown => Timestamp::UNIX_EPOCH,
    }
}

fn cells(row: &Row, now: Timestamp) -> Vec<String> {
    let dash = || "-".to_owned();
    let age = age(when(&row.standing), now);
    match &row.standing {
        Standing::Unknown => Vec::new(),
        Standing::Queued(message) => {
            let what = match (message.not_before, message.ahead) {
                (Some(time), _) if time > now => format!("not before {}", crate::cli::output::time(time)),
                (_, Some(ahead)) if ahead > 0 => format!("{ahead} before it"),
                _ => String::new(),
            };
            vec![
                message.task.to_string(),
                Status::Queued.as_str().to_owned(),
                message.queue.to_string(),
                row.asked.task().map_or_else(dash, |task| task.kind.clone()),
                dash(),
                age,
                dash(),
                what,
            ]
        }
        Standing::Known(record) => vec![
            record.id.to_string(),
            record.status.as_str().to_owned(),
            record.queue.to_string(),
            record.kind.clone(),
            record.attempts.to_string(),
            age,
            record.owner.as_ref().map_or_else(dash, |owner| owner.worker.clone()),
            what(record),
        ],
    }
}

fn what(record: &Record) -> String {
    if let Some(spooled) = &record.spooled {
        return short(&format!("outputs wait: {}", spooled.error), 60);
    }
    let text = match (&record.outcome, &record.details.progress, &record.last_error) {
        (Some(_), ..) if record.status != Status::Succeeded => {
            let told = end_in_words(record);
            told.split_once(": ").map_or(told.clone(), |(_, reason)| reason.to_owned())
        }
        (None, _, Some(error)) => error.to_string(),
        (None, Some(progress), None) => progress.message.clone().unwrap_or_default(),
        _ => record.details.image.clone().unwrap_or_default(),
    };
    short(&text, 60)
}

fn to_json(row: &Row) -> Value {
    match &row.standing {
        Standing::Known(record) => serde_json::to_value(record.shown()).unwrap_or_default(),
        Standing::Queued(message) => queued_json(message, &row.asked),
        Standing::Unknown => Value::Null,
    }
}

/// A queued task in the form of a record.
pub(super) fn queued_json(message: &Waiting, asked: &Asked) -> Value {
    let mut document = json!({
        "id": message.task,
        "queue": message.queue,
        "priority": message.priority,
        "status": Status::Queued,
        "times": { "queued": message.submitted },
        "waiting": message,
    });
    if let Some(task) = asked.task() {
        document["kind"] = json!(task.kind);
        document["labels"] = json!(task.labels);
        document["resources"] = json!(task.resources);
    }
    document
}
