//! `task upload`: has outputs brought away that Girder did not take, with a new token where the old one has expired.
//!
//! The request goes by way of the broker to the worker that keeps the outputs, on whatever host that is. A token is never
//! printed or logged, and is asked for in a way that keeps it out of the process list: by file or standard input.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Open;
use crate::broker::{BrokerError, Command, Presence};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Shown;
use crate::cli::watch::{Standing, Watch, tell_ends, unknown};
use crate::store::{Owner, Record, Status};
use crate::task::Secret;
use crate::units::Span;

const EXAMPLES: &str = "\
Examples:
  longshore task list --status uploading
  longshore task upload last                           Girder is back: do not wait
  longshore task upload --token-file token.txt last    with a new token, read from a file
  pass girder | longshore task upload --wait --token - last

The worker that keeps the outputs tries at once; the container is not run again. --token shows the
token to whoever lists this machine's processes: a file or standard input does not. With --wait the
exit code is 0 when the task succeeded, 1 when not, 3 when it did not end in time.";

/// Bring outputs away that Girder did not take, now or with a new token.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Upload {
    /// Id of the task; last: the newest one
    #[arg(value_name = "ID")]
    id: String,
    /// A new token of Girder for the uploads; -: read from standard input
    #[arg(long, value_name = "TOKEN", value_parser = secret, conflicts_with = "token_file")]
    token: Option<Secret>,
    /// A file that holds a new token
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Wait until the task ended
    #[arg(long)]
    wait: bool,
    /// Wait for so much time only
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Span>,
}

#[expect(clippy::unnecessary_wraps, reason = "clap's parsers can fail")]
fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

/// The most bytes that a token has.
const LONGEST_TOKEN: u64 = 16 << 10;

impl Upload {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let token = self.token()?;
        let id = open.resolve(std::slice::from_ref(&self.id)).await?.remove(0);
        let record = match open.standing(&id).await? {
            Standing::Unknown => return Err(unknown(&id)),
            Standing::Queued(_) => {
                return Err(CliError::Usage(format!("{id} is queued: it has no outputs yet")));
            }
            Standing::Known(record) => record,
        };
        let owner = keeper(&record)?;
        let workers = match open.broker.fleet.workers().await {
            Err(BrokerError::Unsupported { .. }) => None,
            answer => Some(answer?),
        };
        if let Some(workers) = workers {
            hears(&record, owner, &workers)?;
        }
        open.broker.topic.command(Command::Upload { task: id.clone(), token }).await?;
        if !self.wait {
            return if context.output.is_json() {
                context
                    .output
                    .document(&json!({ "uploading": [id], "worker": owner.worker, "host": owner.host }))
            } else {
                let (worker, host) = (&owner.worker, &owner.host);
                context.output.line(format_args!("{id}  is being uploaded by {worker} on {host}"))
            };
        }
        let watch = Watch {
            broker: &open.broker,
            store: open.store.as_ref(),
            output: context.output,
            shown: Shown::Nothing,
        };
        tell_ends(&watch, &[id], self.timeout.map(Span::get)).await
    }

    fn token(&self) -> Result<Option<Secret>, CliError> {
        let unreadable = |what: &str, error: &dyn std::fmt::Display| {
            CliError::Usage(format!("the token cannot be read from {what}: {error}"))
        };
        let mut text = String::new();
        match (&self.token, &self.token_file) {
            (Some(token), _) if token.expose() == "-" => {
                let read = std::io::stdin().take(LONGEST_TOKEN).read_to_string(&mut text);
                read.map_err(|error| unreadable("standard input", &error))?;
            }
            (Some(token), _) => token.expose().clone_into(&mut text),
            (None, Some(path)) => {
                let opened = std::fs::File::open(path);
                let read = opened.and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text));
                read.map_err(|error| unreadable(&path.display().to_string(), &error))?;
            }
            (None, None) => return Ok(None),
        }
        let token = text.trim();
        // Whatever could not stand in a header would only fail at the worker.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CliError::Usage(
                "the token is empty or holds more than one word: give the text that Girder made, and nothing else".to_owned(),
            ));
        }
        Ok(Some(Secret::new(token)))
    }
}

/// Who keeps outputs of the task; an error when none wait.
fn keeper(record: &Record) -> Result<&Owner, CliError> {
    let id = &record.id;
    match (record.status, &record.owner) {
        (Status::Uploading, Some(owner)) => Ok(owner),
        (status, _) if status.is_finished() => Err(CliError::Usage(format!(
            "{id} has ended ({}): there is nothing to upload any more",
            status.as_str()
        ))),
        (status, _) => Err(CliError::Usage(format!(
            "{id} is {}: only outputs that Girder did not take can be uploaded by hand, of tasks in the state uploading",
            status.as_str()
        ))),
    }
}

/// An error unless the very process that keeps the outputs is among `workers`: nobody else would heed the request.
fn hears(record: &Record, owner: &Owner, workers: &[Presence]) -> Result<(), CliError> {
    let (id, worker, host) = (&record.id, &owner.worker, &owner.host);
    let alive = workers.iter().find(|alive| alive.worker == *worker && alive.host == *host);
    match alive {
        Some(alive) if alive.incarnation == owner.incarnation && record.left.is_none() => Ok(()),
        Some(_) => Err(CliError::Infrastructure(format!(
            "the worker {worker} on {host} was started anew and has not taken the outputs of {id} up yet: ask again in a moment"
        ))),
        None => Err(CliError::Infrastructure(format!(
            "the worker {worker} on {host}, which keeps the outputs of {id}, does not live now: start it there, and ask again"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ArgMap, Task};

    fn asked(token: Option<&str>, token_file: Option<PathBuf>) -> Result<Option<Secret>, CliError> {
        let token = token.map(Secret::new);
        Upload { id: "last".to_owned(), token, token_file, wait: false, timeout: None }.token()
    }

    #[test]
    fn a_token_comes_from_the_flag_or_a_file_without_its_line_end_and_is_one_word() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of-a-file\n").unwrap();
        assert_eq!(asked(Some("of-the-flag"), None).unwrap().unwrap().expose(), "of-the-flag");
        assert_eq!(asked(None, Some(file.path().to_owned())).unwrap().unwrap().expose(), "of-a-file");
        assert_eq!(asked(None, None).unwrap(), None);
        for bad in ["", " ", "two words", "a\r\nX-Header: b", "ü"] {
            let error = asked(Some(bad), None).unwrap_err().to_string();
            assert!(error.contains("one word"), "{error}");
            assert!(bad.trim().is_empty() || !error.contains(bad.trim()), "{error}");
        }
        let error = asked(None, Some("/nonexistent/token".into())).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token"), "{error}");
    }

    fn presence(owner: &Owner) -> Presence {
        let text = serde_json::json!({
            "worker": owner.worker, "incarnation": owner.incarnation, "host": owner.host, "version": "0",
            "kinds": [], "envelope": 1, "queues": [], "lanes": 1, "busy": 0, "phase": "running",
            "pool": {"cpus": 1.0, "memory": 1, "gpus": [], "platform": "", "custom": {}},
            "seen": "2026-11-23T10:00:00Z", "deadline": "2026-11-23T10:00:00Z",
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn only_outputs_that_wait_are_uploaded() {
        let mut record = Record::empty(&Task::new("docker_run", ArgMap::new()));
        assert!(keeper(&record).unwrap_err().to_string().contains("is queued"));
        record.status = Status::Succeeded;
        assert!(keeper(&record).unwrap_err().to_string().contains("has ended (succeeded)"));
        record.status = Status::Uploading;
        let owner = Owner {
            worker: "quay".to_owned(),
            incarnation: "1".to_owned(),
            instance: "i".to_owned(),
            host: "h".to_owned(),
        };
        record.owner = Some(owner.clone());
        assert_eq!(keeper(&record).unwrap(), &owner);
        let heard = |record: &Record, incarnation: &str| {
            let worker = Presence { incarnation: incarnation.to_owned(), ..presence(&owner) };
            hears(record, &owner, &[worker]).map_err(|error| error.to_string())
        };
        assert_eq!(heard(&record, "1"), Ok(()));
        assert!(heard(&record, "2").unwrap_err().contains("ask again in a moment"));
        record.left = Some(jiff::Timestamp::UNIX_EPOCH);
        assert!(heard(&record, "1").unwrap_err().contains("ask again in a moment"));
        assert!(hears(&record, &owner, &[]).unwrap_err().to_string().contains("start it there"));
    }
}
