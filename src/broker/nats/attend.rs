//! What a worker's client hears beside its work: queues that are paused and resumed, tasks that are to be canceled, and the
//! question what it holds.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cancels::Cancels;
use super::names::{Names, bucket_stream, key_subject};
use super::{Client, Holding, Paused};
use crate::broker::Intake;
use crate::nats::{Breaks, From, Link, LinkError, Scan, name_of};
use crate::task::QueueName;

/// A message that a worker holds, as it tells whoever asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Holds {
    /// Its place in the stream.
    pub(super) sequence: u64,
    /// Until when.
    pub(super) until: Timestamp,
    /// Who holds it.
    pub(super) worker: String,
}

/// How long after a reading that failed the next one begins.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens as long as `stop` is not cancelled; returns when it hears.
pub(super) async fn begin(client: &Arc<Client>, stop: CancellationToken) -> Result<(), LinkError> {
    let link = client.link.clone();
    let bucket = client.names.control_bucket();
    let heard = Heard {
        pauses: link.subscribe(key_subject(&bucket, &Names::pause_key_pattern())).await?,
        cancels: link.subscribe(key_subject(&bucket, &Names::cancel_key_pattern())).await?,
        questions: link.subscribe(client.names.roll_call()).await?,
    };
    let breaks = link.breaks();
    link.settled().await?;
    let attendant = Arc::new(Attendant {
        bucket,
        worker: client.options.worker.clone(),
        paused: Arc::clone(&client.paused),
        cancels: Arc::clone(&client.cancels),
        held: Arc::clone(&client.held),
        link,
    });
    attendant.read_pauses().await?;
    if let Err(error) = attendant.read_cancels().await {
        tracing::debug!(%error, "until they can be read, each task's cancel request is asked for");
        client.cancels.full.notify_one();
    }
    // Both end with the client. Reading is no part of listening: it takes long from a server that has just come back, and
    // whoever asks meanwhile what is held must have an answer, or what runs is queued anew.
    tokio::spawn(Arc::clone(&attendant).read_again(breaks, stop.clone()));
    tokio::spawn(attendant.listen(heard, stop));
    Ok(())
}

/// What is listened to.
struct Heard {
    pauses: Subscriber,
    cancels: Subscriber,
    questions: Subscriber,
}

struct Attendant {
    link: Link,
    bucket: String,
    worker: String,
    paused: Arc<Paused>,
    cancels: Arc<Cancels>,
    held: Holding,
}

impl Attendant {
    async fn listen(self: Arc<Self>, mut heard: Heard, stop: CancellationToken) {
        loop {
            tokio::select! {
                told = heard.pauses.next() => match told {
                    Some(told) => self.hear_pause(&told),
                    None => return,
                },
                told = heard.cancels.next() => match told {
                    Some(told) => self.cancels.hear(&told, &self.bucket),
                    None => return,
                },
                asked = heard.questions.next() => match asked {
                    Some(asked) => self.answer(asked).await,
                    None => return,
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads what is kept after every break, in which something may have been missed.
    async fn read_again(self: Arc<Self>, mut breaks: Breaks, stop: CancellationToken) {
        loop {
            tokio::select! {
                broken = breaks.changed() => match broken {
                    Ok(()) => {}
                    Err(_) => return,
                },
                () = self.cancels.full.notified() => {}
                () = stop.cancelled() => return,
            }
            while let Err(error) = self.read_all().await {
                tracing::debug!(%error, "pauses and cancel requests are read again once the server is back");
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }

    async fn read_all(&self) -> Result<(), LinkError> {
        self.read_pauses().await?;
        self.read_cancels().await
    }

    async fn read_pauses(&self) -> Result<(), LinkError> {
        self.paused.replace(paused_queues(&self.link, &self.bucket).await?);
        Ok(())
    }

    async fn read_cancels(&self) -> Result<(), LinkError> {
        self.cancels.read(&self.link, &self.bucket).await
    }

    fn hear_pause(&self, told: &Message) {
        let key = told.subject.strip_prefix("$KV.").and_then(|rest| rest.strip_prefix(self.bucket.as_str()));
        if let Some(queue) = key.and_then(|key| queue_of(key.trim_start_matches('.'))) {
            let removed = told.headers.as_ref().is_some_and(|headers| headers.get("KV-Operation").is_some());
            self.paused.set(&queue, if removed { Intake::Open } else { Intake::Paused });
        }
    }

    async fn answer(&self, asked: Message) {
        let Some(reply) = asked.reply else { return };
        let now = (Instant::now(), Timestamp::now());
        let holds: Vec<Holds> = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.retain(|_, held| held.upgrade().is_some_and(|held| held.until().is_some()));
            let live = held.values().filter_map(std::sync::Weak::upgrade);
            let told = live.filter_map(|held| {
                let left = held.until()?.saturating_duration_since(now.0);
                let until = now.1.checked_add(left).unwrap_or(now.1);
                Some(Holds { sequence: held.info.sequence, until, worker: self.worker.clone() })
            });
            told.collect()
        };
        if let Ok(answer) = serde_json::to_vec(&holds) {
            let _ = self.link.send(reply.to_string(), answer.into()).await;
        }
    }
}

/// The queues that are paused by the bucket.
pub(super) async fn paused_queues(link: &Link, bucket: &str) -> Result<HashSet<QueueName>, LinkError> {
    let filter = key_subject(bucket, &Names::pause_key_pattern());
    let kept = Scan::headers(link, &bucket_stream(bucket), &filter, From::Oldest).await?.rest().await?;
    let kept = kept.into_iter().filter(|stored| stored.header("KV-Operation").is_none());
    let prefix = format!("$KV.{bucket}.");
    Ok(kept.filter_map(|stored| queue_of(stored.subject.strip_prefix(&prefix)?)).collect())
}

fn queue_of(key: &str) -> Option<QueueName> {
    QueueName::new(name_of(key.strip_prefix("pause.")?)?).ok()
}
