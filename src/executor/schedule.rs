//! Which staged attempt runs next on which lane. Pure: no clock, no I/O, no waiting; `queue.rs` puts a mutex around it.
//!
//! A staged attempt joins the least loaded lane. A lane takes the best of its own queue (priority, then age) that fits the free
//! pool, else it steals the oldest fitting one from the longest sibling. One that did not fit for too long reserves:
//! nothing else starts that would take what it waits for.

use std::time::Duration;

use tokio::time::Instant;

use super::resources::{Free, Grant};
use crate::broker::Pool;
use crate::handler::Demand;
use crate::task::Priority;

/// A staged attempt in a lane's queue.
#[derive(Debug)]
struct Entry<T> {
    sequence: u64,
    priority: Priority,
    demand: Demand,
    since: Instant,
    item: T,
}

#[derive(Debug)]
struct Lane<T> {
    queue: Vec<Entry<T>>,
    busy: bool,
    closed: bool,
}

/// The queues of all lanes and the free pool.
#[derive(Debug)]
pub struct Schedule<T> {
    lanes: Vec<Lane<T>>,
    free: Free,
    next_sequence: u64,
    queued: usize,
    starvation_after: Duration,
    steals: u64,
}

/// What a lane is to run, and what it holds of the pool meanwhile.
#[derive(Debug)]
pub struct Start<T> {
    /// The staged attempt.
    pub item: T,
    /// To be given back by [`Schedule::finish`].
    pub grant: Grant,
}

impl<T> Schedule<T> {
    /// `lanes` empty lanes over the whole of `pool`.
    pub fn new(lanes: usize, pool: &Pool, starvation_after: Duration) -> Self {
        let lanes =
            (0..lanes.max(1)).map(|_| Lane { queue: Vec::new(), busy: false, closed: false }).collect();
        Self { lanes, free: Free::all_of(pool), next_sequence: 0, queued: 0, starvation_after, steals: 0 }
    }

    /// Queues `item` on the least loaded lane and names that lane. Its sequence number identifies it later.
    pub fn enqueue(&mut self, item: T, priority: Priority, demand: Demand, now: Instant) -> (usize, u64) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let lane = self
            .lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| !lane.closed)
            .min_by_key(|(_, lane)| lane.queue.len() + usize::from(lane.busy))
            .map_or(0, |(n, _)| n);
        self.queued += 1;
        self.lanes[lane].queue.push(Entry { sequence, priority, demand, since: now, item });
        (lane, sequence)
    }

    /// What `lane` starts now, if anything fits.
    pub fn next(&mut self, lane: usize, now: Instant) -> Option<Start<T>> {
        let reserved = self.reserved(now);
        let (from, index) =
            self.own(lane, reserved.as_ref()).or_else(|| self.steal(lane, reserved.as_ref()))?;
        let grant = self.free.grant(&self.lanes[from].queue[index].demand)?;
        let entry = self.lanes[from].queue.remove(index);
        self.queued -= 1;
        self.steals += u64::from(from != lane);
        self.lanes[lane].busy = true;
        Some(Start { item: entry.item, grant })
    }

    /// `lane` is free again, and so is what it held.
    pub fn finish(&mut self, lane: usize, grant: Grant) {
        self.lanes[lane].busy = false;
        self.free.put_back(grant);
    }

    /// Takes a queued attempt out again; `None` when it was started or taken out already.
    pub fn remove(&mut self, sequence: u64) -> Option<T> {
        for lane in &mut self.lanes {
            if let Some(index) = lane.queue.iter().position(|entry| entry.sequence == sequence) {
                self.queued -= 1;
                return Some(lane.queue.remove(index).item);
            }
        }
        None
    }

    /// Takes everything out that has not started, oldest first.
    pub fn drain(&mut self) -> Vec<T> {
        let mut entries: Vec<Entry<T>> =
            self.lanes.iter_mut().flat_map(|lane| lane.queue.drain(..)).collect();
        entries.sort_by_key(|entry| entry.sequence);
        self.queued = 0;
        entries.into_iter().map(|entry| entry.item).collect()
    }

    /// When the next reservation begins, if an attempt waits that does not fit: lanes look again then.
    pub fn reservation_due(&self) -> Option<Instant> {
        let oldest =
            self.lanes.iter().flat_map(|lane| &lane.queue).filter(|entry| !self.free.fits(&entry.demand));
        oldest.map(|entry| entry.since + self.starvation_after).min()
    }

    /// How many wait.
    pub fn queued(&self) -> usize {
        self.queued
    }
    /// How many run.
    pub fn busy(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.busy).count()
    }
    /// Lanes that could start something.
    pub fn idle_lanes(&self) -> impl Iterator<Item = usize> + '_ {
        self.lanes.iter().enumerate().filter(|(_, lane)| !lane.busy && !lane.closed).map(|(n, _)| n)
    }
    /// How many were taken from siblings so far.
    pub fn steals(&self) -> u64 {
        self.steals
    }

    /// The oldest attempt that has not fitted for `starvation_after`: its sequence and demand.
    fn reserved(&self, now: Instant) -> Option<(u64, Demand)> {
        self.lanes
            .iter()
            .flat_map(|lane| &lane.queue)
            .filter(|entry| {
                now.duration_since(entry.since) >= self.starvation_after && !self.free.fits(&entry.demand)
            })
            .min_by_key(|entry| entry.sequence)
            .map(|entry| (entry.sequence, entry.demand.clone()))
    }

    fn startable(&self, entry: &Entry<T>, reserved: Option<&(u64, Demand)>) -> bool {
        self.free.fits(&entry.demand)
            && reserved.is_none_or(|(sequence, wanted)| {
                *sequence == entry.sequence || !competes(&entry.demand, wanted)
            })
    }

    /// The best fitting one of the lane's own queue.
    fn own(&self, lane: usize, reserved: Option<&(u64, Demand)>) -> Option<(usize, usize)> {
        let queue = &self.lanes[lane].queue;
        let best = queue.iter().enumerate().filter(|(_, entry)| self.startable(entry, reserved));
        best.min_by_key(|(_, entry)| (std::cmp::Reverse(entry.priority), entry.sequence))
            .map(|(n, _)| (lane, n))
    }

    /// The oldest fitting one of the longest sibling that has any.
    fn steal(&self, thief: usize, reserved: Option<&(u64, Demand)>) -> Option<(usize, usize)> {
        let mut siblings: Vec<usize> = (0..self.lanes.len()).filter(|n| *n != thief).collect();
        siblings.sort_by_key(|n| std::cmp::Reverse(self.lanes[*n].queue.len()));
        siblings.into_iter().find_map(|n| {
            let fitting =
                self.lanes[n].queue.iter().enumerate().filter(|(_, entry)| self.startable(entry, reserved));
            fitting.min_by_key(|(_, entry)| entry.sequence).map(|(index, _)| (n, index))
        })
    }
}

/// Whether `demand` would take something that `wanted` waits for.
fn competes(demand: &Demand, wanted: &Demand) -> bool {
    (demand.cpus > 0.0 && wanted.cpus > 0.0)
        || (demand.memory > 0 && wanted.memory > 0)
        || (demand.gpus > 0 && wanted.gpus > 0)
        || demand
            .custom
            .iter()
            .any(|(name, amount)| *amount > 0 && wanted.custom.get(name).is_some_and(|n| *n > 0))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
