//! What can go wrong when Girder is asked, and how it is settled.

use std::time::Duration;

use crate::error::TaskError;

/// A call that did not succeed. Never holds a token, a query or a body that was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GirderError {
    /// Girder answered with an error.
    #[error("{call} at {server}: Girder answered {status}{}{}", said_after(.said), remedy(*.status))]
    Status {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// The HTTP status.
        status: u16,
        /// The field that Girder names in its answer, such as `status` for a job that may not go where it should.
        field: Option<String>,
        /// Girder's message, shortened.
        said: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection failed before the call was sent.
    #[error("{call} at {server}: {reason}; is Girder running, and can this worker reach that address?")]
    Unreachable {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// What the system said.
        reason: String,
    },
    /// The connection failed after the call was sent: Girder may have done it.
    #[error("{call} at {server}: {reason}")]
    Broken {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// What the system said.
        reason: String,
    },
    /// Nothing moved for so long.
    #[error("{call} at {server}: nothing moved for {} s (girder.stall_timeout)", .limit.as_secs_f32())]
    Stalled {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// The longest pause allowed.
        limit: Duration,
    },
    /// An answer that cannot be right.
    #[error("{call} at {server}: {reason}")]
    Answer {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{call} at {server}: {reason}")]
    Redirect {
        /// Method and route.
        call: String,
        /// The API's base.
        server: String,
        /// Why not.
        reason: String,
    },
    /// Policy forbids to reach the server, or the connection cannot be made from the settings.
    #[error("{0}")]
    Refused(TaskError),
}

impl GirderError {
    /// Whether Girder cannot have begun the call, so that it may be made again whatever it was.
    pub fn is_not_begun(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Status { status: 429, .. })
    }

    /// Whether the same call may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 425 | 429),
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Stalled { .. } | Self::Answer { .. } => {
                true
            }
            Self::Redirect { .. } => false,
            Self::Refused(error) => error.class == crate::error::ErrorClass::Retryable,
        }
    }

    /// The HTTP status, when Girder answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long Girder wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The task's failure, told as that of `field`, such as `GirderFileIdToVolume.file_id = "57…"`.
    pub fn about(self, field: &str) -> TaskError {
        let error = TaskError::from(self);
        TaskError { message: format!("{field}: {}", error.message), ..error }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Status { status: 401, .. } => "girder_unauthorized",
            Self::Status { status: 403, .. } => "girder_forbidden",
            Self::Status { status: 404 | 410, .. } => "girder_not_found",
            Self::Status { .. } if self.is_passing() => "girder_unavailable",
            Self::Status { .. } | Self::Refused(_) => "girder_refused",
            Self::Unreachable { .. } | Self::Broken { .. } => "girder_unavailable",
            Self::Stalled { .. } => "girder_stalled",
            Self::Answer { .. } => "girder_answer",
            Self::Redirect { .. } => "girder_redirect",
        }
    }
}

/// Whether an upload that failed so may be tried again later without doing the work anew: Girder is away, or does not take
/// the token any more.
pub fn may_wait(error: &TaskError) -> bool {
    const PASSING: [&str; 4] = ["girder_unavailable", "girder_stalled", "girder_answer", "girder_upload"];
    error.code == "girder_unauthorized" || PASSING.contains(&error.code.as_str())
}

impl From<GirderError> for TaskError {
    fn from(error: GirderError) -> Self {
        match error {
            GirderError::Refused(error) => error,
            error if error.is_passing() => Self::retryable(error.code(), error.to_string()),
            error => Self::permanent(error.code(), error.to_string()),
        }
    }
}

fn said_after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {}", said.trim_end_matches('.')) }
}

/// What a person can do about a status.
fn remedy(status: u16) -> &'static str {
    match status {
        401 => {
            "; the task's token is unknown to Girder or has expired: submit the task again with one that lives long enough"
        }
        403 => {
            "; the user of the task's token lacks the right: grant it in Girder, or use another user's token"
        }
        404 | 410 => {
            "; it may have been deleted, or the id is that of something else: check the id and the API address"
        }
        400 => "; check the ids and values that the task gives",
        413 => "; raise the limit on request bodies of the proxy in front of Girder",
        429 => "; it asks for fewer calls: lower the worker's concurrency or girder.parallel_downloads",
        500.. => "; look at Girder's own log and that of the proxy in front of it",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorClass;

    fn status(status: u16, said: &str) -> GirderError {
        GirderError::Status {
            call: "GET file/1".to_owned(),
            server: "http://girder/api/v1".to_owned(),
            status,
            field: None,
            said: said.to_owned(),
            retry_after: None,
        }
    }

    #[test]
    fn each_status_is_settled_as_it_deserves_and_says_what_to_do() {
        for (code, class, word, remedy) in [
            (400, ErrorClass::Permanent, "girder_refused", "check the ids"),
            (401, ErrorClass::Permanent, "girder_unauthorized", "token"),
            (403, ErrorClass::Permanent, "girder_forbidden", "grant"),
            (404, ErrorClass::Permanent, "girder_not_found", "check the id"),
            (408, ErrorClass::Retryable, "girder_unavailable", ""),
            (429, ErrorClass::Retryable, "girder_unavailable", "fewer calls"),
            (500, ErrorClass::Retryable, "girder_unavailable", "Girder's own log"),
            (503, ErrorClass::Retryable, "girder_unavailable", "Girder's own log"),
        ] {
            let error = status(code, "Nothing here.").about("file_id = \"1\"");
            assert_eq!((error.class, error.code.as_str()), (class, word), "{code}");
            let begins = format!(
                "file_id = \"1\": GET file/1 at http://girder/api/v1: Girder answered {code}: Nothing here"
            );
            assert!(error.message.starts_with(&begins) && error.message.contains(remedy), "{error}");
        }
    }
}
