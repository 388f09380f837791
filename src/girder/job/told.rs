//! What of a task's events stands in its job's log, in which words. Pure.

use crate::error::TaskError;
use crate::events::{EventData, LogStream};

/// What the job's log gets for `data`, with the ends of its lines; `None`: nothing. `output` says whether the container's
/// own output belongs there (`logPrint` of the job).
pub(super) fn text(data: &EventData, output: bool) -> Option<String> {
    match data {
        EventData::Log { stream: LogStream::Stdout | LogStream::Stderr, .. } if !output => None,
        EventData::Log { text, .. } => Some(format!("{text}\n")),
        EventData::Failed { error } => Some(format!("{}\n", failure(error))),
        EventData::Canceled { reason } => Some(format!("canceled: {reason}\n")),
        EventData::Retrying { error, at, .. } => {
            Some(format!("{}\nit is tried again at {at:.0}\n", failure(error)))
        }
        EventData::Dead { reason } => Some(format!("TaskDead: {reason}\n")),
        EventData::Queued
        | EventData::Staging { .. }
        | EventData::Running { .. }
        | EventData::Progress(_)
        | EventData::Succeeded { .. } => None,
    }
}

/// A failure as `girder_worker` begins it: the exception's name and its text (`girder_worker.context`). A container's own
/// failure has that form already, followed by its last lines.
fn failure(error: &TaskError) -> String {
    if error.message.starts_with("DockerException: ") {
        return error.message.clone();
    }
    format!("{}: {}", exception(&error.code), error.message)
}

/// `image_not_found` as `ImageNotFound`, which is docker-py's and Celery's own name where they have one.
fn exception(code: &str) -> String {
    match code {
        "time_limit" => return "TimeLimitExceeded".to_owned(),
        "bad_argument" => return "TypeError".to_owned(),
        _ => {}
    }
    code.split(['_', '-', '.'])
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: TaskError) -> String {
        text(&EventData::Failed { error }, true).unwrap()
    }

    #[test]
    fn a_failure_begins_as_girder_workers_does() {
        let own = TaskError::permanent(
            "nonzero_exit",
            "DockerException: Non-zero exit code from docker container (3).\nno such file",
        );
        assert_eq!(
            failed(own),
            "DockerException: Non-zero exit code from docker container (3).\nno such file\n"
        );
        assert_eq!(failed(TaskError::permanent("image_not_found", "no x:1")), "ImageNotFound: no x:1\n");
        assert_eq!(failed(TaskError::permanent("time_limit", "2s")), "TimeLimitExceeded: 2s\n");
    }

    #[test]
    fn the_containers_output_is_left_out_when_the_job_does_not_want_it() {
        let log = |stream| EventData::Log { stream, text: "a\nb".to_owned() };
        assert_eq!(text(&log(LogStream::Stdout), true).as_deref(), Some("a\nb\n"));
        assert_eq!(text(&log(LogStream::Stderr), false), None);
        assert_eq!(text(&log(LogStream::Worker), false).as_deref(), Some("a\nb\n"));
    }
}
