//! The client of one Girder as one token sees it: sends calls, follows redirects, tries again, notices stalls.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::budget::Budget;
use super::download::Download;
use super::{Call, Connection, GirderError, Payload, Repeat, Site};
use crate::error::TaskError;
use crate::http::{self, Judge, Verify};

/// Redirects that one call follows.
const HOPS: usize = 5;
/// Most bytes of an answer that is read as a whole.
const ANSWER_MAX: usize = 64 << 20;
/// How much of an error's text is shown.
const SHOWN: usize = 512;

/// A client. Cheap to clone; its clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    site: Arc<Site>,
    base: Url,
    headers: HeaderMap,
    verify: Verify,
    judge: Arc<dyn Judge>,
}

impl Client {
    pub(super) fn new(
        site: Arc<Site>,
        connection: &Connection,
        judge: Arc<dyn Judge>,
    ) -> Result<Self, TaskError> {
        let base = connection.base()?;
        http::judge_url(&base, judge.as_ref())?;
        let headers = connection.headers()?;
        Ok(Self { inner: Arc::new(Inner { site, base, headers, verify: connection.session.verify, judge }) })
    }

    /// The base of the API, for people: without user and password.
    pub fn server(&self) -> String {
        http::without_secrets(self.inner.base.as_str()).trim_end_matches('/').to_owned()
    }

    /// The site it was made from.
    pub fn site(&self) -> &Arc<Site> {
        &self.inner.site
    }

    /// GETs a document. Cancel-safe.
    pub async fn get_json(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, GirderError> {
        let call = query.iter().fold(Call::get(path), |call, (name, value)| call.query(name, *value));
        self.json(call).await
    }

    /// Makes a call whose answer is a document. Dropping the future leaves open whether Girder did it.
    pub async fn json(&self, call: Call) -> Result<Value, GirderError> {
        let body = self.whole(&call).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let reason = format!("the answer is not JSON ({error}); is the API address right?");
            GirderError::Answer { call: call.shown(), server: self.server(), reason }
        })
    }

    /// Makes a call whose answer says nothing that matters.
    pub async fn done(&self, call: Call) -> Result<(), GirderError> {
        self.whole(&call).await.map(drop)
    }

    /// GETs a body piece by piece, from byte `from` on. What arrives must be counted: see [`Download`].
    pub async fn get_stream(&self, path: &str, from: u64) -> Result<Download, GirderError> {
        let call = Call::get(path).from(from);
        let mut budget = self.budget();
        loop {
            match self.answered(&call).await {
                Ok(response) => {
                    let stall = self.inner.site.settings().stall_timeout.get();
                    return Download::of(response, (call.shown(), self.server()), from, stall);
                }
                Err(error) => self.wait_or_give_up(&call, error, &mut budget).await?,
            }
        }
    }

    async fn whole(&self, call: &Call) -> Result<Bytes, GirderError> {
        let mut budget = self.budget();
        loop {
            let body = match self.answered(call).await {
                Ok(response) => self.read(call, response).await,
                Err(error) => Err(error),
            };
            match body {
                Ok(body) => return Ok(body),
                Err(error) => self.wait_or_give_up(call, error, &mut budget).await?,
            }
        }
    }

    fn budget(&self) -> Budget {
        Budget::new(self.inner.site.settings().retry_budget.get())
    }

    async fn wait_or_give_up(
        &self,
        call: &Call,
        error: GirderError,
        budget: &mut Budget,
    ) -> Result<(), GirderError> {
        let again = error.is_passing() && (call.repeat == Repeat::Harmless || error.is_not_begun());
        match budget.next(error.retry_after()).filter(|_| again) {
            Some(delay) => {
                tracing::debug!(%error, tries = budget.tries(), ?delay, "Girder is asked again");
                sleep(delay).await;
                Ok(())
            }
            None => Err(error),
        }
    }

    /// One try: the answer to `call`, redirects followed, errors of Girder as errors.
    async fn answered(&self, call: &Call) -> Result<Response, GirderError> {
        let mut url = self.url(call);
        for _ in 0..=HOPS {
            let response = self.send(call, &url).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Err(self.refused(call, response).await);
            }
            url = self.target(call, &url, &response)?;
        }
        Err(self.no_redirect(call, format!("it redirects more than {HOPS} times")))
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.inner.base.clone();
        // Segment by segment, so that no id of a task can climb out of its route.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            segments.extend(call.path.split('/').filter(|part| !matches!(*part, "" | "." | "..")));
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        url
    }

    /// Where a redirect leads. Only reading follows one: what is sent could end up anywhere.
    fn target(&self, call: &Call, from: &Url, response: &Response) -> Result<Url, GirderError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(target) = location.and_then(|location| from.join(location).ok()) else {
            return Err(self.no_redirect(call, format!("it answers {} to nowhere", response.status())));
        };
        let shown = http::without_secrets(target.as_str());
        if !matches!(target.scheme(), "http" | "https") {
            return Err(self.no_redirect(call, format!("it redirects to {shown}, which is no HTTP address")));
        }
        if call.method != Method::GET {
            let text =
                format!("it redirects to {shown}; what is sent is not redirected: use the final API address");
            return Err(self.no_redirect(call, text));
        }
        Ok(target)
    }

    fn no_redirect(&self, call: &Call, reason: String) -> GirderError {
        GirderError::Redirect { call: call.shown(), server: self.server(), reason }
    }

    async fn send(&self, call: &Call, url: &Url) -> Result<Response, GirderError> {
        let inner = &self.inner;
        http::judge_url(url, inner.judge.as_ref()).map_err(GirderError::Refused)?;
        let is_own = url.origin() == inner.base.origin();
        // Whoever a redirect leads to proves who it is, whatever the message says about its own server.
        let verify = if is_own { inner.verify } else { Verify::Strictly };
        let client = inner.site.pool(url, &inner.judge, verify).map_err(GirderError::Refused)?;
        let mut request =
            client.request(call.method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
        if is_own {
            request = request.headers(inner.headers.clone());
        }
        if let Some(from) = call.range {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let (pulse, pulses) = watch::channel(());
        request = match &call.payload {
            // Girder's own server wants a length with whatever may have a body.
            Payload::Empty if call.method != Method::GET => request.header(CONTENT_LENGTH, "0"),
            Payload::Empty => request,
            Payload::Bytes(bytes, kind) => request.header(CONTENT_TYPE, *kind).body(bytes.clone()),
            Payload::Feed(feed, length) => {
                let pieces = feed().inspect(move |_| pulse.send_replace(()));
                request
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(CONTENT_LENGTH, *length)
                    .body(Body::wrap_stream(pieces))
            }
        };
        let stall = inner.site.settings().stall_timeout.get();
        // Connecting has a limit of its own.
        let limit = stall + inner.site.settings().connect_timeout.get();
        tokio::select! {
            answer = request.send() => answer.map_err(|error| self.failed(call, error)),
            () = stalled(pulses, limit) => {
                Err(GirderError::Stalled { call: call.shown(), server: self.server(), limit: stall })
            }
        }
    }

    fn failed(&self, call: &Call, error: reqwest::Error) -> GirderError {
        if let Some(denied) = http::denial(&error) {
            // The pool may have been made for another task, whose name its denial bears.
            let own = self.inner.judge.address(&denied.host, denied.address);
            return GirderError::Refused(own.err().unwrap_or_else(|| denied.error.clone()));
        }
        let (call, server) = (call.shown(), self.server());
        if error.is_connect() {
            GirderError::Unreachable { call, server, reason: http::reason(error) }
        } else {
            GirderError::Broken { call, server, reason: http::reason(error) }
        }
    }

    async fn read(&self, call: &Call, mut response: Response) -> Result<Bytes, GirderError> {
        let stall = self.inner.site.settings().stall_timeout.get();
        let mut body = BytesMut::new();
        loop {
            match timeout(stall, response.chunk()).await {
                Ok(Ok(Some(piece))) if body.len() + piece.len() > ANSWER_MAX => {
                    let reason = format!("the answer is longer than {} MiB", ANSWER_MAX >> 20);
                    return Err(GirderError::Answer { call: call.shown(), server: self.server(), reason });
                }
                Ok(Ok(Some(piece))) => body.extend_from_slice(&piece),
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => return Err(self.failed(call, error)),
                Err(_) => {
                    let (call, server) = (call.shown(), self.server());
                    return Err(GirderError::Stalled { call, server, limit: stall });
                }
            }
        }
    }

    /// An error that Girder answered with: `{"message": …, "field": …}`, or whatever stands before it.
    async fn refused(&self, call: &Call, mut response: Response) -> GirderError {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs);
        let mut said = Vec::new();
        let stall = self.inner.site.settings().stall_timeout.get().min(Duration::from_secs(5));
        while said.len() < 16 << 10
            && let Ok(Ok(Some(piece))) = timeout(stall, response.chunk()).await
        {
            said.extend_from_slice(&piece);
        }
        let document: Option<Value> = serde_json::from_slice(&said).ok();
        let text = |field: &str| document.as_ref()?.get(field)?.as_str().map(str::to_owned);
        GirderError::Status {
            call: call.shown(),
            server: self.server(),
            status,
            field: text("field"),
            said: shown(&text("message").unwrap_or_default()),
            retry_after,
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.server()).finish_non_exhaustive()
    }
}

/// Resolves when the body stood still for `limit`, or when nothing came for as long after its end.
async fn stalled(mut pulses: watch::Receiver<()>, limit: Duration) {
    loop {
        match timeout(limit, pulses.changed()).await {
            Ok(Ok(())) => {}
            // The body is over: now the answer is due.
            Ok(Err(_)) => return sleep(limit).await,
            Err(_) => return,
        }
    }
}

/// One line of what a server said, as short as a person wants it.
fn shown(said: &str) -> String {
    let line: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    line.trim().to_owned()
}
