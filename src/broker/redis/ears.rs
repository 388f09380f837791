//! What a client hears on channels: the bell of queues, and commands.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::source::LONGEST_BLOCK;
use crate::redis::Push;

/// Commands that a slow listener may be behind.
const BEHIND: usize = 1_000;

/// Spreads what is heard. Cheap to clone.
#[derive(Clone)]
pub(in crate::broker) struct Ears {
    bell: Arc<watch::Sender<u64>>,
    commands: broadcast::Sender<Heard>,
}

/// What came on the channel of commands.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// A command as it was sent.
    Command(Vec<u8>),
    /// The connection broke: some may have been missed.
    Broken,
}

impl Default for Ears {
    fn default() -> Self {
        Self { bell: Arc::new(watch::Sender::new(0)), commands: broadcast::Sender::new(BEHIND) }
    }
}

impl Ears {
    /// Passes on what a connection said.
    pub(super) fn hear(&self, push: Push, bell: &str, commands: &str) {
        match push {
            Push::Message { channel, payload } if channel == bell => {
                if is_soon(&payload) {
                    self.ring();
                }
            }
            Push::Message { channel, payload } if channel == commands => {
                // Nobody may be listening.
                let _ = self.commands.send(Heard::Command(payload));
            }
            Push::Message { .. } => {}
            Push::Disconnected => {
                self.ring();
                let _ = self.commands.send(Heard::Broken);
            }
        }
    }

    /// Changes when a fetcher should look again.
    pub(in crate::broker) fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// Commands from now on.
    pub(super) fn commands(&self) -> broadcast::Receiver<Heard> {
        self.commands.subscribe()
    }

    fn ring(&self) {
        self.bell.send_modify(|rings| *rings = rings.wrapping_add(1));
    }
}

/// Whether something is due before every fetcher looks by itself.
fn is_soon(payload: &[u8]) -> bool {
    let millis = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u128>().ok());
    millis.is_none_or(|millis| millis <= LONGEST_BLOCK.as_millis())
}
