//! `decode`: what a raw message would mean, as a native envelope, or why it is refused.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::redact::redacted;
use super::request;
use crate::task::{DecodeError, Decoded, RawMessage, message};

const EXAMPLES: &str = "\
Examples:
  longshore decode message.json
  longshore dead show --raw 7 | longshore decode -

The file holds a bare body, a message as Celery keeps it in Redis, or one with body_base64,
content_type, headers and properties. Tokens are left out unless --raw is given. The exit
code is 1 when the message would be refused.";

/// Tell what a raw message means, or why it is refused.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Decode {
    /// The message, - being standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Type of the body, such as application/msgpack; told from its first byte unless given
    #[arg(long, value_name = "MIME")]
    content_type: Option<String>,
    /// Leave tokens in
    #[arg(long)]
    raw: bool,
}

impl Decode {
    /// Does what was asked.
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let limits = context.limits();
        let refused = |error: DecodeError| CliError::TaskFailed(error.to_string());
        let mut message = RawMessage::from_file(&request::read(&self.file)?, &limits).map_err(refused)?;
        if self.content_type.is_some() {
            message.content_type = self.content_type;
        }
        let task = match message::decode(&message, &limits).map_err(refused)? {
            Decoded::Task(task) => task,
            Decoded::Unknown(unknown) => {
                return Err(CliError::TaskFailed(format!(
                    "it is a Celery task called {:?}, which is none of ours: workers pass it on or park it",
                    unknown.name
                )));
            }
        };
        let value = serde_json::to_value(&task).unwrap_or_default();
        context.output.document(&if self.raw { value } else { redacted(&value) })
    }
}
