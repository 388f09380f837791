//! Which Girder, as whom, and how: what one client is made from.

use std::collections::BTreeMap;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::error::TaskError;
use crate::http::{self, Verify};
use crate::task::transform::GirderAccess;
use crate::task::{GirderContext, JobSpec, Secret};

/// Headers that say how a request is carried, or that the client sets itself.
const OURS: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "range",
    "accept-encoding",
];

/// One Girder as one token sees it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Base of its API, with or without a slash at the end.
    pub api_url: String,
    /// Sent as `Girder-Token` to the origin of `api_url` only; none for what everybody may see.
    pub token: Option<Secret>,
    /// What a producer set on its session (`girder_client_session_kwargs`).
    pub session: Session,
}

/// The attributes of a producer's session that are honoured: `verify` as a boolean, and `headers`. All others are told
/// and left out when the message is decoded.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Whether the server's certificate is checked. Policy has to allow that it is not (`girder.allow_insecure_tls`).
    pub verify: Verify,
    /// Sent with each call, to the origin of the connection only.
    pub headers: BTreeMap<String, Secret>,
}

impl Connection {
    /// What a transform uses: its own access, or that of its task.
    pub fn of_transform(
        access: Option<&GirderAccess>,
        context: Option<&GirderContext>,
    ) -> Result<Self, TaskError> {
        let (api_url, token) = match (access, context) {
            (Some(access), context) => {
                // The task's token goes where the task's own Girder is, and nowhere else.
                let of_task = context.filter(|context| same(&context.api_url, &access.api_url));
                let token =
                    access.token.clone().or_else(|| of_task.and_then(|context| context.token.clone()));
                (access.api_url.clone(), token)
            }
            (None, Some(context)) => (context.api_url.clone(), context.token.clone()),
            (None, None) => {
                return Err(TaskError::permanent(
                    "bad_argument",
                    "the transform names no Girder and neither does the task; give it `girder` with api_url and token",
                ));
            }
        };
        Ok(Self { api_url, token, session: Session::default() })
    }

    /// What keeps a job up to date: its headers open it. `api_url` is the base below which its URL lies.
    pub fn of_job(api_url: &str, job: &JobSpec) -> Self {
        let verify = if job.verify_tls { Verify::Strictly } else { Verify::Never };
        let session = Session { verify, headers: job.headers.clone() };
        Self { api_url: api_url.to_owned(), token: None, session }
    }

    /// The base as a URL whose path ends in a slash.
    pub(super) fn base(&self) -> Result<Url, TaskError> {
        let refused = || {
            TaskError::permanent(
                "bad_argument",
                format!(
                    "girder.api_url is {}; it must be an absolute http or https URL such as https://girder.example/api/v1",
                    http::without_secrets(&self.api_url)
                ),
            )
        };
        let mut url = Url::parse(self.api_url.trim()).map_err(|_| refused())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refused());
        }
        url.set_query(None);
        url.set_fragment(None);
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(url)
    }

    /// The headers that open it.
    pub(super) fn headers(&self) -> Result<HeaderMap, TaskError> {
        let mut headers = HeaderMap::new();
        let session = self.session.headers.iter().map(|(name, value)| (name.as_str(), value));
        let token = self.token.as_ref().map(|token| ("Girder-Token", token));
        for (name, value) in session.chain(token) {
            if OURS.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            let bad = |what: &str| {
                TaskError::permanent(
                    "bad_argument",
                    format!("girder: the header {name:?} {what}; correct it"),
                )
            };
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("is no name of a header"))?;
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|_| bad("has a value that no header may have"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Whether two texts are one base.
pub fn same(a: &str, b: &str) -> bool {
    a.trim().trim_end_matches('/') == b.trim().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(api_url: &str) -> GirderContext {
        serde_json::from_value(serde_json::json!({"api_url": api_url, "token": "of-the-task"})).unwrap()
    }
    fn access(api_url: &str) -> GirderAccess {
        GirderAccess { api_url: api_url.to_owned(), token: None }
    }
    fn token(connection: &Connection) -> Option<&str> {
        connection.token.as_ref().map(Secret::expose)
    }

    #[test]
    fn the_token_of_the_task_goes_to_the_girder_of_the_task_only() {
        let context = context("http://a/api/v1");
        let own = Connection::of_transform(None, Some(&context)).unwrap();
        assert_eq!(token(&own), Some("of-the-task"));
        let same = Connection::of_transform(Some(&access("http://a/api/v1/")), Some(&context)).unwrap();
        assert_eq!(token(&same), Some("of-the-task"));
        let other = Connection::of_transform(Some(&access("http://b/api/v1")), Some(&context)).unwrap();
        assert_eq!(token(&other), None);
    }

    #[test]
    fn without_any_girder_the_error_says_what_to_give() {
        let error = Connection::of_transform(None, None).unwrap_err();
        assert!(error.message.contains("give it `girder`"), "{error}");
    }

    #[test]
    fn a_base_is_a_plain_url_that_ends_in_a_slash() {
        for (given, base) in [
            ("http://a/api/v1", "http://a/api/v1/"),
            (" https://a:8/api/v1/?x#y", "https://a:8/api/v1/"),
            ("http://a", "http://a/"),
        ] {
            let connection = Connection::of_transform(Some(&access(given)), None).unwrap();
            assert_eq!(connection.base().unwrap().as_str(), base);
        }
        for bad in ["", "girder", "ftp://a/", "file:///etc/passwd", "http:///"] {
            let connection = Connection::of_transform(Some(&access(bad)), None).unwrap();
            assert_eq!(connection.base().unwrap_err().code, "bad_argument", "{bad}");
        }
    }

    #[test]
    fn headers_that_carry_a_request_are_left_out_and_a_broken_one_is_named() {
        let mut connection = Connection::of_transform(None, Some(&context("http://a"))).unwrap();
        for name in ["Host", "content-length", "X-Mine"] {
            connection.session.headers.insert(name.to_owned(), Secret::new("1"));
        }
        let headers = connection.headers().unwrap();
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-mine", "girder-token"]);
        assert!(!format!("{headers:?}").contains("of-the-task"));

        connection.session.headers.insert("X-Bad".to_owned(), Secret::new("a\r\nb"));
        let error = connection.headers().unwrap_err();
        assert!(error.message.contains("X-Bad") && !error.message.contains('\r'), "{error}");
    }
}
