//! `ChunkedTransferEncodingStream`: an HTTP POST whose body is what the stream carries.
//!
//! # Decisions
//! - The body passes through user space: TLS is made there, and the client that owns the socket frames each chunk. A
//!   splice into a plain socket would want an HTTP client of our own beside it.
//! - SHA-256 is told of what is sent encrypted, where each byte is worked on anyway. On a plain connection the sum would
//!   cost more than the sending: half of the throughput.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::misplaced;
use crate::cancel::CancelScope;
use crate::error::TaskError;
use crate::girder::Site;
use crate::http::{self, Judge, Timeouts, Transport};
use crate::pipeline::conduit::{Buffers, Ends, Sink, Source, StreamError};
use crate::pipeline::workspace::hex;
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::HttpStream;

/// Headers that say how a request is carried: they are ours, or a request could be smuggled into another.
const OURS: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade"];
/// Headers whose values are no secrets.
const PLAIN: [&str; 3] = ["content-type", "accept", "user-agent"];
/// How much of an answer is shown.
const SHOWN: usize = 512;
/// How long the text of an error is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The row's maker.
pub(in crate::pipeline) fn stream(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::ChunkedTransferEncodingStream(stream) => {
            Some(Box::new(Stream { spec: stream.clone() }))
        }
        _ => None,
    }
}

struct Stream {
    spec: HttpStream,
}

#[async_trait]
impl Transform for Stream {
    async fn stage(&mut self, _place: Place, _staging: &mut Staging) -> Result<Option<String>, TaskError> {
        Err(misplaced("ChunkedTransferEncodingStream", "it belongs in a Connect, as its output"))
    }

    fn sink(&mut self, staging: &mut Staging) -> Result<Option<Box<dyn Sink>>, TaskError> {
        let url = checked_url(&self.spec.url)?;
        let headers = checked_headers(&self.spec)?;
        for (name, value) in &self.spec.headers {
            if !PLAIN.contains(&name.to_ascii_lowercase().as_str()) {
                staging.attempt().report().redact(value);
            }
        }
        let settings = staging.settings();
        // Judged now, too, so that a denial comes before any container.
        http::judge_url(&url, settings.judge.as_ref())?;
        Ok(Some(Box::new(HttpSink {
            url,
            headers,
            timeouts: settings.http,
            judge: settings.judge.clone(),
            site: settings.girder.clone(),
            linger: settings.linger,
            scope: staging.attempt().scope().clone(),
            sha256: None,
        })))
    }
}

fn checked_url(text: &str) -> Result<Url, TaskError> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(TaskError::permanent(
            "bad_argument",
            format!(
                "ChunkedTransferEncodingStream.url is {}; it must be an absolute http or https URL",
                http::without_secrets(text)
            ),
        )),
    }
}

fn checked_headers(spec: &HttpStream) -> Result<HeaderMap, TaskError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &spec.headers {
        let refused = |why: &str| {
            let text = format!("ChunkedTransferEncodingStream.headers: {name:?} {why}; leave it out");
            TaskError::permanent("bad_argument", text)
        };
        if OURS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(refused("is set by the worker itself"));
        }
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("is no name of a header"))?;
        let mut value = HeaderValue::from_str(value.expose())
            .map_err(|_| refused("has a value that no header may have"))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

/// One POST.
struct HttpSink {
    url: Url,
    headers: HeaderMap,
    timeouts: Timeouts,
    judge: Arc<dyn Judge>,
    /// Knows whom to trust beside the system's authorities.
    site: Arc<Site>,
    linger: Duration,
    scope: CancelScope,
    sha256: Option<String>,
}

#[async_trait]
impl Sink for HttpSink {
    fn ends(&self) -> Ends {
        Ends::AfterLastWriter(self.linger)
    }

    async fn take(&mut self, source: Source) -> Result<(), StreamError> {
        let client = self.client()?;
        let sending = Arc::new(Sending::default());
        let wanted = CancellationToken::new();
        let feed = Feed {
            source,
            buffers: Buffers::default(),
            sum: (self.url.scheme() == "https").then(Sha256::new),
            sending: sending.clone(),
            dropped: wanted.clone(),
            scope: self.scope.clone(),
        };
        // The client keeps the body even when nobody waits for its answer any more.
        let _wanted = wanted.drop_guard();
        let request = client.post(self.url.clone()).headers(self.headers.clone()).body(feed.body());
        let total = async {
            match self.timeouts.total {
                Some(total) => sleep(total).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = self.exchange(request, &sending) => result,
            () = sending.stalled(self.timeouts.idle) => Err(self.slow("took nothing", self.timeouts.idle)),
            () = total => Err(self.slow("was not done", self.timeouts.total.unwrap_or_default())),
        };
        let mut state = sending.lock();
        self.sha256 = state.sha256.take();
        match state.failed.take() {
            // What the source says is the cause of whatever the request says.
            Some(error) => Err(error),
            None => result.map_err(StreamError::Task),
        }
    }

    fn sha256(&self) -> Option<String> {
        self.sha256.clone()
    }
}

impl HttpSink {
    fn client(&self) -> Result<reqwest::Client, TaskError> {
        http::judge_url(&self.url, self.judge.as_ref())?;
        let transport = Transport { roots: self.site.roots().to_vec(), ..Transport::default() };
        http::build(&self.url, &self.judge, &self.timeouts, &transport)
    }

    async fn exchange(&self, request: reqwest::RequestBuilder, sending: &Sending) -> Result<(), TaskError> {
        let mut response = request.send().await.map_err(|error| self.failed(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        // The answer is read to its end, but kept nowhere.
        while response.chunk().await.map_err(|error| self.failed(error))?.is_some() {
            sending.heard();
        }
        if !sending.over().await {
            let text = format!("{} answered and closed before the end of the stream", self.shown());
            return Err(TaskError::retryable("http_stream", text));
        }
        Ok(())
    }

    async fn refused(&self, mut response: Response) -> TaskError {
        let status = response.status();
        let mut said = Vec::new();
        // A server may never end what it says.
        let patience = Instant::now() + PATIENCE;
        while said.len() < SHOWN
            && let Ok(Ok(Some(piece))) = timeout_at(patience, response.chunk()).await
        {
            said.extend_from_slice(&piece);
        }
        said.truncate(SHOWN);
        let said = String::from_utf8_lossy(&said);
        let text = if status.is_redirection() {
            let target = response.headers().get("location").and_then(|value| value.to_str().ok());
            let target = target.map_or_else(String::new, |target| {
                let target = self.url.join(target).map_or_else(|_| target.to_owned(), String::from);
                format!(" to {}", http::without_secrets(&target))
            });
            format!(
                "{} answered {status}{target}; a stream is not redirected: give the final URL",
                self.shown()
            )
        } else {
            let said = said.trim();
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            format!("{} answered {status}{said}", self.shown())
        };
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                TaskError::retryable("http_stream", text)
            }
            status if status.is_server_error() => TaskError::retryable("http_stream", text),
            _ => TaskError::permanent("http_stream", text),
        }
    }

    fn failed(&self, error: reqwest::Error) -> TaskError {
        http::explain(error, "http_stream", &format!("cannot send to {}", self.shown()))
    }

    fn slow(&self, what: &str, limit: Duration) -> TaskError {
        TaskError::retryable("http_stream", format!("{} {what} for {limit:?}", self.shown()))
    }

    fn shown(&self) -> String {
        http::without_secrets(self.url.as_str())
    }
}

/// How far a body is, as its request sees it.
#[derive(Default)]
struct Sending {
    state: Mutex<State>,
    done: Notify,
}

struct State {
    /// Since when it is the server's turn; none while the container has nothing.
    servers_turn: Option<Instant>,
    /// Whether the body came to its end, once it is over.
    ended: Option<bool>,
    failed: Option<StreamError>,
    sha256: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self { servers_turn: Some(Instant::now()), ended: None, failed: None, sha256: None }
    }
}

impl Sending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        self.lock().servers_turn = Some(Instant::now());
    }

    fn finish(&self, ended: bool) {
        self.lock().ended.get_or_insert(ended);
        self.done.notify_one();
    }

    /// Waits until the body is over; says whether all of it was taken.
    async fn over(&self) -> bool {
        loop {
            let notified = self.done.notified();
            if let Some(ended) = self.lock().ended {
                return ended;
            }
            notified.await;
        }
    }

    /// Resolves when it was the server's turn for `idle` without anything happening.
    async fn stalled(&self, idle: Duration) {
        loop {
            let since = self.lock().servers_turn;
            match since {
                Some(since) if since.elapsed() >= idle => return,
                Some(since) => sleep_until(since + idle).await,
                None => sleep(idle).await,
            }
        }
    }
}

/// What gives a request its body. It ends cleanly only when all of it is there, so that the server never takes a part
/// for the whole.
struct Feed {
    source: Source,
    buffers: Buffers,
    sum: Option<Sha256>,
    sending: Arc<Sending>,
    /// Ends when nobody wants the request any more.
    dropped: CancellationToken,
    scope: CancelScope,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.sending.finish(false);
    }
}

impl Feed {
    fn body(self) -> Body {
        Body::wrap_stream(futures_util::stream::unfold(Some(self), async |feed| {
            let mut feed = feed?;
            match feed.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(feed))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.sending.lock().servers_turn = None;
        let piece = tokio::select! {
            piece = self.source.piece(&self.buffers) => piece,
            () = self.dropped.cancelled() => return Err(io::Error::other("the stream was dropped")),
        };
        let mut state = self.sending.lock();
        state.servers_turn = Some(Instant::now());
        match piece {
            Ok(Some(piece)) => {
                drop(state);
                if let Some(sum) = &mut self.sum {
                    sum.update(&piece);
                }
                Ok(Some(piece))
            }
            // A container that is stopped closes its pipes, too.
            Ok(None) if self.scope.is_canceled() => Err(io::Error::other("the task was ended")),
            Ok(None) => {
                state.sha256 = self.sum.take().map(|sum| hex(&sum.finalize()));
                drop(state);
                self.sending.finish(true);
                Ok(None)
            }
            Err(error) => {
                state.failed = Some(error);
                Err(io::Error::other("the source failed"))
            }
        }
    }
}
