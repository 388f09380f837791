//! Messages that a consumer will never hand out: it takes them for settled, and they are still there.
//!
//! A server that was killed may come back with a consumer that is ahead of its stream (seen on 2.9: what was acknowledged
//! last is in the stream again), or that forgot what it had handed out. Such messages are published anew, and then removed
//! from where they lie. When their task has ended, its record says so, and they are acknowledged at once.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Client;
use super::message::{self, Letter, Moved};
use super::names::{Names, Wait};
use crate::nats::stream::{self, remove};
use crate::nats::{Breaks, LinkError, Stored};

/// After a connection broke: until then the server has found its consumers again.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// Before the next look after a failure, and while it is not clear yet which messages are stranded.
const AGAIN: Duration = Duration::from_secs(3);
/// Between two looks in which nothing broke here: another may have been connected elsewhere.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing is stranded any more.
    Clear,
    /// More lies there than the consumers account for, and who holds what is not known of all.
    Unclear,
}

/// Looks as long as `stop` is not cancelled.
pub(super) fn begin(client: &Arc<Client>, stop: CancellationToken) {
    let rescuer = Rescuer { client: Arc::downgrade(client), breaks: client.link.breaks() };
    // Ends with the client.
    tokio::spawn(async move {
        tokio::select! {
            () = rescuer.run() => {}
            () = stop.cancelled() => {}
        }
    });
}

struct Rescuer {
    client: Weak<Client>,
    breaks: Breaks,
}

impl Rescuer {
    async fn run(mut self) {
        loop {
            loop {
                let Some(client) = self.client.upgrade() else { return };
                match client.rescue().await {
                    Ok(Look::Clear) => break,
                    Ok(Look::Unclear) => {}
                    Err(error) => {
                        tracing::debug!(%error, "whether messages are stranded is looked for again in a moment");
                    }
                }
                drop(client);
                tokio::time::sleep(AGAIN).await;
            }
            tokio::select! {
                _ = self.breaks.changed() => tokio::time::sleep(SETTLES_WITHIN).await,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.breaks.mark_unchanged();
        }
    }
}

impl Client {
    async fn rescue(&self) -> Result<Look, LinkError> {
        self.rescue_later().await?;
        let consumers = self.consumers().await?;
        let work = stream::state(&self.link, &self.names.work_stream(), Some(">")).await?;
        let mut suspicious = Vec::new();
        for (subject, count) in work.subjects {
            let Some((Wait::Turn, queue, class)) = self.names.read_place(&subject) else { continue };
            let Some(reached) = consumers.get(&(queue, class)) else { continue };
            if count > reached.leased + reached.pending {
                suspicious.push((subject, reached.delivered));
            }
        }
        if suspicious.is_empty() {
            return Ok(Look::Clear);
        }
        let leased = consumers.values().map(|reached| reached.leased).sum();
        let held: HashSet<u64> = self.roll_call(leased).await?.into_keys().collect();
        // What a worker that died held comes again by itself; until then it is not known which messages these are.
        if (held.len() as u64) < leased {
            return Ok(Look::Unclear);
        }
        for (subject, delivered) in suspicious {
            self.publish_anew_of(&subject, delivered, &held).await?;
        }
        Ok(Look::Clear)
    }

    /// What waits for its time is held by nobody: what its consumer has done with should not be there.
    async fn rescue_later(&self) -> Result<(), LinkError> {
        let request = format!("CONSUMER.INFO.{}.{}", self.names.work_stream(), Names::later_consumer());
        let info = self.link.ask(&request, &json!({})).await?;
        let number = |path: &str| info.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        let done = match number("/num_ack_pending") {
            0 => number("/delivered/stream_seq"),
            _ => number("/ack_floor/stream_seq"),
        };
        self.publish_anew_of(&self.names.places(Wait::Time), done, &HashSet::new()).await
    }

    /// Publishes anew what lies under `subjects` up to the place `done`, but for what is `held`.
    async fn publish_anew_of(&self, subjects: &str, done: u64, held: &HashSet<u64>) -> Result<(), LinkError> {
        let (mut next, mut count) = (1, 0);
        while let Some(stored) = self.link.next_of(&self.names.work_stream(), subjects, next).await? {
            if stored.sequence > done {
                break;
            }
            next = stored.sequence + 1;
            if !held.contains(&stored.sequence) {
                self.publish_anew(stored).await?;
                count += 1;
            }
        }
        if count > 0 {
            tracing::warn!(
                subjects,
                count,
                "the server came back with messages that it would not hand out: they are queued anew"
            );
        }
        Ok(())
    }

    async fn publish_anew(&self, stored: Stored) -> Result<(), LinkError> {
        let Some((_, queue, _)) = self.names.read_place(&stored.subject) else { return Ok(()) };
        let letter = Letter::read(&stored.headers);
        let own = format!("{queue}/{}", stored.sequence);
        let moved = Moved {
            id: format!("stranded.{}", stored.sequence),
            message: letter.message.as_deref().unwrap_or(&own),
            submitted: letter.submitted.unwrap_or(stored.time),
            again: true,
        };
        let mut headers = message::moved(&stored.headers, &moved);
        if let Some(due) = letter.due {
            message::set_due(&mut headers, due);
        }
        self.link.publish(stored.subject.clone(), headers, stored.body).await?;
        remove(&self.link, &self.names.work_stream(), stored.sequence).await.map(drop)
    }
}
