//! How long the token that uploads need lives, looked at before the work begins: told to people, never fatal, since outputs
//! that no token brings away are kept for a new one.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::girder::{Call, Client};
use crate::handler::Attempt;

/// What a task without a time limit is taken to need.
const SHORT: SignedDuration = SignedDuration::from_hours(1);

/// Tells when the token of `client` will not live until the work of `attempt` is done, or is unknown to Girder now. A
/// Girder that is away now may be back when the container is done.
pub(super) async fn check(client: &Client, attempt: &Attempt) {
    let trouble = match client.json(Call::get("token/current")).await {
        Ok(token) => match trouble(&token, needed(attempt), Timestamp::now()) {
            Some(trouble) => trouble,
            None => return,
        },
        Err(error) if error.status() == Some(401) => UNKNOWN.to_owned(),
        Err(error) => {
            tracing::debug!(task = %attempt.task().id, %error, "how long a token lives is not known");
            return;
        }
    };
    let server = client.server();
    tracing::warn!(task = %attempt.task().id, server, trouble, "its token will not do for its uploads");
    attempt.report().warn(format!("{trouble} (Girder at {server})"));
}

fn needed(attempt: &Attempt) -> SignedDuration {
    attempt
        .task()
        .timeout
        .map_or(SHORT, |timeout| SignedDuration::try_from(timeout.get()).unwrap_or(SignedDuration::MAX))
}

const UNKNOWN: &str = "Girder does not know the token for the uploads: it is wrong or has expired";

/// What `GET token/current` says of a token, when that bodes ill.
fn trouble(token: &Value, needed: SignedDuration, now: Timestamp) -> Option<String> {
    if token.is_null() {
        return Some(UNKNOWN.to_owned());
    }
    let expires: Timestamp = token.get("expires")?.as_str()?.parse().ok()?;
    (expires.duration_since(now) < needed).then(|| {
        format!(
            "the token for the uploads expires at {expires:.0}, which may be before the work ends; give the task one that lives longer"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_that_ends_before_the_work_or_is_unknown_is_told_and_any_other_is_not() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let hours = SignedDuration::from_hours;
        let of = |expires: &str, needed| trouble(&json!({"expires": expires}), needed, now);
        // As Girder 5 writes it.
        let early = of("2026-11-23T10:30:00.123000+00:00", hours(1)).unwrap();
        assert!(early.contains("expires at 2026-11-23T10:30:00Z"), "{early}");
        assert_eq!(of("2026-11-23T13:30:00.123000+00:00", hours(1)), None);
        assert!(of("2026-11-23T13:30:00.123000+00:00", hours(4)).is_some());
        assert!(trouble(&Value::Null, hours(1), now).unwrap().contains("does not know the token"));
        assert_eq!(trouble(&json!({}), hours(1), now), None);
    }
}
