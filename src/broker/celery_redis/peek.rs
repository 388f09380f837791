//! Waits at the server until something stands in a list, without taking it.
//!
//! # Decisions
//! - Redis has no blocking pop that also notes who took the message, and a worker that is killed between the two steps would lose
//!   it. So nobody blocks on a pop: `BLMOVE list list RIGHT RIGHT` takes a list's next message and puts it back to the same
//!   place in one step, which changes nothing and wakes the next waiter, too. Whoever is woken looks by a script; of several the
//!   first one gets the message, the others wait on.
//! - Such a command knows one list only: each of a queue's four lists has a connection of its own, opened when it is first waited
//!   for. A reader that was woken rests until it is armed again, so that what stands there while nobody has room costs nothing.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::redis::{Blocking, LinkError, Place};

/// How long one wait lasts at the server.
const BLOCK: Duration = Duration::from_secs(30);
/// Beyond the end of a wait before its connection counts as broken.
const SLACK: Duration = Duration::from_secs(5);
/// Before a wait that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The readers of some queues. They end with it.
pub(super) struct Peeks {
    rung: Arc<watch::Sender<u64>>,
    armed: Vec<watch::Sender<u64>>,
    _readers: JoinSet<()>,
}

impl Peeks {
    /// Readers of `queues`, each given by its lists. They rest until they are armed.
    pub(super) fn start(place: &Place, patience: Duration, queues: &[[String; 4]]) -> Self {
        let rung = Arc::new(watch::Sender::new(0));
        let mut readers = JoinSet::new();
        let armed = queues.iter().map(|lists| {
            let armed = watch::Sender::new(0);
            for list in lists {
                let reader = Reader {
                    place: place.clone(),
                    patience,
                    list: list.clone(),
                    blocking: None,
                    failing: false,
                };
                readers.spawn(reader.run(armed.subscribe(), rung.clone()));
            }
            armed
        });
        let armed = armed.collect();
        Self { rung, armed, _readers: readers }
    }

    /// Changes when something stands in a list of a queue that was armed.
    pub(super) fn rung(&self) -> watch::Receiver<u64> {
        self.rung.subscribe()
    }

    /// Waits for the queue of that number, until it rings once.
    pub(super) fn arm(&self, queue: usize) {
        if let Some(armed) = self.armed.get(queue) {
            armed.send_modify(|times| *times = times.wrapping_add(1));
        }
    }
}

/// Waits for one list.
struct Reader {
    place: Place,
    patience: Duration,
    list: String,
    blocking: Option<Blocking>,
    failing: bool,
}

impl Reader {
    async fn run(mut self, mut armed: watch::Receiver<u64>, rung: Arc<watch::Sender<u64>>) {
        while armed.changed().await.is_ok() {
            while !self.is_there().await {}
            rung.send_modify(|times| *times = times.wrapping_add(1));
        }
    }

    /// Whether something came. Also when it cannot be waited for: then the lists are looked at once in a while.
    async fn is_there(&mut self) -> bool {
        match self.wait().await {
            Ok(found) => {
                self.failing = false;
                found
            }
            Err(error) => {
                self.blocking = None;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(broker = self.place.name, %error, "a queue cannot be waited for: it is looked at every second");
                }
                tokio::time::sleep(AGAIN).await;
                true
            }
        }
    }

    async fn wait(&mut self) -> Result<bool, LinkError> {
        let blocking = match &mut self.blocking {
            Some(blocking) => blocking,
            none => none.insert(Blocking::open(&self.place, self.patience, BLOCK + SLACK).await?),
        };
        let mut peek = redis::cmd("BLMOVE");
        peek.arg(&self.list).arg(&self.list).arg("RIGHT").arg("RIGHT").arg(BLOCK.as_secs());
        let found = blocking.connection.send_packed_command(&peek).await?.extract_error()?;
        Ok(found != Value::Nil)
    }
}
