//! `policy …`: what tasks may ask for, and what would become of one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::request;
use crate::docker;
use crate::policy::Policy;
use crate::task::{DecodeError, Decoded, QueueName, RawMessage, message};
use crate::worker;

const EXAMPLES: &str = "\
Examples:
  longshore policy test task.json
  LONGSHORE_POLICY__PROFILE=strict longshore policy test task.json

All violations are told, each with the setting that refuses it. Nothing is run and no engine is
asked; paths are looked at on this host. Exit codes: 0 it may run, 1 it would be refused.";

/// Tell what tasks may ask for, and judge one without running it.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    Test(Test),
    Show(Show),
}

/// Judge a task without running it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Test {
    /// The task, - being standard input: an envelope, or a message as decode reads it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Judge it as a task of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
}

/// Print every rule that holds, with its value.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The rules of this queue
    #[arg(long, value_name = "NAME", default_value = "default", hide_default_value = true)]
    queue: QueueName,
}

impl PolicyCommand {
    /// Does what was asked.
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let policy = worker::handlers::policy(context.settings())
            .map_err(|error| CliError::Usage(error.to_string()))?;
        match self {
            Self::Test(test) => test.run(context, &policy),
            Self::Show(show) => show.run(context, &policy),
        }
    }
}

impl Test {
    fn run(self, context: &Context, policy: &Policy) -> Result<(), CliError> {
        let limits = context.limits();
        let unreadable = |error: DecodeError| CliError::Usage(format!("{}: {error}", self.file.display()));
        let message = RawMessage::from_file(&request::read(&self.file)?, &limits).map_err(unreadable)?;
        let mut task = match message::decode(&message, &limits).map_err(unreadable)? {
            Decoded::Task(task) => task,
            Decoded::Unknown(unknown) => {
                return Err(CliError::Usage(format!(
                    "a Celery task called {:?} is none of ours",
                    unknown.name
                )));
            }
        };
        if let Some(queue) = self.queue {
            task.queue = queue;
        }
        if task.kind != docker::DockerRun::KIND {
            return Err(CliError::Usage(format!("policy judges docker_run tasks; this is a {}", task.kind)));
        }
        let audited = docker::trial(&context.settings().docker, policy, task)
            .map_err(|error| CliError::TaskFailed(error.to_string()))?;
        let output = context.output;
        if output.is_json() {
            let told: Vec<String> = audited.iter().map(ToString::to_string).collect();
            return output.document(&json!({ "granted": true, "audited": told }));
        }
        for denied in &audited {
            output.line(format_args!("{denied}"))?;
        }
        output.line(if audited.is_empty() { "it may run" } else { "it may run, for the policy only audits" })
    }
}

impl Show {
    fn run(self, context: &Context, policy: &Policy) -> Result<(), CliError> {
        let rules = serde_json::to_value(policy.rules(&self.queue)).unwrap_or_default();
        let output = context.output;
        let settings = &context.settings().policy;
        if output.is_json() {
            return output.document(&json!({
                "queue": self.queue,
                "profile": settings.profile,
                "mode": settings.mode,
                "rules": rules,
            }));
        }
        let mut rows = Vec::new();
        flatten("policy", &rules, &mut rows);
        output.table(&["RULE", "VALUE"], &rows)?;
        policy.warnings().iter().for_each(|warning| output.note(warning));
        Ok(())
    }
}

/// A row for every value that is no table.
fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, inner)| flatten(&format!("{path}.{key}"), inner, rows));
        }
        plain => rows.push(vec![path.to_owned(), plain.to_string()]),
    }
}
