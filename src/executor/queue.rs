//! The mutex around the scheduler, and who is told when a turn comes.
//!
//! A staged attempt waits in [`Queue::turn`]; whoever changes the schedule hands out the turns that became possible. So no
//! lane polls, and a lane without work costs nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::resources::Grant;
use super::schedule::{Schedule, Start};
use crate::broker::Pool;
use crate::cancel::CancelScope;
use crate::crew::Crew;
use crate::handler::{Demand, Slot};
use crate::task::Priority;

/// The staged attempts of all lanes. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    schedule: Arc<Mutex<Schedule<oneshot::Sender<Turn>>>>,
    crew: Crew,
}

/// A lane and what its attempt holds of the pool; both come free when it is dropped.
pub struct Turn {
    lane: usize,
    grant: Option<Grant>,
    queue: Queue,
}

impl Queue {
    /// Empty queues for `lanes` over `pool`.
    pub fn new(lanes: usize, pool: &Pool, starvation_after: Duration, crew: Crew) -> Self {
        Self { schedule: Arc::new(Mutex::new(Schedule::new(lanes, pool, starvation_after))), crew }
    }

    /// Waits for a lane and for what `demand` takes of the pool. `None`: `scope` ended first.
    pub async fn turn(&self, priority: Priority, demand: Demand, scope: &CancelScope) -> Option<Turn> {
        let (sender, mut receiver) = oneshot::channel();
        let sequence = {
            let mut schedule = self.lock();
            let (_, sequence) = schedule.enqueue(sender, priority, demand, Instant::now());
            self.hand_out(&mut schedule);
            sequence
        };
        self.look_again_when_starving();
        tokio::select! {
            biased;
            turn = &mut receiver => turn.ok(),
            _ = scope.canceled() => {
                // When it is not queued any more its turn was handed out, and dropping the receiver gives it back.
                let _ = self.lock().remove(sequence);
                None
            }
        }
    }

    /// How many run, how many wait, and how many were taken from siblings.
    pub fn load(&self) -> (usize, usize, u64) {
        let schedule = self.lock();
        (schedule.busy(), schedule.queued(), schedule.steals())
    }

    /// Starts whatever can start on lanes that are idle.
    fn hand_out(&self, schedule: &mut Schedule<oneshot::Sender<Turn>>) {
        let now = Instant::now();
        let idle: Vec<usize> = schedule.idle_lanes().collect();
        for lane in idle {
            if schedule.queued() == 0 {
                break;
            }
            while let Some(Start { item, grant }) = schedule.next(lane, now) {
                if item.is_closed() {
                    // It was canceled between its turn and now: the lane is still free.
                    schedule.finish(lane, grant);
                    continue;
                }
                if let Err(turn) = item.send(Turn { lane, grant: Some(grant), queue: self.clone() }) {
                    // Canceled this very moment. Taken apart by hand: dropping it here would lock twice.
                    let mut turn = turn;
                    if let Some(grant) = turn.grant.take() {
                        schedule.finish(lane, grant);
                    }
                    continue;
                }
                break;
            }
        }
    }

    /// A reservation begins with the passing of time alone; the lanes must look again then.
    fn look_again_when_starving(&self) {
        let Some(due) = self.lock().reservation_due() else { return };
        if due <= Instant::now() {
            return;
        }
        let this = self.clone();
        self.crew.spawn("reservation", async move {
            tokio::time::sleep_until(due).await;
            let mut schedule = this.lock();
            this.hand_out(&mut schedule);
        });
    }

    fn lock(&self) -> MutexGuard<'_, Schedule<oneshot::Sender<Turn>>> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The lane and the devices.
    pub fn slot(&self) -> Slot {
        Slot {
            lane: self.lane,
            gpus: self.grant.as_ref().map(|grant| grant.gpus.clone()).unwrap_or_default(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            let queue = self.queue.clone();
            let mut schedule = queue.lock();
            schedule.finish(self.lane, grant);
            queue.hand_out(&mut schedule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelReason;

    fn queue(lanes: usize) -> Queue {
        let pool = Pool { gpus: vec!["0".to_owned()], ..Pool::default() };
        Queue::new(lanes, &pool, Duration::from_secs(30), Crew::new())
    }

    #[tokio::test]
    async fn a_canceled_attempt_gives_its_turn_to_the_next() {
        let queue = queue(1);
        let scope = CancelScope::new();
        let first = queue.turn(Priority::default(), Demand::default(), &scope).await.unwrap();
        let canceled = CancelScope::new();
        let (q, s) = (queue.clone(), canceled.clone());
        let second =
            tokio::spawn(async move { q.turn(Priority::default(), Demand::default(), &s).await.is_some() });
        let q = queue.clone();
        let third = tokio::spawn(async move {
            q.turn(Priority::default(), Demand::default(), &CancelScope::new()).await.is_some()
        });
        tokio::task::yield_now().await;
        canceled.cancel(CancelReason::Interrupted);
        assert!(!second.await.unwrap());
        drop(first);
        assert!(third.await.unwrap());
        assert_eq!(queue.load(), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_goes_to_one_attempt_at_a_time() {
        let queue = queue(2);
        let gpu = Demand { gpus: 1, ..Demand::default() };
        let scope = CancelScope::new();
        let first = queue.turn(Priority::default(), gpu.clone(), &scope).await.unwrap();
        assert_eq!(first.slot().gpus, ["0"]);
        let second = queue.turn(Priority::default(), gpu, &scope);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_secs(100), &mut second).await.is_err());
        drop(first);
        assert_eq!(second.await.unwrap().slot().gpus, ["0"]);
    }
}
