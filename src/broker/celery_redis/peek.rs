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

/// What readers ring when something stands in a list. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Gong {
    strokes: Arc<watch::Sender<u64>>,
}

impl Gong {
    /// Changes with each stroke.
    pub(super) fn heard(&self) -> watch::Receiver<u64> {
        self.strokes.subscribe()
    }

    pub(super) fn strike(&self) {
        self.strokes.send_modify(|strokes| *strokes = strokes.wrapping_add(1));
    }
}

/// The readers of one queue. They end with it.
pub(super) struct Peek {
    armed: watch::Sender<u64>,
    _readers: JoinSet<()>,
}

impl Peek {
    /// Readers of the `lists` of a queue. They rest until they are armed.
    pub(super) fn start(place: &Place, patience: Duration, lists: &[String; 4], gong: &Gong) -> Self {
        let (armed, mut readers) = (watch::Sender::new(0), JoinSet::new());
        for list in lists {
            let reader =
                Reader { place: place.clone(), patience, list: list.clone(), blocking: None, failing: false };
            readers.spawn(reader.run(armed.subscribe(), gong.clone()));
        }
        Self { armed, _readers: readers }
    }

    /// Waits until something stands there, and strikes once.
    pub(super) fn arm(&self) {
        self.armed.send_modify(|times| *times = times.wrapping_add(1));
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
    async fn run(mut self, mut armed: watch::Receiver<u64>, gong: Gong) {
        while armed.changed().await.is_ok() {
            while !self.is_there().await {}
            gong.strike();
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
