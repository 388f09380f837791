//! The connection to a server, and what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{
    Client, Event, HeaderMap, Message, RequestErrorKind, StatusCode, Subscriber, client::Request,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::address::refused_connection;
use super::{LinkError, Place, Stored};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two tries to connect again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Messages in flight.
const IN_FLIGHT: usize = 256;

/// Publishes many messages in their order, many in flight; the first error ends it.
pub async fn in_order<T>(
    publishing: Vec<impl Future<Output = Result<T, LinkError>>>,
) -> Result<Vec<T>, LinkError> {
    // Unconstrained: a future that yields for fairness before it has sent would send behind those that follow.
    tokio::task::unconstrained(stream::iter(publishing).buffered(IN_FLIGHT).try_collect()).await
}

/// Counts what may have made a listener miss something: broken connections and overflown subscriptions.
pub type Breaks = watch::Receiver<u64>;

/// A connection that comes back by itself. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Link {
    client: Client,
    api: Arc<str>,
    breaks: Breaks,
    /// Asks so far, to keep inboxes apart.
    asks: Arc<AtomicU64>,
}

/// What a stream answered to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its place in the stream.
    pub sequence: u64,
    /// Whether the stream knew its id already and took nothing.
    pub duplicate: bool,
}

impl Link {
    /// Connects to `place` within `patience`, under the name `who`.
    pub async fn open(place: &Place, who: &str, patience: Duration) -> Result<Self, LinkError> {
        let (sender, breaks) = watch::channel(0);
        let sender = Arc::new(sender);
        let name = place.name.clone();
        let down = Arc::new(AtomicBool::new(false));
        let options = place.connect_options().await?;
        let options = options
            .name(who)
            .connection_timeout(patience)
            .request_timeout(Some(PATIENCE))
            .reconnect_delay_callback(|tries| {
                let exponent = u32::try_from(tries).unwrap_or(u32::MAX).min(6);
                (Duration::from_millis(25) * 2_u32.pow(exponent)).min(LONGEST_PAUSE)
            })
            .event_callback(move |event| {
                let (sender, name, down) = (Arc::clone(&sender), name.clone(), Arc::clone(&down));
                async move { heard(&event, &name, (&sender, &down)) }
            });
        let connecting = tokio::time::timeout(patience, options.connect(place.servers()));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refused_connection(&error)),
            Err(_) => return Err(LinkError::Unavailable(format!("no answer within {patience:?}"))),
        };
        let link = Self { client, api: place.api().into(), breaks, asks: Arc::default() };
        // Whether JetStream is there at all.
        link.ask("INFO", &json!({})).await?;
        Ok(link)
    }

    /// Changes with everything that may have made a listener miss something.
    pub fn breaks(&self) -> Breaks {
        let mut breaks = self.breaks.clone();
        breaks.mark_unchanged();
        breaks
    }

    /// An inbox that nobody else hears.
    pub fn inbox(&self) -> String {
        format!("{}.{}", self.client.new_inbox(), self.asks.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks JetStream by its API; `request` stands behind the prefix.
    pub async fn ask(&self, request: &str, payload: &Value) -> Result<Value, LinkError> {
        let subject = format!("{}.{request}", self.api);
        let payload = serde_json::to_vec(payload).expect("invariant: a request has text keys");
        let answer = self.request(subject, None, payload.into()).await.map_err(|error| match error {
            LinkError::Missing(_) => LinkError::Unavailable(
                "JetStream does not answer: start the server with -js (or jetstream {} in its settings), or name the domain (?domain=…)"
                    .to_owned(),
            ),
            error => error,
        })?;
        answer_of(&answer.payload)
    }

    /// The whole subject of a request to JetStream.
    pub fn api_subject(&self, request: &str) -> String {
        format!("{}.{request}", self.api)
    }

    /// Sends a message to a stream and waits until it is stored.
    pub async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Published, LinkError> {
        let answer = self.request(subject, Some(headers), body).await;
        let answer = answer.map_err(|error| match error {
            LinkError::Missing(_) => LinkError::Missing(
                "no stream takes the message: let longshore make its streams (longshore broker init)"
                    .to_owned(),
            ),
            error => error,
        })?;
        let answer = answer_of(&answer.payload)?;
        let sequence = answer.get("seq").and_then(Value::as_u64);
        let duplicate = answer.get("duplicate").and_then(Value::as_bool).unwrap_or(false);
        match sequence {
            Some(sequence) => Ok(Published { sequence, duplicate }),
            None => Err(LinkError::Unreadable("it stored a message and did not say where".to_owned())),
        }
    }

    /// Sends a message that no answer is wanted to.
    pub async fn send(&self, subject: String, body: Bytes) -> Result<(), LinkError> {
        let sent = self.client.publish(subject, body).await;
        sent.map_err(|error| LinkError::Unavailable(error.to_string()))
    }

    /// Sends a message whose answers go to `reply`.
    pub async fn send_asking(&self, subject: String, reply: String, body: Bytes) -> Result<(), LinkError> {
        let sent = self.client.publish_with_reply(subject, reply, body).await;
        sent.map_err(|error| LinkError::Unavailable(error.to_string()))
    }

    /// Says something of a delivery (`+ACK`, `-NAK`, `+WPI`) and waits until the server has heard it.
    pub async fn confirm(&self, reply: &str, what: &'static [u8]) -> Result<(), LinkError> {
        self.request(reply.to_owned(), None, Bytes::from_static(what)).await.map(drop)
    }

    /// Hears `subject` from now on.
    pub async fn subscribe(&self, subject: String) -> Result<Subscriber, LinkError> {
        let heard = self.client.subscribe(subject).await;
        heard.map_err(|error| LinkError::Refused(error.to_string()))
    }

    /// Waits until the server has seen all that was sent on this connection before: it reads one connection in order.
    pub async fn settled(&self) -> Result<(), LinkError> {
        self.ask("INFO", &json!({})).await.map(drop)
    }

    /// The last message of a subject, as the stream's leader knows it.
    pub async fn last_of_leader(&self, stream: &str, subject: &str) -> Result<Option<Stored>, LinkError> {
        found(self.ask(&format!("STREAM.MSG.GET.{stream}"), &json!({ "last_by_subj": subject })).await)?
            .map(|answer| Stored::of_leader(&answer))
            .transpose()
    }

    /// The last message of a subject, as some replica knows it.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, LinkError> {
        let asked = format!("{}.DIRECT.GET.{stream}.{subject}", self.api);
        self.direct(asked, Bytes::new()).await
    }

    /// The message at `sequence`.
    pub async fn at(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, LinkError> {
        self.direct_by(stream, &json!({ "seq": sequence })).await
    }

    /// The first message of `subject` at or behind `sequence`.
    pub async fn next_of(
        &self,
        stream: &str,
        subject: &str,
        sequence: u64,
    ) -> Result<Option<Stored>, LinkError> {
        self.direct_by(stream, &json!({ "seq": sequence, "next_by_subj": subject })).await
    }

    async fn direct_by(&self, stream: &str, which: &Value) -> Result<Option<Stored>, LinkError> {
        let which = serde_json::to_vec(which).expect("invariant: a request has text keys");
        self.direct(format!("{}.DIRECT.GET.{stream}", self.api), which.into()).await
    }

    async fn direct(&self, subject: String, body: Bytes) -> Result<Option<Stored>, LinkError> {
        let answer = self.request(subject, None, body).await?;
        match answer.status {
            None => Stored::direct(answer).map(Some),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => {
                let said = answer.description.unwrap_or_default();
                Err(LinkError::Refused(format!("it answered a direct get with {status}: {said}")))
            }
        }
    }

    async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Message, LinkError> {
        let mut request = Request::new().payload(body);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        self.client.send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => LinkError::Missing("nobody answers there".to_owned()),
            RequestErrorKind::MaxPayloadExceeded => LinkError::Refused(format!(
                "the message is longer than the {} bytes that the server takes: raise its max_payload",
                self.client.max_payload()
            )),
            RequestErrorKind::TimedOut => LinkError::Unavailable(format!("no answer within {PATIENCE:?}")),
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                LinkError::Unavailable(error.to_string())
            }
        })
    }
}

fn heard(event: &Event, name: &str, (breaks, down): (&watch::Sender<u64>, &AtomicBool)) {
    match event {
        Event::Disconnected => {
            down.store(true, Ordering::Relaxed);
            tracing::warn!(server = name, "the connection broke; it is opened again");
            breaks.send_modify(|breaks| *breaks += 1);
        }
        Event::Connected => {
            // The first one is told after it is used already, and nothing was missed.
            if down.swap(false, Ordering::Relaxed) {
                tracing::info!(server = name, "connected again");
                breaks.send_modify(|breaks| *breaks += 1);
            }
        }
        Event::SlowConsumer(_) => {
            tracing::debug!(server = name, "a subscription overflowed; what it missed is read again");
            breaks.send_modify(|breaks| *breaks += 1);
        }
        Event::ServerError(error) => tracing::warn!(server = name, %error, "the server complains"),
        Event::ClientError(error) => tracing::warn!(server = name, %error, "the client complains"),
        Event::LameDuckMode => tracing::info!(server = name, "the server is about to stop"),
        Event::Draining | Event::Closed => {}
    }
}

/// `None` where what was asked for is not there.
pub(super) fn found(answer: Result<Value, LinkError>) -> Result<Option<Value>, LinkError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(LinkError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Codes of JetStream's errors (server/errors.json of nats-server).
mod code {
    pub(super) const CONSUMER_NOT_FOUND: u64 = 10_014;
    pub(super) const MESSAGE_NOT_FOUND: u64 = 10_037;
    pub(super) const JETSTREAM_OFF: u64 = 10_076;
    pub(super) const JETSTREAM_OFF_FOR_ACCOUNT: u64 = 10_039;
    pub(super) const STREAM_NOT_FOUND: u64 = 10_059;
    pub(super) const WRONG_LAST_SEQUENCE: u64 = 10_071;
    pub(super) const SEQUENCE_NOT_FOUND: u64 = 10_043;
    /// A message that is to be deleted is not there, or cannot be.
    pub(super) const NOT_DELETED: u64 = 10_057;
}

fn answer_of(payload: &[u8]) -> Result<Value, LinkError> {
    let answer: Value = serde_json::from_slice(payload)
        .map_err(|error| LinkError::Unreadable(format!("it answered what is no JSON: {error}")))?;
    let Some(error) = answer.get("error") else { return Ok(answer) };
    let number = |name: &str| error.get(name).and_then(Value::as_u64).unwrap_or_default();
    let said = error.get("description").and_then(Value::as_str).unwrap_or("an error without description");
    Err(match (number("code"), number("err_code")) {
        (_, code::WRONG_LAST_SEQUENCE) => LinkError::Overtaken,
        (
            _,
            code::STREAM_NOT_FOUND
            | code::CONSUMER_NOT_FOUND
            | code::MESSAGE_NOT_FOUND
            | code::SEQUENCE_NOT_FOUND
            | code::NOT_DELETED,
        ) => LinkError::Missing(said.to_owned()),
        (_, code::JETSTREAM_OFF | code::JETSTREAM_OFF_FOR_ACCOUNT) => LinkError::Refused(format!(
            "{said}: start the server with -js, and allow JetStream for this account"
        )),
        // The cluster elects, a disk is full, replicas are missing: it may pass.
        (503, _) => LinkError::Unavailable(said.to_owned()),
        (code, number) => LinkError::Refused(format!("{said} ({code}, {number})")),
    })
}
