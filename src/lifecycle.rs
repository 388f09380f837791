//! How a worker lives and ends: running, draining, stopping, killed; only ever forward, but for a pause in between.

use std::sync::Arc;

use tokio::sync::watch;

/// Where in its life a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifePhase {
    /// Takes work and does it.
    Running,
    /// Takes none until it is resumed; finishes what it has.
    Paused,
    /// Takes none; finishes what runs, gives back what does not run yet, and ends.
    Draining,
    /// What runs is interrupted and given back.
    Stopping,
    /// Ends at once.
    Killed,
}

impl LifePhase {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Killed => "killed",
        }
    }
}

/// A worker's life. Clones watch and steer the same one.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Arc<watch::Sender<LifePhase>>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(LifePhase::Running)) }
    }
}

impl Lifecycle {
    /// A running one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where it is.
    pub fn phase(&self) -> LifePhase {
        *self.phase.borrow()
    }

    /// Goes forward to `phase`; never back.
    pub fn advance(&self, phase: LifePhase) {
        self.phase.send_if_modified(|current| {
            let forward = phase > *current;
            *current = (*current).max(phase);
            forward
        });
    }

    /// Ends a pause. `false`: it is not paused.
    pub fn resume(&self) -> bool {
        self.phase.send_if_modified(|current| {
            let paused = *current == LifePhase::Paused;
            if paused {
                *current = LifePhase::Running;
            }
            paused
        })
    }

    /// Waits until it is at `phase` or beyond. Cancel-safe.
    pub async fn reached(&self, phase: LifePhase) {
        let mut watch = self.phase.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let _ = watch.wait_for(|current| *current >= phase).await;
    }

    /// Waits until it is running (again). Cancel-safe.
    pub async fn running(&self) {
        let mut watch = self.phase.subscribe();
        let _ = watch.wait_for(|current| *current == LifePhase::Running).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_goes_forward_but_a_pause_can_end() {
        let life = Lifecycle::new();
        life.advance(LifePhase::Paused);
        assert!(life.resume());
        assert_eq!(life.phase(), LifePhase::Running);
        life.advance(LifePhase::Stopping);
        life.advance(LifePhase::Draining);
        assert_eq!(life.phase(), LifePhase::Stopping);
        assert!(!life.resume());
    }
}
