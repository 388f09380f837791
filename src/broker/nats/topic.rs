//! Publishing events, and commands.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::events::{self, Follower};
use super::names::{Names, bucket_stream, key_subject};
use super::{Client, refusal};
use crate::broker::{BrokerError, Command, Topic};
use crate::events::{Event, EventFilter, EventStart, cloudevent};
use crate::nats::stream::purge;
use crate::nats::{Link, LinkError, in_order};
use crate::task::TaskId;

#[async_trait]
impl Topic for Client {
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError> {
        // Streams take messages side by side: the next stream's turn comes when the one before has stored its events, so that
        // the server's times order the events of both.
        for run in events.chunk_by(|a, b| a.kind().is_chatter() == b.kind().is_chatter()) {
            let sent: Vec<_> = run.iter().map(|event| self.tell(event)).collect();
            in_order(sent).await.map_err(self.cannot("publish events"))?;
        }
        Ok(())
    }

    async fn replay(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let follower = Follower::replay(self, filter, start).await;
        Ok(follower.map_err(self.cannot("replay events"))?.stream())
    }

    async fn follow(
        &self,
        filter: EventFilter,
        start: EventStart,
    ) -> Result<BoxStream<'static, Result<Event, BrokerError>>, BrokerError> {
        let follower = Follower::start(self, filter, start).await;
        Ok(follower.map_err(self.cannot("replay events"))?.stream())
    }

    async fn command(&self, command: Command) -> Result<(), BrokerError> {
        self.order(&command).await.map_err(self.cannot("send a command"))
    }

    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError> {
        let cannot = self.cannot("hear commands");
        let breaks = self.link.breaks();
        let heard = self.link.subscribe(self.names.commands()).await.map_err(&cannot)?;
        self.link.settled().await.map_err(&cannot)?;
        let state = Some((heard, breaks, (self.place.name.clone(), Arc::clone(&self.cancels))));
        // Ends when some may have been missed: whoever listens again looks for cancels that are kept.
        Ok(stream::unfold(state, |state| async {
            let (mut heard, mut breaks, (name, cancels)) = state?;
            loop {
                let message = tokio::select! {
                    message = heard.next() => message?,
                    _ = breaks.changed() => {
                        let missed = LinkError::Unavailable("some commands may have been missed".to_owned());
                        return Some((Err(refusal(&name, "hear commands", missed)), None));
                    }
                };
                match serde_json::from_slice(&message.payload) {
                    Ok(command) => {
                        if let Command::Cancel { task, .. } = &command {
                            cancels.heard(task);
                        }
                        return Some((Ok(command), Some((heard, breaks, (name, cancels)))));
                    }
                    Err(error) => {
                        tracing::warn!(broker = name, %error, "a command is unreadable and left out");
                    }
                }
            }
        })
        .boxed())
    }

    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError> {
        if self.cancels.exclude(task) {
            return Ok(None);
        }
        let found = self.cancel_reason(task).await;
        found.map_err(self.cannot("look for a cancel request"))
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        let bucket = self.names.control_bucket();
        let subject = key_subject(&bucket, &Names::cancel_key(task));
        let forgotten = purge(&self.link, &bucket_stream(&bucket), &subject).await;
        forgotten.map(drop).map_err(self.cannot("forget a cancel request"))
    }
}

impl Client {
    async fn tell(&self, event: &Event) -> Result<(), LinkError> {
        let mut headers = HeaderMap::new();
        headers.insert(crate::nats::header::MESSAGE_ID, events::message_id(event).as_str());
        let subject = self.names.event(&event.queue, &event.task, event.kind());
        self.link.publish(subject, headers, cloudevent::encode(event).into()).await.map(drop)
    }

    async fn cancel_reason(&self, task: &TaskId) -> Result<Option<String>, LinkError> {
        let bucket = self.names.control_bucket();
        let (stream, subject) = (bucket_stream(&bucket), key_subject(&bucket, &Names::cancel_key(task)));
        let found = last(&self.link, &stream, &subject, self.place.replicas).await?;
        let kept = found.filter(|stored| stored.header("KV-Operation").is_none());
        Ok(kept.map(|stored| String::from_utf8_lossy(&stored.body).into_owned()))
    }

    /// A cancel is kept before it is told, so that whoever missed the word finds it.
    async fn order(&self, command: &Command) -> Result<(), LinkError> {
        let text = serde_json::to_vec(command).expect("invariant: a command has text keys");
        if let Command::Cancel { task, reason } = command {
            self.cancels.heard(task);
            let subject = key_subject(&self.names.control_bucket(), &Names::cancel_key(task));
            self.link.publish(subject, HeaderMap::new(), reason.clone().into_bytes().into()).await?;
        }
        self.link.send(self.names.commands(), text.into()).await?;
        // Whoever sent it may end at once, and what was not sent with him.
        self.link.settled().await
    }
}

/// The last message of a subject: of any replica where there is one only, else of the leader.
async fn last(
    link: &Link,
    stream: &str,
    subject: &str,
    replicas: u64,
) -> Result<Option<crate::nats::Stored>, LinkError> {
    if replicas == 1 { link.last(stream, subject).await } else { link.last_of_leader(stream, subject).await }
}
