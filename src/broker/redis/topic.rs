//! Publishing events, and commands.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
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

/// How long a cancel is told to others; it counts for longer.
const LISTED_SECONDS: i64 = 7 * 86_400;
/// Cancels that are told to others at most.
const LISTED: i64 = 50_000;

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

    async fn cancels(&self) -> Result<Vec<TaskId>, BrokerError> {
        self.canceled().await.map_err(self.cannot("list its cancel requests"))
    }

    async fn forget_cancel(&self, task: &TaskId) -> Result<(), BrokerError> {
        let mut both = redis::pipe();
        both.cmd("DEL").arg(self.keys.cancel(task)).cmd("ZREM").arg(self.keys.cancels()).arg(task.as_str());
        let forgotten = self.link.send_all(&both, 2).await;
        forgotten.map(drop).map_err(self.cannot("forget a cancel request"))
    }
}

impl Client {
    /// The tasks that were asked to be canceled of late, the oldest first.
    async fn canceled(&self) -> Result<Vec<TaskId>, LinkError> {
        let mut newest = redis::cmd("ZRANGE");
        newest.arg(self.keys.cancels()).arg(-LISTED).arg(-1);
        let named = value::list(self.link.send(&newest).await?)?.into_iter().map(value::text);
        let named = named.collect::<Result<Vec<_>, _>>()?;
        Ok(named.into_iter().filter_map(|task| TaskId::new(task).ok()).collect())
    }

    /// A cancel is kept before it is told, so that whoever missed the word finds it.
    async fn send(&self, command: &Command) -> Result<(), LinkError> {
        let text = serde_json::to_vec(command).expect("invariant: a command has text keys");
        if let Command::Cancel { task, reason } = command {
            let (list, now) = (self.keys.cancels(), Timestamp::now().as_second());
            let mut keep = redis::pipe();
            keep.cmd("SET").arg(self.keys.cancel(task)).arg(reason).arg("EX").arg(CANCEL_AGE_SECONDS);
            keep.cmd("ZADD").arg(&list).arg(now).arg(task.as_str());
            keep.cmd("ZREMRANGEBYSCORE").arg(&list).arg("-inf").arg(now - LISTED_SECONDS);
            self.link.send_all(&keep, 3).await?;
        }
        self.link.send(redis::cmd("PUBLISH").arg(self.keys.commands()).arg(text)).await.map(drop)
    }
}
