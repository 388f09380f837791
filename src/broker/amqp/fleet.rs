//! Who works here: presences on a shelf, and beside each a queue that lives as long as its worker's connection.
//!
//! # Decisions
//! - A presence is put on the shelf when it changed, not each time that it is said: an idle worker, and one whose tasks run on, send
//!   nothing. That it still holds is shown by its exclusive queue, which RabbitMQ removes with the connection; so a worker that died
//!   is known as gone at once when its deadline has passed.
//! - Whoever lives but says nothing any more loses that queue at the deadline of what he said last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::time::Instant;

use super::shelf::{Look, Shelf};
use super::wire::{Original, digest, short};
use super::{Client, lock};
use crate::broker::{BrokerError, Disk, Fleet, Presence};

/// After this a presence is put on the shelf again though it did not change.
const SAID_AGAIN: Duration = Duration::from_secs(1_800);

/// What workers said through this client, by their names.
#[derive(Default)]
pub(super) struct Said {
    all: Mutex<HashMap<String, Saying>>,
}

struct Saying {
    presence: Presence,
    shelved: Instant,
    until: Instant,
    /// The one that declared its queue.
    channel: Channel,
}

impl Client {
    /// Whether what the worker says stands on the shelf already; then it holds until the new deadline.
    fn is_said(&self, presence: &Presence) -> bool {
        let mut all = lock(&self.said.all);
        let Some(saying) = all.get_mut(&presence.worker) else { return false };
        let holds = saying.channel.status().connected()
            && saying.shelved.elapsed() < SAID_AGAIN
            && is_same(&saying.presence, presence);
        if holds {
            saying.until = until(presence);
        }
        holds
    }

    /// Declares the queue that shows that the worker lives.
    async fn show_life(&self, presence: &Presence) -> Result<Channel, BrokerError> {
        let channel = self.link.channel().await?;
        let own = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(short(&alive(presence)), own, FieldTable::default());
        self.link.within("declare a queue", declared).await?;
        Ok(channel)
    }

    /// Forgets what the worker said last, when nothing newer was said until its deadline.
    fn watch_deadline(&self, worker: String) {
        let client = self.itself.clone();
        tokio::spawn(async move {
            loop {
                let Some(until) = said_until(&client, &worker) else { return };
                tokio::time::sleep_until(until).await;
                let Some(alive) = client.upgrade() else { return };
                let lapsed = {
                    let mut all = lock(&alive.said.all);
                    let is_over = all.get(&worker).is_some_and(|saying| saying.until <= Instant::now());
                    if is_over { all.remove(&worker) } else { None }
                };
                if let Some(saying) = lapsed {
                    saying.end().await;
                    return;
                }
            }
        });
    }

    /// Removes what the worker said before, and what stopped being true.
    async fn forget_worker(&self, worker: &str, but: Option<&Presence>) -> Result<(), BrokerError> {
        let mut doubted = Vec::new();
        self.browse(Shelf::Fleet, |original| match presence(&original) {
            Some(found) if Some(&found) == but => Look::Keep,
            Some(found) if found.worker == worker => Look::Remove,
            Some(found) => {
                if found.deadline <= Timestamp::now() {
                    doubted.push(found);
                }
                Look::Keep
            }
            None => Look::Remove,
        })
        .await?;
        let mut gone = HashSet::new();
        for presence in &doubted {
            if !self.link.is_there(&alive(presence)).await? {
                gone.insert(alive(presence));
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.browse(Shelf::Fleet, |original| match presence(&original) {
            Some(found) if gone.contains(&alive(&found)) => Look::Remove,
            Some(_) | None => Look::Keep,
        })
        .await
    }
}

impl Saying {
    async fn end(self) {
        let named = short(&alive(&self.presence));
        // When the connection broke, it is gone already.
        let _ = self.channel.queue_delete(named, QueueDeleteOptions::default()).await;
        super::link::close(self.channel).await;
    }
}

fn said_until(client: &Weak<Client>, worker: &str) -> Option<Instant> {
    let client = client.upgrade()?;
    let all = lock(&client.said.all);
    all.get(worker).map(|saying| saying.until)
}

fn until(presence: &Presence) -> Instant {
    let left = presence.deadline.duration_since(Timestamp::now());
    Instant::now() + Duration::try_from(left).unwrap_or_default()
}

/// The queue that is there while the worker lives.
fn alive(presence: &Presence) -> String {
    format!("longshore.alive.{}", digest(format!("{}\n{}", presence.worker, presence.incarnation).as_bytes()))
}

/// Whether two presences say the same but for when, and for a few bytes of room on a disk.
fn is_same(one: &Presence, other: &Presence) -> bool {
    let calm = |presence: &Presence| Presence {
        seen: Timestamp::UNIX_EPOCH,
        deadline: Timestamp::UNIX_EPOCH,
        disks: Vec::new(),
        ..presence.clone()
    };
    let near = |one: &Disk, other: &Disk| {
        one.path == other.path && one.total == other.total && one.free.abs_diff(other.free) <= one.total / 16
    };
    calm(one) == calm(other)
        && one.disks.len() == other.disks.len()
        && one.disks.iter().zip(&other.disks).all(|(one, other)| near(one, other))
}

fn presence(original: &Original) -> Option<Presence> {
    serde_json::from_slice(&original.body).ok()
}

#[async_trait]
impl Fleet for Client {
    async fn announce(&self, presence: &Presence) -> Result<(), BrokerError> {
        if self.is_said(presence) {
            return Ok(());
        }
        // Its queue first: what stands on the shelf must be true.
        let before = lock(&self.said.all).remove(&presence.worker);
        let is_watched = before.is_some();
        let channel = match before {
            Some(saying)
                if saying.channel.status().connected() && alive(&saying.presence) == alive(presence) =>
            {
                saying.channel
            }
            Some(_) | None => self.show_life(presence).await?,
        };
        let saying =
            Saying { presence: presence.clone(), shelved: Instant::now(), until: until(presence), channel };
        lock(&self.said.all).insert(presence.worker.clone(), saying);
        if !is_watched {
            self.watch_deadline(presence.worker.clone());
        }
        let body = serde_json::to_vec(presence).expect("invariant: a presence is plain data");
        let message =
            Original { properties: BasicProperties::default().with_delivery_mode(1), body: body.into() };
        let shelved = async {
            self.shelve(Shelf::Fleet, &message).await?;
            self.forget_worker(&presence.worker, Some(presence)).await
        };
        let shelved = shelved.await;
        if shelved.is_err()
            && let Some(saying) = lock(&self.said.all).get_mut(&presence.worker)
        {
            // Said again next time.
            saying.presence.phase.clear();
        }
        shelved
    }

    async fn leave(&self, worker: &str) -> Result<(), BrokerError> {
        let said = lock(&self.said.all).remove(worker);
        if let Some(saying) = said {
            saying.end().await;
        }
        self.forget_worker(worker, None).await
    }

    async fn workers(&self) -> Result<Vec<Presence>, BrokerError> {
        let mut newest: BTreeMap<String, Presence> = BTreeMap::new();
        self.browse(Shelf::Fleet, |original| {
            if let Some(found) = presence(&original)
                && newest.get(&found.worker).is_none_or(|known| known.seen <= found.seen)
            {
                newest.insert(found.worker.clone(), found);
            }
            Look::Keep
        })
        .await?;
        let mut workers = Vec::with_capacity(newest.len());
        for presence in newest.into_values() {
            let now = Timestamp::now();
            if presence.deadline > now {
                workers.push(presence);
            } else if self.link.is_there(&alive(&presence)).await? {
                // It holds now as it did when it was said.
                let deadline = now + presence.deadline.duration_since(presence.seen);
                workers.push(Presence { seen: now, deadline, ..presence });
            }
        }
        Ok(workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Pool;

    #[test]
    fn what_changed_is_said_and_a_little_less_room_is_no_change() {
        let disk = |free| vec![Disk { path: "/work".to_owned(), total: 1_600, free }];
        let one = Presence {
            worker: "w".to_owned(),
            incarnation: "1".to_owned(),
            host: String::new(),
            version: String::new(),
            kinds: Vec::new(),
            envelope: 1,
            queues: Vec::new(),
            lanes: 1,
            busy: 0,
            pool: Pool::default(),
            disks: disk(900),
            phase: "running".to_owned(),
            seen: Timestamp::UNIX_EPOCH,
            deadline: Timestamp::UNIX_EPOCH,
        };
        let later =
            Presence { seen: Timestamp::now(), deadline: Timestamp::now(), disks: disk(850), ..one.clone() };
        assert!(is_same(&one, &later));
        for changed in [
            Presence { busy: 1, ..one.clone() },
            Presence { phase: "draining".to_owned(), ..one.clone() },
            Presence { disks: disk(700), ..one.clone() },
            Presence { disks: Vec::new(), ..one.clone() },
        ] {
            assert!(!is_same(&one, &changed));
        }
    }
}
