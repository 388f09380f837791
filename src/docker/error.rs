//! What an engine's failure means for a task: decided here, once, in one clear sentence each.
//!
//! # Decisions
//! - Statuses decide where the engine gives them. Docker answers 500 to a pull that the registry refused and to a
//!   container that the runtime could not start for a wrong option, so its words decide in those two places.

use super::engine::EngineError;
use crate::cancel::CancelReason;
use crate::error::TaskError;

/// The attempt's scope ended; the executor puts the scope's own reason in its place.
pub(super) fn ended(reason: &CancelReason) -> TaskError {
    TaskError::retryable("interrupted", format!("the attempt was ended: {reason:?}"))
}

/// The engine is out of reach, or answered with a failure of its own.
pub(super) fn engine(error: &EngineError) -> TaskError {
    match error {
        EngineError::Away { .. } => TaskError::retryable(
            "engine_away",
            format!("{error}; start it, or set DOCKER_HOST or docker.host to where it listens"),
        ),
        EngineError::Silent { .. } => {
            TaskError::retryable("engine_silent", format!("{error}; docker.client_timeout sets this limit"))
        }
        EngineError::Address { .. } => {
            TaskError::retryable("engine_address", format!("{error}; DOCKER_HOST or docker.host sets it"))
        }
        EngineError::Malformed { .. } => TaskError::retryable("engine_answer", error.to_string()),
        EngineError::Refused { status, .. } => match status {
            Some(400..=499) => TaskError::permanent("engine_refused", error.to_string()),
            _ => TaskError::retryable("engine_failed", error.to_string()),
        },
    }
}

/// The container could not be made.
pub(super) fn create(error: &EngineError, image: &str) -> TaskError {
    match error {
        EngineError::Refused { status: Some(404), message, .. } if names_image(message) => {
            image_missing(image, message)
        }
        EngineError::Refused { status: Some(400..=499), message, .. } => refused_option(message),
        EngineError::Refused { message, .. } if is_about_options(message) => refused_option(message),
        _ => engine(error),
    }
}

/// Whether a 404 at creation speaks of the image: a network or volume may be missing, too.
pub(super) fn names_image(message: &str) -> bool {
    let message = message.to_lowercase();
    // The second when the one that is here is for another platform.
    message.contains("no such image") || message.contains("image with reference")
}

/// The container was made and could not be started.
pub(super) fn start(error: &EngineError, argv: &[String]) -> TaskError {
    let EngineError::Refused { status, message, .. } = error else { return engine(error) };
    let program = argv.first().map_or("", String::as_str);
    if message.contains("executable file not found")
        || message.contains("exec:") && message.contains("no such file")
    {
        TaskError::permanent(
            "entrypoint_missing",
            format!(
                "the container cannot start: {program:?} is not an executable of the image; \
                 correct entrypoint or container_args ({message})"
            ),
        )
        .with_exit_code(127)
    } else if message.contains("exec:") && message.contains("permission denied") {
        TaskError::permanent(
            "entrypoint_not_executable",
            format!(
                "the container cannot start: {program:?} may not be executed; \
                 correct entrypoint, container_args or the file's mode in the image ({message})"
            ),
        )
        .with_exit_code(126)
    } else if matches!(status, Some(400..=499)) || is_about_options(message) {
        refused_option(message)
    } else {
        engine(error)
    }
}

/// What Docker answers with 500 although only another request would help.
fn is_about_options(message: &str) -> bool {
    const WORDS: &[&str] = &[
        "error gathering device information",
        "could not select device driver",
        "OCI runtime create failed",
        "invalid mount config",
        "unknown or invalid runtime name",
        "Unknown runtime specified",
        "pquota",
    ];
    WORDS.iter().any(|words| message.contains(words))
}

fn refused_option(message: &str) -> TaskError {
    TaskError::permanent(
        "option_refused",
        format!("the container engine refused an option of the task: {message}; correct args.options"),
    )
}

/// The image is not here and may not be, or cannot be, fetched.
pub(super) fn image_missing(image: &str, why: &str) -> TaskError {
    TaskError::permanent("image_not_found", format!("there is no image {image:?}: {why}"))
}

/// An image could not be fetched. Says whether another try may help.
pub(super) fn pull(error: &EngineError, image: &str, login: &str) -> TaskError {
    let EngineError::Refused { status, message, .. } = error else { return engine(error) };
    let lower = message.to_lowercase();
    let said = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if said(&["unauthorized", "no basic auth", "authentication required", "access denied", "denied:"])
        || matches!(status, Some(401 | 403))
    {
        TaskError::permanent(
            "image_refused",
            format!("the registry does not give out {image:?}: {message}; check its name, and {login}"),
        )
    } else if *status == Some(404) || said(&["not found", "manifest unknown", "no matching manifest"]) {
        image_missing(image, &format!("the registry says: {message}; check name, tag and platform"))
    } else if matches!(status, Some(400..=499)) {
        TaskError::permanent("image_refused", format!("{image:?} cannot be pulled: {message}"))
    } else {
        TaskError::retryable(
            "pull_failed",
            format!(
                "{image:?} could not be pulled: {message}; check that the registry can be reached from the engine"
            ),
        )
    }
}

/// A container was killed for the memory it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Oom {
    /// Its own limit in bytes; none when it had none and the machine's was met.
    pub(super) limit: Option<u64>,
}

/// The container ended by itself with another code than 0. The first line has girder_worker's form.
pub(super) fn exit(code: i64, oom: Option<Oom>, last_lines: &str) -> TaskError {
    let first = format!("DockerException: Non-zero exit code from docker container ({code}).");
    match oom {
        Some(oom) => {
            let limit = oom.limit.map_or_else(
                || "the memory there is".to_owned(),
                |bytes| format!("its memory limit of {}", bytesize::ByteSize(bytes).display().iec()),
            );
            TaskError::permanent(
                "oom_killed",
                format!(
                    "{first} It was killed for exceeding {limit}; raise options.mem_limit or resources.memory"
                ),
            )
        }
        None if last_lines.is_empty() => TaskError::permanent("nonzero_exit", first),
        None => TaskError::permanent("nonzero_exit", format!("{first}\n{last_lines}")),
    }
    .with_exit_code(code)
}

/// The engine stopped while the container ran, and the container with it.
pub(super) fn engine_restarted(address: &str) -> TaskError {
    TaskError::retryable(
        "engine_restarted",
        format!(
            "the container engine at {address} went away while the container ran, and the container ended with it"
        ),
    )
}

/// The end of the container could not be awaited.
pub(super) fn wait(error: &EngineError, id: &str) -> TaskError {
    match error {
        EngineError::Refused { status: Some(404), .. } => removed(id),
        _ => engine(error),
    }
}

/// The code of [`removed`].
pub(super) const REMOVED: &str = "container_removed";

/// Somebody else removed the container.
pub(super) fn removed(id: &str) -> TaskError {
    TaskError::retryable(REMOVED, format!("the container {id} was removed by somebody else while it ran"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorClass;

    fn refused(status: u16, message: &str) -> EngineError {
        EngineError::Refused { call: "x", status: Some(status), message: message.to_owned() }
    }

    #[test]
    fn an_engine_that_is_away_is_worth_another_attempt_and_says_where_and_what_to_do() {
        let away = EngineError::Away {
            address: "unix:///nowhere.sock".to_owned(),
            reason: "there is no such socket".to_owned(),
        };
        for error in [engine(&away), create(&away, "i"), start(&away, &[]), pull(&away, "i", "log in")] {
            assert_eq!(error.class, ErrorClass::Retryable);
            assert_eq!(
                error.message,
                "no container engine answers at unix:///nowhere.sock (there is no such socket); start it, or set \
                 DOCKER_HOST or docker.host to where it listens"
            );
        }
    }

    #[test]
    fn a_pull_that_only_another_request_would_help_is_final() {
        let class = |status, message| {
            let error = pull(&refused(status, message), "r/i:1", "log in");
            (error.class, error.code)
        };
        let permanent = |code: &str| (ErrorClass::Permanent, code.to_owned());
        assert_eq!(
            class(404, "manifest for r/i:1 not found: manifest unknown"),
            permanent("image_not_found")
        );
        assert_eq!(class(500, "Get http://r/v2/: no basic auth credentials"), permanent("image_refused"));
        assert_eq!(
            class(404, "pull access denied for i, repository does not exist"),
            permanent("image_refused")
        );
        assert_eq!(class(500, "dial tcp: connection refused").0, ErrorClass::Retryable);
    }

    #[test]
    fn an_exit_says_its_code_as_girder_worker_does_and_what_was_said_last() {
        let plain = exit(3, None, "it broke");
        assert_eq!(plain.message, "DockerException: Non-zero exit code from docker container (3).\nit broke");
        assert_eq!(plain.exit_code, Some(3));
        let oom = exit(137, Some(Oom { limit: Some(32 << 20) }), "");
        assert!(oom.message.contains("its memory limit of 32.0 MiB"), "{}", oom.message);
        assert_eq!(oom.code, "oom_killed");
    }
}
