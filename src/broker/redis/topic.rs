//! Publishing events, and commands.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::broadcast::error::RecvError;

use super::ears::Heard;
use super::events::Follower;
use super::keys::Keys;
use super::{Client, millis, refusal};
use crate::broker::{BrokerError, Command, Topic};
use crate::events::{Event, EventFilter, EventStart, cloudevent};
use crate::redis::{LinkError, script, value};
use crate::task::TaskId;

script!(PUBLISH, "lua/common.lua", "lua/publish.lua");

/// How long a cancel is remembered; no task waits longer.
const CANCEL_AGE_SECONDS: u64 = 400 * 86_400;

#[async_trait]
impl Topic for Client {
    async fn publish(&self, events: &[Event]) -> Result<(), BrokerError> {
        if events.is_empty() {
            return Ok(());
        }
        let most = (self.options.event_count / 2).max(1);
        let mut call = PUBLISH.on(&self.keys.events()).arg(most).arg(millis(self.options.event_age));
        call.push(self.keys.event_channels());
        for event in events {
            call.push(u8::from(event.kind().is_chatter()));
            call.push(Keys::event_channel(&event.queue, &event.task, event.kind()));
            call.push(cloudevent::encode(event));
        }
        self.link.call(&call).await.map(drop).map_err(self.cannot("publish events"))
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
        self.send(&command).await.map_err(self.cannot("send a command"))
    }

    async fn commands(&self) -> Result<BoxStream<'static, Result<Command, BrokerError>>, BrokerError> {
        let heard = self.ears.commands();
        self.link.subscribe(&self.keys.commands()).await.map_err(self.cannot("hear commands"))?;
        let state = Some((heard, self.place.name.clone()));
        // Ends when some may have been missed: whoever listens again looks for cancels that are kept.
        Ok(stream::unfold(state, |state| async {
            let (mut heard, name) = state?;
            let missed = |reason: String| LinkError::Unavailable(reason);
            loop {
                let error = match heard.recv().await {
                    Ok(Heard::Command(text)) => match serde_json::from_slice(&text) {
                        Ok(command) => return Some((Ok(command), Some((heard, name)))),
                        Err(error) => {
                            tracing::warn!(broker = name, %error, "a command is unreadable and left out");
                            continue;
                        }
                    },
                    Ok(Heard::Broken) => missed("the connection broke".to_owned()),
                    Err(RecvError::Lagged(count)) => missed(format!("{count} commands were missed")),
                    Err(RecvError::Closed) => return None,
                };
                return Some((Err(refusal(&name, "hear commands", error)), None));
            }
        })
        .boxed())
    }

    async fn cancel_requested(&self, task: &TaskId) -> Result<Option<String>, BrokerError> {
        let found = self.link.send(redis::cmd("GET").arg(self.keys.cancel(task))).await;
        found.and_then(value::text_if_any).map_err(self.cannot("look for a cancel request"))
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        let forgotten = self.link.send(redis::cmd("DEL").arg(self.keys.cancel(task))).await;
        forgotten.map(drop).map_err(self.cannot("forget a cancel request"))
    }
}

impl Client {
    /// A cancel is kept before it is told, so that whoever missed the word finds it.
    async fn send(&self, command: &Command) -> Result<(), LinkError> {
        let text = serde_json::to_vec(command).expect("invariant: a command has text keys");
        if let Command::Cancel { task, reason } = command {
            let mut keep = redis::cmd("SET");
            keep.arg(self.keys.cancel(task)).arg(reason).arg("EX").arg(CANCEL_AGE_SECONDS);
            self.link.send(&keep).await?;
        }
        self.link.send(redis::cmd("PUBLISH").arg(self.keys.commands()).arg(text)).await.map(drop)
    }
}
