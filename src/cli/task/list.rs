//! `task list`: records and what waits in queues, newest first.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Open;
use crate::broker::{BrokerError, Waiting, WaitingQuery};
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
        let rows = self.rows(open).await?;
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

    async fn rows(&self, open: &Open) -> Result<Vec<Standing>, CliError> {
        let labels = self.label.iter().map(|text| pair("--label", text)).collect::<Result<Vec<_>, _>>()?;
        let wants_queued = self.status.is_empty() || self.status.contains(&Status::Queued);
        // Labels stand in the message itself, which queues do not tell.
        let waiting = if wants_queued && labels.is_empty() { self.waiting(open).await? } else { Vec::new() };
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
        for message in waiting {
            let known = match records.iter().position(|record| record.id == message.task) {
                Some(place) => Some(records.swap_remove(place)),
                None => open.store.load(&message.task).await?.map(|versioned| versioned.record),
            };
            rows.push(stands(known, vec![message]));
        }
        rows.extend(records.into_iter().map(|record| Standing::Known(Box::new(record))));
        rows.retain(|row| self.status.is_empty() || self.status.contains(&state(row)));
        rows.sort_by_key(|row| std::cmp::Reverse(when(row)));
        rows.truncate(self.limit);
        Ok(rows)
    }

    async fn waiting(&self, open: &Open) -> Result<Vec<Waiting>, CliError> {
        let query = WaitingQuery { queue: self.queue.clone(), limit: self.limit, ..WaitingQuery::default() };
        match open.broker.admin.waiting(&query).await {
            Ok(waiting) => Ok(waiting
                .into_iter()
                .filter(|m| self.since.is_none_or(|since| m.submitted >= since))
                .collect()),
            Err(BrokerError::Unsupported { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
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

fn cells(row: &Standing, now: Timestamp) -> Vec<String> {
    let dash = || "-".to_owned();
    let age = age(when(row), now);
    match row {
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
                dash(),
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

fn to_json(row: &Standing) -> Value {
    match row {
        Standing::Known(record) => serde_json::to_value(record.shown()).unwrap_or_default(),
        Standing::Queued(message) => queued_json(message),
        Standing::Unknown => Value::Null,
    }
}

/// A queued task in the form of a record.
pub(super) fn queued_json(message: &Waiting) -> Value {
    json!({
        "id": message.task,
        "queue": message.queue,
        "priority": message.priority,
        "status": Status::Queued,
        "times": { "queued": message.submitted },
        "waiting": message,
    })
}
