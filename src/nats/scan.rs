//! Reading a stretch of a stream in order, by a consumer of its own that acknowledges nothing and is forgotten afterwards.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Breaks, Link, LinkError, Stored};

/// Messages asked for at once.
const AT_ONCE: u64 = 500;
/// How long a scan may stand still before the server forgets it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// How long the server may take for the next message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a scan begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the oldest message.
    Oldest,
    /// At this place.
    Sequence(u64),
    /// With the first message that the server took at or after this time.
    Time(Timestamp),
}

/// Whether bodies are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    All,
    Headers,
}

/// A reader of what was in a stream when it began.
pub struct Scan {
    link: Link,
    stream: String,
    consumer: String,
    heard: Subscriber,
    inbox: String,
    breaks: Breaks,
    /// Messages that are still to come.
    left: u64,
    /// Of these, asked for.
    asked: u64,
    page: VecDeque<Stored>,
}

impl Scan {
    /// Reads messages of subjects that match `filter`, whole. It must be within the stream's subjects; empty: all.
    pub async fn whole(link: &Link, stream: &str, filter: &str, from: From) -> Result<Self, LinkError> {
        Self::open(link, stream, (filter, Parts::All), from).await
    }

    /// Reads their headers only.
    pub async fn headers(link: &Link, stream: &str, filter: &str, from: From) -> Result<Self, LinkError> {
        Self::open(link, stream, (filter, Parts::Headers), from).await
    }

    async fn open(
        link: &Link,
        stream: &str,
        (filter, parts): (&str, Parts),
        from: From,
    ) -> Result<Self, LinkError> {
        let mut config = json!({
            "ack_policy": "none",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "filter_subject": filter,
            "inactive_threshold": u64::try_from(FORGOTTEN_AFTER.as_nanos()).unwrap_or(u64::MAX),
            "mem_storage": true,
            "num_replicas": 1,
        });
        match from {
            From::Oldest => {}
            From::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence.max(1));
            }
            From::Time(time) => {
                config["deliver_policy"] = json!("by_start_time");
                config["opt_start_time"] = json!(time.to_string());
            }
        }
        if parts == Parts::Headers {
            config["headers_only"] = json!(true);
        }
        let inbox = link.inbox();
        let heard = link.subscribe(inbox.clone()).await?;
        let breaks = link.breaks();
        let payload = json!({ "stream_name": stream, "config": config });
        let made = link.ask(&format!("CONSUMER.CREATE.{stream}"), &payload).await?;
        let consumer = made.get("name").and_then(Value::as_str).map(str::to_owned);
        let consumer = consumer
            .ok_or_else(|| LinkError::Unreadable("it made a consumer and did not say its name".to_owned()))?;
        let left = made.get("num_pending").and_then(Value::as_u64).unwrap_or_default();
        let stream = stream.to_owned();
        let (link, page) = (link.clone(), VecDeque::new());
        Ok(Self { link, stream, consumer, heard, inbox, breaks, left, asked: 0, page })
    }

    /// The next message; `None` behind the last one that was there when the scan began.
    pub async fn next(&mut self) -> Result<Option<Stored>, LinkError> {
        loop {
            if let Some(stored) = self.page.pop_front() {
                return Ok(Some(stored));
            }
            if self.left == 0 {
                return Ok(None);
            }
            if self.asked == 0 {
                self.ask_for_more().await?;
            }
            self.hear().await?;
        }
    }

    /// The messages that are left.
    pub async fn rest(mut self) -> Result<Vec<Stored>, LinkError> {
        let mut all = Vec::new();
        while let Some(stored) = self.next().await? {
            all.push(stored);
        }
        self.end().await;
        Ok(all)
    }

    /// Lets the server forget it at once; it does so by itself when this is left out.
    pub async fn end(self) {
        let subject = self.link.api_subject(&format!("CONSUMER.DELETE.{}.{}", self.stream, self.consumer));
        let _ = self.link.send(subject, "{}".into()).await;
    }

    async fn ask_for_more(&mut self) -> Result<(), LinkError> {
        self.asked = self.left.min(AT_ONCE);
        let subject = self.link.api_subject(&format!("CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer));
        let payload = json!({ "batch": self.asked, "no_wait": true }).to_string();
        self.link.send_asking(subject, self.inbox.clone(), payload.into()).await
    }

    async fn hear(&mut self) -> Result<(), LinkError> {
        let broken = || LinkError::Unavailable("the connection broke while a stream was read".to_owned());
        let message = tokio::select! {
            message = self.heard.next() => message.ok_or_else(broken)?,
            _ = self.breaks.changed() => return Err(broken()),
            () = tokio::time::sleep(PATIENCE) => {
                return Err(LinkError::Unavailable(format!("nothing came within {PATIENCE:?}")));
            }
        };
        match message.status {
            None => {
                let (stored, info) = Stored::delivered(message)?;
                self.asked -= 1;
                // What was removed meanwhile does not come any more.
                self.left = (self.left - 1).min(info.pending);
                self.asked = self.asked.min(self.left);
                self.page.push_back(stored);
            }
            // Less is there than was: the rest was removed.
            Some(StatusCode::NOT_FOUND | StatusCode::REQUEST_TERMINATED) => {
                self.left = 0;
                self.asked = 0;
            }
            Some(StatusCode::TIMEOUT) => self.asked = 0,
            Some(status) => {
                let said = message.description.unwrap_or_default();
                return Err(LinkError::Refused(format!(
                    "it ended the reading of a stream with {status}: {said}"
                )));
            }
        }
        Ok(())
    }
}
