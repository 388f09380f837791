//! `dead …`: parked messages: looks at them, brings them back, removes them.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{short, time};
use super::redact::redacted;
use super::submit::submit;
use crate::broker::{Broker, DeadLetter, Submission, Submitted};
use crate::store::ResultStore;
use crate::task::json::{self, Json};
use crate::task::{
    ContentType, Decoded, Limits, Priority, QueueName, RawMessage, Task, TaskId, envelope, message,
};

const EXAMPLES: &str = "\
Examples:
  longshore dead list                              which there are, and why
  longshore dead show 7                            what letter 7 holds, without its tokens
  longshore dead show --raw 7 | longshore decode - what it would mean, or why it is refused
  longshore dead requeue 7 8                       try them again, once the cause is mended
  longshore dead drop 9                            remove one for good

A message is parked as a dead letter, with its original bytes, when no worker can read it or knows
its kind, and when its task brought down its worker too often (worker.poison_limit).";

/// Look at dead letters, bring them back or remove them.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum DeadCommand {
    List(List),
    Show(Show),
    Requeue(Requeue),
    Drop(Drop),
}

/// List dead letters, newest first.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Show a dead letter, without its tokens.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Id of the letter, as dead list tells it
    #[arg(value_name = "LETTER")]
    id: String,
    /// Print the body as it was sent, tokens included
    #[arg(long)]
    raw: bool,
}

/// Put dead letters back into their queues, in a new generation.
#[derive(Debug, Args)]
pub(crate) struct Requeue {
    /// Ids of the letters, as dead list tells them
    #[arg(value_name = "LETTER", required = true)]
    ids: Vec<String>,
    /// Another queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
}

/// Remove dead letters for good.
#[derive(Debug, Args)]
pub(crate) struct Drop {
    /// Ids of the letters, as dead list tells them
    #[arg(value_name = "LETTER", required = true)]
    ids: Vec<String>,
}

impl DeadCommand {
    /// Does what was asked.
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let broker = context.broker().await?;
        match self {
            Self::List(list) => list.run(context, &broker).await,
            Self::Show(show) => show.run(context, &broker).await,
            Self::Requeue(requeue) => requeue.run(context, &broker).await,
            Self::Drop(drop) => drop.run(context, &broker).await,
        }
    }
}

async fn letter(broker: &Broker, id: &str) -> Result<DeadLetter, CliError> {
    broker.dead.show(id).await?.ok_or_else(|| none_of(id))
}

fn none_of(id: &str) -> CliError {
    CliError::Usage(format!("there is no dead letter {id}: longshore dead list tells which there are"))
}

impl List {
    async fn run(self, context: &Context, broker: &Broker) -> Result<(), CliError> {
        let letters = broker.dead.list(self.queue.as_ref(), self.limit).await?;
        let output = context.output;
        if output.is_json() {
            return output.document(&json!({ "dead": letters }));
        }
        if letters.is_empty() {
            output.note("there are no dead letters");
            return Ok(());
        }
        let rows: Vec<Vec<String>> = letters
            .iter()
            .map(|letter| {
                vec![
                    letter.id.clone(),
                    letter.task.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    letter.queue.to_string(),
                    time(letter.parked),
                    letter.bytes.to_string(),
                    short(&letter.reason, 80),
                ]
            })
            .collect();
        output.table(&["LETTER", "TASK", "QUEUE", "PARKED", "BYTES", "REASON"], &rows)
    }
}

impl Show {
    async fn run(self, context: &Context, broker: &Broker) -> Result<(), CliError> {
        let letter = letter(broker, &self.id).await?;
        if self.raw {
            return context.output.bytes(&letter.body);
        }
        // The names of headers tell much, their values may open something.
        let headers: Vec<&String> = letter.headers.keys().collect();
        let body = body(&letter);
        if context.output.is_json() {
            return context.output.document(&json!({
                "letter": letter.summary,
                "content_type": letter.content_type,
                "content_encoding": letter.content_encoding,
                "header_names": headers,
                "body": body,
            }));
        }
        let summary = &letter.summary;
        let output = context.output;
        output.line(format_args!("letter   {}", summary.id))?;
        if let Some(task) = &summary.task {
            output.line(format_args!("task     {task}"))?;
        }
        output.line(format_args!("queue    {}", summary.queue))?;
        output.line(format_args!("parked   {}", time(summary.parked)))?;
        output.line(format_args!("reason   {}", summary.reason))?;
        output.line(format_args!("bytes    {}", summary.bytes))?;
        if let Some(content_type) = &letter.content_type {
            output.line(format_args!("type     {content_type}"))?;
        }
        if let Some(body) = body {
            return output.document(&body);
        }
        output.note("the body cannot be shown without its tokens: --raw prints it as it was sent");
        Ok(())
    }
}

/// The body without its tokens, where it can be read at all.
fn body(letter: &DeadLetter) -> Option<Value> {
    let content_type = ContentType::detect(letter.content_type.as_deref(), &letter.body).ok()?;
    let value = envelope::parse(&letter.body, content_type, &Limits::default()).ok()?;
    // A text or number alone may itself be a token.
    matches!(value, Value::Object(_) | Value::Array(_)).then(|| redacted(&value))
}

impl Requeue {
    async fn run(self, context: &Context, broker: &Broker) -> Result<(), CliError> {
        let store = context.store().await?;
        let mut back = Vec::new();
        for id in &self.ids {
            let letter = letter(broker, id).await?;
            let task = self.put_back(context, broker, store.as_ref(), &letter).await?;
            // Only now: a crash in between leaves a letter whose requeueing is a duplicate, never a lost task.
            broker.dead.drop_letter(id).await?;
            if !context.output.is_json() {
                context.output.line(&task)?;
            }
            back.push(json!({ "letter": id, "id": task }));
        }
        if context.output.is_json() { context.output.document(&json!({ "requeued": back })) } else { Ok(()) }
    }

    async fn put_back(
        &self,
        context: &Context,
        broker: &Broker,
        store: &dyn ResultStore,
        letter: &DeadLetter,
    ) -> Result<TaskId, CliError> {
        let queue = self.queue.clone().unwrap_or_else(|| letter.summary.queue.clone());
        let Some(task) = decoded(letter, &context.limits()) else {
            return as_it_was(broker, letter, queue).await;
        };
        let record = store.load(&task.id).await?.map(|versioned| versioned.record.generation);
        let generation = record.unwrap_or_default().max(task.generation).next();
        let task = Task { queue, generation, not_before: None, expires: None, ..task };
        broker.topic.forget_cancel(&task.id).await?;
        if submit(broker, std::slice::from_ref(&task)).await? == [Submitted::Duplicate] {
            context.output.note(format_args!("{} is queued already", task.id));
        }
        Ok(task.id)
    }
}

fn decoded(letter: &DeadLetter, limits: &Limits) -> Option<Task> {
    let headers = serde_json::to_vec(&letter.headers).ok()?;
    let mut message = RawMessage::new(letter.body.clone());
    if let Json::Map(headers) = json::parse(&headers, limits).ok()? {
        message.headers = headers;
    }
    message.content_type.clone_from(&letter.content_type);
    message.content_encoding.clone_from(&letter.content_encoding);
    message.properties.clone_from(&letter.properties);
    message.queue = Some(letter.summary.queue.to_string());
    match message::decode(&message, limits).ok()? {
        Decoded::Task(task) => Some(task),
        Decoded::Unknown(_) => None,
    }
}

/// What cannot be read here goes back byte for byte: another worker may read it.
async fn as_it_was(broker: &Broker, letter: &DeadLetter, queue: QueueName) -> Result<TaskId, CliError> {
    let task = letter.summary.task.clone().unwrap_or_else(TaskId::fresh);
    let submission = Submission {
        task: task.clone(),
        queue,
        priority: Priority::default(),
        body: letter.body.clone(),
        content_type: letter.content_type.clone().unwrap_or_else(|| ContentType::Json.as_str().to_owned()),
        content_encoding: letter.content_encoding.clone(),
        headers: letter.headers.clone(),
        properties: letter.properties.clone(),
        dedup_id: format!("{task}.requeued.{}", Timestamp::now().as_microsecond()),
        not_before: None,
        expires: None,
    };
    broker.submit.submit(vec![submission]).await?;
    Ok(task)
}

impl Drop {
    async fn run(self, context: &Context, broker: &Broker) -> Result<(), CliError> {
        for id in &self.ids {
            if !broker.dead.drop_letter(id).await? {
                return Err(none_of(id));
            }
            if !context.output.is_json() {
                context.output.line(format_args!("{id}  is removed"))?;
            }
        }
        if context.output.is_json() {
            context.output.document(&json!({ "removed": self.ids }))
        } else {
            Ok(())
        }
    }
}
