//! The leases of deliveries: unacknowledged at first, then in custody, at last settled.
//!
//! One watcher for each client lets leases lapse that nobody extended, and moves those into custody that stay long.
//! While the connection is away a lease is adrift: its message comes again and is bound to what already runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::custody::Renewed;
use super::wire::{Original, RENEWAL};
use super::{Client, lock};
use crate::broker::{BrokerError, Extended, Extender, Renewal, Settled, Settlement, Settler};
use crate::task::QueueName;

/// Leases by a number of our own.
#[derive(Default)]
pub(super) struct Holds {
    all: Mutex<HashMap<u64, Arc<Held>>>,
    /// How many leases of each message there are.
    names: Mutex<HashMap<String, usize>>,
    next: AtomicU64,
    wake: Arc<Notify>,
    looks_at: Mutex<Option<Instant>>,
    /// Rung when a message left its channel for custody: the consumer has more prefetch than there is room now.
    pub(super) handed_off: Notify,
}

/// One lease.
pub(super) struct Held {
    key: u64,
    pub(super) identity: String,
    pub(super) queue: QueueName,
    original: Original,
    place: tokio::sync::Mutex<Place>,
    until: Mutex<Instant>,
    hands_off: Mutex<Instant>,
    in_custody: Mutex<Option<String>>,
}

/// Where the message is that a lease is for.
enum Place {
    /// Unacknowledged on a channel; the counter is its consumer's.
    Channel { channel: Channel, tag: u64, outstanding: Arc<AtomicUsize> },
    /// Its copy stands in a queue of its own.
    Custody { queue: String, renewal: i64 },
    /// The server has it again without our doing.
    Adrift,
    /// Settled or lapsed.
    Gone,
}

/// Between two tries of a handoff that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// A quorum queue counts what is given back; before its limit a copy goes instead.
const GIVEN_BACK: i64 = 3;

impl Holds {
    /// Begins a lease of a delivery on `channel`.
    pub(super) fn begin(
        &self,
        client: &Client,
        (queue, original, identity): (QueueName, Original, String),
        (channel, tag, outstanding): (Channel, u64, Arc<AtomicUsize>),
    ) -> (Arc<Held>, Instant) {
        let now = Instant::now();
        let until = now + client.options.lease;
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let held = Arc::new(Held {
            key,
            identity,
            queue,
            original,
            place: tokio::sync::Mutex::new(Place::Channel { channel, tag, outstanding }),
            until: Mutex::new(until),
            hands_off: Mutex::new(now + client.address.handoff_after),
            in_custody: Mutex::default(),
        });
        *lock(&self.names).entry(held.identity.clone()).or_default() += 1;
        lock(&self.all).insert(key, held.clone());
        self.due_at(held.due());
        (held, until)
    }

    /// Whether a lease of that message stands here. One whose connection broke, or whose custody is over, does not: its
    /// message comes again, and is no second one of its name.
    pub(super) async fn holds(&self, identity: &str) -> bool {
        // Most messages are new.
        if !lock(&self.names).contains_key(identity) {
            return false;
        }
        let same = |held: &&Arc<Held>| held.identity == identity;
        let same: Vec<Arc<Held>> = lock(&self.all).values().filter(same).cloned().collect();
        for held in same {
            if held.stands().await {
                return true;
            }
        }
        false
    }

    /// How many leases of `queue` are held here.
    pub(super) fn count(&self, queue: &QueueName) -> u64 {
        lock(&self.all).values().filter(|held| held.queue == *queue).count() as u64
    }

    /// The custody queues in use here.
    pub(super) fn custody(&self) -> Vec<String> {
        lock(&self.all).values().filter_map(|held| lock(&held.in_custody).clone()).collect()
    }

    fn due_at(&self, due: Instant) {
        if lock(&self.looks_at).is_none_or(|at| due < at) {
            self.wake.notify_one();
        }
    }

    fn forget(&self, held: &Held) {
        if lock(&self.all).remove(&held.key).is_none() {
            return;
        }
        let mut names = lock(&self.names);
        if let Some(count) = names.get_mut(&held.identity) {
            *count -= 1;
            if *count == 0 {
                names.remove(&held.identity);
            }
        }
    }
}

/// Watches the leases of `client` as long as it lives.
pub(super) fn watch(client: &Arc<Client>) {
    let client = Arc::downgrade(client);
    tokio::spawn(async move {
        while let Some(alive) = client.upgrade() {
            let all: Vec<Arc<Held>> = lock(&alive.holds.all).values().cloned().collect();
            let now = Instant::now();
            for held in all.iter().filter(|held| held.due() <= now) {
                let (alive, held) = (alive.clone(), held.clone());
                tokio::spawn(async move { held.look(&alive).await });
            }
            let next = all.iter().map(|held| held.due()).filter(|due| *due > now).min();
            // Those being looked at now are due again soon.
            let busy = all.iter().any(|held| held.due() <= now);
            let next = if busy { Some(now + Duration::from_millis(50)) } else { next };
            *lock(&alive.holds.looks_at) = next;
            drop(all);
            let wake = alive.holds.wake.clone();
            // Only while somebody else does, is the client kept alive.
            drop(alive);
            // Looks in any case once in a while whether the client lives.
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    });
}

impl Held {
    fn due(&self) -> Instant {
        (*lock(&self.until)).min(*lock(&self.hands_off))
    }

    async fn stands(&self) -> bool {
        match &*self.place.lock().await {
            Place::Channel { channel, .. } => channel.status().connected(),
            Place::Custody { .. } => *lock(&self.until) > Instant::now(),
            Place::Adrift | Place::Gone => false,
        }
    }

    fn never_again() -> Instant {
        Instant::now() + Duration::from_secs(365 * 86_400)
    }

    /// Lets the lease lapse, or moves its message into custody.
    async fn look(&self, client: &Client) {
        // Somebody at work on it looks himself.
        let Ok(mut place) = self.place.try_lock() else { return };
        if *lock(&self.until) <= Instant::now() {
            return self.lapse(client, &mut place).await;
        }
        if *lock(&self.hands_off) > Instant::now() {
            return;
        }
        *lock(&self.hands_off) = Instant::now() + AGAIN;
        if let Err(error) = self.hand_off(client, &mut place).await {
            tracing::warn!(queue = %self.queue, %error, "a message could not be taken into custody yet");
        }
    }

    /// The lease was not extended: its message goes back.
    async fn lapse(&self, client: &Client, place: &mut Place) {
        client.holds.forget(self);
        *lock(&self.hands_off) = Self::never_again();
        match std::mem::replace(place, Place::Gone) {
            Place::Channel { channel, tag, outstanding } => {
                self.give_back(client, &channel, tag).await;
                outstanding.fetch_sub(1, Ordering::Relaxed);
            }
            // The server lets the copy go back by itself.
            Place::Custody { .. } | Place::Adrift | Place::Gone => {}
        }
    }

    async fn hand_off(&self, client: &Client, place: &mut Place) -> Result<(), BrokerError> {
        let Place::Channel { channel, tag, outstanding } = place else {
            *lock(&self.hands_off) = Self::never_again();
            return Ok(());
        };
        if !channel.status().connected() {
            *place = Place::Adrift;
            return Ok(());
        }
        let queue = Client::custody_name(&self.queue, &self.identity);
        let until = Instant::now() + client.options.lease;
        client.take_custody(&queue, &self.queue, &self.copy(0)).await?;
        client.holds.handed_off.notify_waiters();
        let acked = channel.basic_ack(*tag, BasicAckOptions::default()).await;
        outstanding.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = acked {
            // Both are there now; the record tells the second from the first.
            tracing::debug!(%error, "the original was not acknowledged after its copy went into custody");
        }
        let mut ours = lock(&self.until);
        *ours = (*ours).min(until);
        *lock(&self.hands_off) = Self::never_again();
        *lock(&self.in_custody) = Some(queue.clone());
        *place = Place::Custody { queue, renewal: 0 };
        Ok(())
    }

    fn copy(&self, renewal: i64) -> Original {
        self.original.same(&self.identity, vec![(RENEWAL, AMQPValue::LongLongInt(renewal))])
    }

    /// Gives the message back where it was, uncounted.
    async fn give_back(&self, client: &Client, channel: &Channel, tag: u64) -> bool {
        if self.original.delivery_count() >= GIVEN_BACK {
            let copy = self.original.same(&self.identity, Vec::new());
            let sent = client.send_at(&self.queue, Timestamp::now(), &copy).await;
            return sent.is_ok() && channel.basic_ack(tag, BasicAckOptions::default()).await.is_ok();
        }
        channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await.is_ok()
    }

    async fn extend(&self, client: &Client, by: Duration) -> Result<Extended, BrokerError> {
        let mut place = self.place.lock().await;
        if *lock(&self.until) <= Instant::now() && !matches!(*place, Place::Gone) {
            self.lapse(client, &mut place).await;
        }
        let new_until = Instant::now() + by;
        match &mut *place {
            Place::Gone => Ok(Extended::Lost),
            Place::Channel { channel, .. } if channel.status().connected() => {
                *lock(&self.until) = new_until;
                client.holds.due_at(self.due());
                Ok(Extended::Until(new_until))
            }
            Place::Channel { .. } | Place::Adrift => {
                *place = Place::Adrift;
                *lock(&self.until) = new_until;
                Err(client.link.unavailable(
                    "the connection broke; the message comes again and is bound again".to_owned(),
                ))
            }
            Place::Custody { queue, renewal } => {
                let until = Instant::now() + by.min(client.options.lease);
                *renewal += 1;
                let copy = self.copy(*renewal);
                match client.renew_custody(queue, &self.queue, &copy, *renewal).await? {
                    Renewed::Yes => {
                        *lock(&self.until) = until;
                        Ok(Extended::Until(until))
                    }
                    Renewed::TooLate => {
                        client.drop_custody(queue).await?;
                        *place = Place::Adrift;
                        *lock(&self.until) = new_until;
                        Err(client.link.unavailable(
                            "the lease had lapsed; the message comes again and is bound again".to_owned(),
                        ))
                    }
                }
            }
        }
    }

    /// Ends the lease; `forward` names another queue to which the message goes as it came.
    async fn end(&self, client: &Client, end: &End) -> Settled {
        let mut place = self.place.lock().await;
        if *lock(&self.until) <= Instant::now() && !matches!(*place, Place::Gone) {
            self.lapse(client, &mut place).await;
        }
        if matches!(*place, Place::Gone) {
            return Settled::Lost;
        }
        let ended = self.move_on(client, &place, end).await;
        match ended {
            Ok(settled) => {
                client.holds.forget(self);
                if let Place::Channel { outstanding, .. } = &*place {
                    outstanding.fetch_sub(1, Ordering::Relaxed);
                }
                *place = Place::Gone;
                settled
            }
            Err(error) => {
                tracing::warn!(broker = %client.name, %error, "a message could not be settled; its lease will lapse");
                Settled::Unknown
            }
        }
    }

    async fn move_on(&self, client: &Client, place: &Place, end: &End) -> Result<Settled, BrokerError> {
        match place {
            Place::Channel { channel, tag, .. } if channel.status().connected() => {
                if matches!(end, End::As(Settlement::Release { after } | Settlement::Retry { after }) if after.is_zero())
                {
                    let given = self.give_back(client, channel, *tag).await;
                    return Ok(if given { Settled::Settled } else { Settled::Unknown });
                }
                self.copy_on(client, end).await?;
                let acked = channel.basic_ack(*tag, BasicAckOptions::default());
                client.link.within("settle a message", acked).await?;
                Ok(Settled::Settled)
            }
            Place::Custody { queue, .. } => {
                self.copy_on(client, end).await?;
                let held = client.drop_custody(queue).await?;
                Ok(if held { Settled::Settled } else { Settled::Lost })
            }
            Place::Channel { .. } | Place::Adrift => Ok(Settled::Unknown),
            Place::Gone => Ok(Settled::Lost),
        }
    }

    /// Publishes what `end` leaves behind, before the lease ends.
    async fn copy_on(&self, client: &Client, end: &End) -> Result<(), BrokerError> {
        let same = || self.original.same(&self.identity, Vec::new());
        match end {
            End::As(Settlement::Ack) => Ok(()),
            End::As(Settlement::Retry { after } | Settlement::Release { after }) => {
                client.send_at(&self.queue, Timestamp::now() + *after, &same()).await
            }
            End::As(Settlement::DeadLetter { reason }) => {
                client.park(&self.queue, &self.original, reason).await
            }
            End::Forward(queue) => {
                client.send_at(queue, Timestamp::now(), &self.original.copy(Vec::new())).await
            }
        }
    }
}

/// How a lease ends.
enum End {
    As(Settlement),
    Forward(QueueName),
}

/// One half of a lease; which one the trait says.
pub(super) struct Claim {
    pub(super) client: Arc<Client>,
    pub(super) held: Arc<Held>,
}

#[async_trait]
impl Extender for Claim {
    async fn extend(&self, by: Duration) -> Result<Extended, BrokerError> {
        self.held.extend(&self.client, by).await
    }
    /// In custody each time is a declaration, a copy and its older one taken.
    fn renewal(&self) -> Renewal {
        Renewal::Late
    }
}

#[async_trait]
impl Settler for Claim {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Settled {
        self.held.end(&self.client, &End::As(settlement)).await
    }
    fn forwards(&self) -> bool {
        true
    }
    async fn forward(self: Box<Self>, queue: &QueueName) -> Settled {
        self.held.end(&self.client, &End::Forward(queue.clone())).await
    }
}
