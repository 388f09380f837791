//! Moves what waits for its time to where workers fetch it, when its time has come.
//!
//! Every worker takes part. A message that is not due is given back until then, so that the server keeps the time, and
//! hands it to whoever lives then; a move that breaks off in the middle is made again, and made once by its id.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Client;
use super::message::{self, Letter, Moved};
use super::names::{Names, Wait};
use crate::nats::{AckInfo, Breaks, Link, LinkError};

/// Messages asked for at once.
const AT_ONCE: usize = 64;
/// How long a request waits at the server.
const REQUEST_WAIT: Duration = Duration::from_secs(60);
/// Beyond its end before a request counts as lost.
const SLACK: Duration = Duration::from_secs(5);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// Moves as long as `stop` is not cancelled.
pub(super) async fn begin(client: &Arc<Client>, stop: CancellationToken) -> Result<(), LinkError> {
    let link = client.link.clone();
    let inbox = link.inbox();
    let heard = link.subscribe(inbox.clone()).await?;
    let breaks = link.breaks();
    let mover = Mover { link, names: client.names.clone(), inbox };
    // Ends with the client.
    tokio::spawn(async move { mover.run(heard, breaks, stop).await });
    Ok(())
}

struct Mover {
    link: Link,
    names: Names,
    inbox: String,
}

impl Mover {
    async fn run(&self, mut heard: Subscriber, mut breaks: Breaks, stop: CancellationToken) {
        loop {
            let round = async {
                if let Err(error) = self.round(&mut heard, &mut breaks).await {
                    tracing::debug!(%error, "messages whose time has come are moved again in a moment");
                    tokio::time::sleep(PAUSE).await;
                }
            };
            tokio::select! {
                () = round => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Asks once, and moves what comes until the server ends the request.
    async fn round(&self, heard: &mut Subscriber, breaks: &mut Breaks) -> Result<(), LinkError> {
        let (stream, consumer) = (self.names.work_stream(), Names::later_consumer());
        let subject = self.link.api_subject(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"));
        let wait = u64::try_from(REQUEST_WAIT.as_nanos()).unwrap_or(u64::MAX);
        let payload = json!({ "batch": AT_ONCE, "expires": wait }).to_string();
        self.link.send_asking(subject, self.inbox.clone(), payload.into()).await?;
        let mut moves = FuturesUnordered::new();
        let mut came = 0;
        let end = tokio::time::sleep(REQUEST_WAIT + SLACK);
        tokio::pin!(end);
        // A request is used up when as many came as it asked for, also those that only came to be told their time.
        while came < AT_ONCE || !moves.is_empty() {
            let message = tokio::select! {
                message = heard.next(), if came < AT_ONCE => message,
                Some(moved) = moves.next(), if !moves.is_empty() => { moved?; continue; }
                _ = breaks.changed() => return Err(LinkError::Unavailable("the connection broke".to_owned())),
                () = &mut end => None,
            };
            match message {
                Some(message) if message.status.is_none() => {
                    came += 1;
                    moves.push(self.attend(message).boxed());
                }
                // The request ended, or all of it came.
                Some(_) | None => break,
            }
        }
        while let Some(moved) = moves.next().await {
            moved?;
        }
        Ok(())
    }

    async fn attend(&self, waiting: Message) -> Result<(), LinkError> {
        let info = AckInfo::of(&waiting)?;
        let headers = waiting.headers.unwrap_or_default();
        let letter = Letter::read(&headers);
        let left = letter.due.unwrap_or(Timestamp::UNIX_EPOCH).duration_since(Timestamp::now());
        if left.is_positive() {
            // Rounded up: nothing may go before its time.
            let nanos = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX / 2);
            let millis = nanos.div_ceil(1_000_000).saturating_mul(1_000_000);
            let wait = format!("-NAK {{\"delay\": {millis}}}");
            return self.link.send(info.reply, Bytes::from(wait)).await;
        }
        let Some((Wait::Time, queue, class)) = self.names.read_place(&waiting.subject) else {
            tracing::warn!(subject = %waiting.subject, "a message waits under a subject that names no queue and class");
            // Looked at again when it is too late to matter; an operator can remove it.
            return self.link.send(info.reply, Bytes::from_static(b"-NAK {\"delay\": 3600000000000}")).await;
        };
        let own = format!("{queue}/{}", info.sequence);
        let moved = Moved {
            id: format!("due.{}", info.sequence),
            message: letter.message.as_deref().unwrap_or(&own),
            submitted: letter.submitted.unwrap_or(info.time),
            again: letter.again,
        };
        let place = self.names.place(Wait::Turn, &queue, class);
        self.link.publish(place, message::moved(&headers, &moved), waiting.payload).await?;
        self.link.confirm(&info.reply, b"+ACK").await
    }
}
