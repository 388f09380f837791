//! The worker-wide pool that running attempts draw from. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::Pool;
use crate::handler::Demand;

/// What is free of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Free {
    cpus: f64,
    memory: u64,
    gpus: BTreeSet<String>,
    custom: BTreeMap<String, u64>,
}

/// What one attempt holds of the pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    cpus: f64,
    memory: u64,
    /// Device ids.
    pub gpus: Vec<String>,
    custom: BTreeMap<String, u64>,
}

/// Sums of fractions must not make a full pool look short.
const EPSILON: f64 = 1e-9;

impl Free {
    /// The whole pool.
    pub fn all_of(pool: &Pool) -> Self {
        Self {
            cpus: pool.cpus,
            memory: pool.memory,
            gpus: pool.gpus.iter().cloned().collect(),
            custom: pool.custom.clone(),
        }
    }

    /// Whether `demand` could be granted now.
    pub fn fits(&self, demand: &Demand) -> bool {
        demand.cpus <= self.cpus + EPSILON
            && demand.memory <= self.memory
            && demand.gpus as usize <= self.gpus.len()
            && demand
                .custom
                .iter()
                .all(|(name, amount)| *amount <= self.custom.get(name).copied().unwrap_or(0))
    }

    /// Takes `demand` out of the pool; `None` when it does not fit.
    pub fn grant(&mut self, demand: &Demand) -> Option<Grant> {
        if !self.fits(demand) {
            return None;
        }
        self.cpus -= demand.cpus;
        self.memory -= demand.memory;
        let gpus = (0..demand.gpus).filter_map(|_| self.gpus.pop_first()).collect();
        for (name, amount) in &demand.custom {
            if let Some(free) = self.custom.get_mut(name) {
                *free -= amount;
            }
        }
        Some(Grant { cpus: demand.cpus, memory: demand.memory, gpus, custom: demand.custom.clone() })
    }

    /// Puts `grant` back.
    pub fn put_back(&mut self, grant: Grant) {
        self.cpus += grant.cpus;
        self.memory += grant.memory;
        self.gpus.extend(grant.gpus);
        for (name, amount) in grant.custom {
            *self.custom.entry(name).or_default() += amount;
        }
    }
}

/// What of `demand` a worker with `pool` could never grant; empty when all fits.
pub fn lacking(pool: &Pool, demand: &Demand) -> Vec<String> {
    let mut lacking = Vec::new();
    if let Some(platform) = &demand.platform
        && !platform_matches(&pool.platform, platform)
    {
        lacking.push(format!("platform {platform} (here {})", pool.platform));
    }
    if demand.cpus > pool.cpus + EPSILON {
        lacking.push(format!("{} cpus (here {})", demand.cpus, pool.cpus));
    }
    if demand.memory > pool.memory {
        lacking.push(format!(
            "{} of memory (here {})",
            crate::units::Size(demand.memory),
            crate::units::Size(pool.memory)
        ));
    }
    if demand.gpus as usize > pool.gpus.len() {
        lacking.push(format!("{} gpus (here {})", demand.gpus, pool.gpus.len()));
    }
    for (name, amount) in &demand.custom {
        let here = pool.custom.get(name).copied().unwrap_or(0);
        if *amount > here {
            lacking.push(format!("{amount} of {name} (here {here})"));
        }
    }
    lacking
}

/// `linux/arm64` matches `linux/arm64` and `linux/arm64/v8`.
fn platform_matches(here: &str, asked: &str) -> bool {
    let mut have = here.split('/');
    asked.split('/').take(2).all(|part| have.next() == Some(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool {
            cpus: 2.0,
            memory: 100,
            gpus: vec!["0".to_owned(), "1".to_owned(), "2".to_owned()],
            platform: "linux/amd64".to_owned(),
            custom: BTreeMap::from([("licence".to_owned(), 1)]),
        }
    }

    #[test]
    fn devices_are_disjoint_and_come_back() {
        let mut free = Free::all_of(&pool());
        let two = Demand { gpus: 2, ..Demand::default() };
        let first = free.grant(&two).unwrap();
        assert_eq!(free.grant(&two), None);
        let second = free.grant(&Demand { gpus: 1, ..Demand::default() }).unwrap();
        assert!(first.gpus.iter().all(|gpu| !second.gpus.contains(gpu)));
        free.put_back(first);
        free.put_back(second);
        assert_eq!(free, Free::all_of(&pool()));
    }

    #[test]
    fn fractions_of_processors_fill_the_pool_exactly() {
        let mut free = Free::all_of(&pool());
        let tenth = Demand { cpus: 0.1, ..Demand::default() };
        let grants: Vec<_> = std::iter::from_fn(|| free.grant(&tenth)).collect();
        assert_eq!(grants.len(), 20);
    }

    #[test]
    fn what_lacks_is_named_with_what_is_here() {
        let demand = Demand {
            cpus: 4.0,
            memory: 1 << 30,
            gpus: 4,
            platform: Some("linux/arm64/v8".to_owned()),
            custom: BTreeMap::from([("licence".to_owned(), 2), ("robot".to_owned(), 1)]),
        };
        insta::assert_snapshot!(lacking(&pool(), &demand).join("\n"));
        assert!(
            lacking(&pool(), &Demand { platform: Some("linux/amd64".to_owned()), ..Demand::default() })
                .is_empty()
        );
    }
}
