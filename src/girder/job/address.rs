//! How a task's job is reached, and what Girder says of it.

use std::sync::Arc;

use reqwest::Method;
use serde_json::Value;

use super::script::State;
use crate::error::TaskError;
use crate::girder::{Call, Client, Connection, GirderError, Repeat, Site, same};
use crate::http::{Judge, Verify};
use crate::task::{Secret, Task};

/// The job of one task.
#[derive(Clone)]
pub(super) struct Job {
    client: Client,
    method: Method,
    path: String,
    /// The base of the task's Girder, if the job lies there.
    home: Option<String>,
    connection: Connection,
    judge: Arc<dyn Judge>,
}

/// What an answer of Girder says of the job.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) state: State,
    /// The texts of its log, where the answer holds them.
    pub(super) log: Vec<String>,
}

/// What an error means for the job.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Girder cannot have begun: the very same again later.
    NotBegun(GirderError),
    /// Girder may have done it.
    Unclear(GirderError),
    /// The job may not go where it should.
    Transition,
    /// The token is over, or does not open the job: only with another one it can be told something.
    Barred(GirderError),
    /// The job is gone, or is not ours any more: nothing will ever reach it.
    Lost(GirderError),
    /// Girder will not take this update.
    Refused(GirderError),
}

impl Job {
    /// The job of `task`; `None`: it has none.
    pub(super) fn of(
        task: &Task,
        site: &Arc<Site>,
        judge: &Arc<dyn Judge>,
        laxest: Verify,
    ) -> Result<Option<Self>, TaskError> {
        let Some((context, spec)) =
            task.girder.as_ref().and_then(|girder| Some((girder, girder.job.as_ref()?)))
        else {
            return Ok(None);
        };
        let (base, url) = site.job_address(context, &spec.url);
        let (base, path) = split(&base, &url);
        let method = Method::from_bytes(spec.method.to_ascii_uppercase().as_bytes()).unwrap_or(Method::PUT);
        let mut connection = Connection::of_job(&base, spec);
        if laxest == Verify::Strictly {
            // The job is told before anybody asks policy for the task, and its token is worth as much.
            connection.session.verify = Verify::Strictly;
        }
        let client = site.client(&connection, judge)?;
        let below = spec.url.strip_prefix(context.api_url.trim_end_matches('/'));
        let home = below.is_some_and(|rest| rest.starts_with('/')).then(|| context.api_url.clone());
        Ok(Some(Self { client, method, path, home, connection, judge: judge.clone() }))
    }

    /// The same with a new token for the Girder at `api_url`; none when the job lies elsewhere, where it must not go.
    pub(super) fn renewed(&self, api_url: &str, token: &Secret) -> Option<Self> {
        self.home.as_ref().filter(|home| same(home, api_url))?;
        let connection = Connection { token: Some(token.clone()), ..self.connection.clone() };
        let client = self.client.site().client(&connection, &self.judge);
        let client = client.inspect_err(|error| tracing::warn!(%error, "a new token cannot be used")).ok()?;
        Some(Self { client, connection, ..self.clone() })
    }

    /// What Girder has of it now.
    pub(super) async fn ask(&self) -> Result<Seen, Trouble> {
        let answer = self.client.json(Call::get(self.path.clone())).await;
        answer.map(|document| seen(&document)).map_err(|error| match trouble(error) {
            // Girder 5 answers 400 for a job that does not exist: only asking for it tells that apart from a bad update.
            Trouble::Refused(error) => Trouble::Lost(error),
            other => other,
        })
    }

    /// Sends these fields.
    pub(super) async fn update(&self, fields: &[(&str, &str)]) -> Result<Seen, Trouble> {
        let call = Call::new(self.method.clone(), self.path.clone(), Repeat::IfNotBegun);
        let answer = self.client.json(call.form(fields.iter().copied())).await;
        answer.map(|document| seen(&document)).map_err(trouble)
    }
}

/// The base and the route below it of `url`; a URL that does not lie below `base` is its own.
fn split(base: &str, url: &str) -> (String, String) {
    let base = base.trim_end_matches('/');
    match url.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) {
        Some(path) if !base.is_empty() => (base.to_owned(), path.to_owned()),
        _ => match url.rsplit_once('/') {
            Some((parent, last)) => (parent.to_owned(), last.to_owned()),
            None => (url.to_owned(), String::new()),
        },
    }
}

fn seen(document: &Value) -> Seen {
    let log = document.get("log").and_then(Value::as_array).map_or_else(Vec::new, |texts| {
        texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    });
    let state = document.get("status").and_then(Value::as_i64).map_or(State::Unknown(-1), State::of);
    Seen { state, log }
}

fn trouble(error: GirderError) -> Trouble {
    if error.is_not_begun() {
        return Trouble::NotBegun(error);
    }
    match &error {
        GirderError::Status { status: 400, field: Some(field), .. } if field == "status" => {
            Trouble::Transition
        }
        // Girder 5 answers 400 for a document that does not exist and names the field of its id.
        GirderError::Status { status: 400, field: Some(field), .. } if field == "id" || field == "_id" => {
            Trouble::Lost(error)
        }
        GirderError::Status { status: 401 | 403, .. } => Trouble::Barred(error),
        GirderError::Status { status: 404 | 410, .. }
        | GirderError::Refused(_)
        | GirderError::Redirect { .. } => Trouble::Lost(error),
        GirderError::Status { .. } if !error.is_passing() => Trouble::Refused(error),
        GirderError::Status { .. }
        | GirderError::Unreachable { .. }
        | GirderError::Broken { .. }
        | GirderError::Stalled { .. }
        | GirderError::Answer { .. } => Trouble::Unclear(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_lies_below_its_api_or_stands_for_itself() {
        for (base, url, expected) in [
            ("http://a/api/v1/", "http://a/api/v1/job/7", ("http://a/api/v1", "job/7")),
            ("http://a/api/v1", "http://b/other/job/7", ("http://b/other/job", "7")),
            ("", "http://b/job/7", ("http://b/job", "7")),
        ] {
            let (base, path) = split(base, url);
            assert_eq!((base.as_str(), path.as_str()), expected);
        }
    }

    #[test]
    fn a_new_token_opens_the_job_of_its_own_girder_and_no_other() {
        let site = Arc::new(Site::plain(crate::girder::Settings::default()));
        let judge: Arc<dyn Judge> = Arc::new(crate::http::Anything);
        for (url, given, opens) in [
            ("http://a/api/v1/job/1", "http://a/api/v1/", true),
            ("http://a/api/v1/job/1", "http://b/api/v1", false),
            ("http://b/api/v1/job/1", "http://a/api/v1", false),
            ("http://a/api/v10/job/1", "http://a/api/v1", false),
        ] {
            let girder = serde_json::json!({"api_url": "http://a/api/v1", "job": {"url": url, "headers": {"girder-token": "old"}}});
            let girder = Some(serde_json::from_value(girder).unwrap());
            let task = Task { girder, ..Task::new("docker_run", crate::task::ArgMap::new()) };
            let job = Job::of(&task, &site, &judge, Verify::Strictly).unwrap().unwrap();
            let renewed = job.renewed(given, &Secret::new("new"));
            assert_eq!(renewed.is_some(), opens, "{url} {given}");
            if let Some(job) = renewed {
                assert_eq!(job.connection.headers().unwrap()["girder-token"].as_bytes(), b"new");
            }
        }
    }

    #[test]
    fn a_refused_state_a_lost_job_and_an_outage_are_told_apart() {
        let status = |status, field: Option<&str>| {
            trouble(GirderError::Status {
                call: String::new(),
                server: String::new(),
                status,
                field: field.map(str::to_owned),
                said: String::new(),
                retry_after: None,
            })
        };
        assert!(matches!(status(400, Some("status")), Trouble::Transition));
        assert!(matches!(status(400, Some("id")), Trouble::Lost(_)));
        assert!(matches!(status(404, None), Trouble::Lost(_)));
        assert!(matches!(status(401, None), Trouble::Barred(_)));
        assert!(matches!(status(413, None), Trouble::Refused(_)));
        assert!(matches!(status(429, None), Trouble::NotBegun(_)));
        assert!(matches!(status(502, None), Trouble::Unclear(_)));
    }
}
