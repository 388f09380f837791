//! `decode`: what a raw message would mean, as a native envelope, or why it is refused.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::error::CliError;
use super::redact::redacted;
use super::request;
use crate::task::{ContentType, envelope};

const EXAMPLES: &str = "\
Examples:
  longshore decode message.json
  longshore dead show --raw 7 | longshore decode -

Tokens are left out unless --raw is given. The exit code is 1 when the message would be refused.";

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
        let body = request::read(&self.file)?;
        let task = ContentType::detect(self.content_type.as_deref(), &body)
            .and_then(|content_type| envelope::decode(&body, content_type, &context.limits()))
            .map_err(|error| CliError::TaskFailed(error.to_string()))?;
        let value = serde_json::to_value(&task).unwrap_or_default();
        context.output.document(&if self.raw { value } else { redacted(&value) })
    }
}
