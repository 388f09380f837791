//! One call of Girder's REST API before it is sent. Plain data but for its payload.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use reqwest::{Method, Url};

/// One call: method, route below the API's base, query and payload.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) payload: Payload,
    pub(super) repeat: Repeat,
    pub(super) range: Option<u64>,
}

/// Whether a call may be made again when it is unknown whether Girder did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Twice is as good as once.
    Harmless,
    /// Only when Girder cannot have begun it: the connection failed, or it answered 429.
    IfNotBegun,
}

/// What is sent along.
#[derive(Clone)]
pub enum Payload {
    /// Nothing.
    Empty,
    /// Bytes of a content type.
    Bytes(Bytes, &'static str),
    /// A stream of known length; made anew for each try.
    Feed(Arc<dyn Fn() -> BoxStream<'static, io::Result<Bytes>> + Send + Sync>, u64),
}

impl fmt::Debug for Payload {
    /// Without the bytes, which may be anybody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(bytes, kind) => write!(f, "Bytes({}, {kind})", bytes.len()),
            Self::Feed(_, length) => write!(f, "Feed({length})"),
        }
    }
}

impl Call {
    /// Reads; repeated while Girder fails.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Repeat::Harmless)
    }
    /// Makes something; repeated only when Girder cannot have begun it.
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path, Repeat::IfNotBegun)
    }
    /// Changes something; repeated only when Girder cannot have begun it, unless [`Call::repeatable`].
    pub fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path, Repeat::IfNotBegun)
    }
    /// Removes something; repeated while Girder fails.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, Repeat::Harmless)
    }
    /// A call of any method; `path` is a route below the API's base, without its first slash.
    pub fn new(method: Method, path: impl Into<String>, repeat: Repeat) -> Self {
        Self { method, path: path.into(), query: Vec::new(), payload: Payload::Empty, repeat, range: None }
    }

    /// With one more query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }
    /// With a form as `application/x-www-form-urlencoded`.
    #[must_use]
    pub fn form<'a>(self, fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut url = Url::parse("form:").expect("invariant: this is a URL");
        url.query_pairs_mut().extend_pairs(fields);
        let body = Bytes::from(url.query().unwrap_or_default().to_owned());
        self.bytes(body, "application/x-www-form-urlencoded")
    }
    /// With bytes of a content type.
    #[must_use]
    pub fn bytes(mut self, body: Bytes, content_type: &'static str) -> Self {
        self.payload = Payload::Bytes(body, content_type);
        self
    }
    /// With a stream of exactly `length` bytes, which `feed` makes anew for each try.
    #[must_use]
    pub fn feed(
        mut self,
        length: u64,
        feed: impl Fn() -> BoxStream<'static, io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        self.payload = Payload::Feed(Arc::new(feed), length);
        self
    }
    /// Twice is as good as once.
    #[must_use]
    pub fn repeatable(mut self) -> Self {
        self.repeat = Repeat::Harmless;
        self
    }
    /// The answer's body from this byte on.
    #[must_use]
    pub fn from(mut self, offset: u64) -> Self {
        self.range = Some(offset).filter(|offset| *offset > 0);
        self
    }

    /// `GET file/…`, without the query, in which values of the task may stand.
    pub fn shown(&self) -> String {
        let path: String = self.path.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        format!("{} {path}", self.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_written_as_browsers_do() {
        let call = Call::put("job/1").form([("log", "a b&ü\n"), ("status", "2")]);
        let Payload::Bytes(body, kind) = call.payload else { panic!() };
        assert_eq!(
            (&body[..], kind),
            (&b"log=a+b%26%C3%BC%0A&status=2"[..], "application/x-www-form-urlencoded")
        );
    }

    #[test]
    fn what_is_sent_is_not_printed() {
        let call = Call::post("x").bytes(Bytes::from_static(b"hunter2"), "text/plain");
        assert!(!format!("{call:?}").contains("hunter2"));
    }
}
