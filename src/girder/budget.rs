//! How long one call is tried again, and how long to wait in between. Pure but for its clock and its dice.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

/// The first delay; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(250);
/// The longest delay of our own choice.
const LONGEST: Duration = Duration::from_secs(15);

/// What is left for further tries of one call.
pub(super) struct Budget {
    until: Instant,
    tries: u32,
}

impl Budget {
    pub(super) fn new(whole: Duration) -> Self {
        Self { until: Instant::now() + whole, tries: 1 }
    }

    /// How often the call was tried.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// How long to wait before the next try; none when it would come too late. The server's own wish is kept when it
    /// fits, since asking earlier would only be refused again.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let doubled = FIRST.saturating_mul(1 << (self.tries - 1).min(16)).min(LONGEST);
        let own = doubled.mul_f64(0.5 + 0.5 * rand::rng().random::<f64>());
        let delay = asked.map_or(own, |asked| asked.max(own));
        if Instant::now() + delay >= self.until {
            return None;
        }
        self.tries += 1;
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_within_the_budget() {
        let mut budget = Budget::new(Duration::from_secs(20));
        let mut waited = Duration::ZERO;
        let mut delays = Vec::new();
        while let Some(delay) = budget.next(None) {
            tokio::time::sleep(delay).await;
            waited += delay;
            delays.push(delay);
        }
        assert!(waited < Duration::from_secs(20) && delays.len() >= 5, "{delays:?}");
        for (n, delay) in delays.iter().enumerate() {
            let whole = FIRST.saturating_mul(1 << n).min(LONGEST);
            assert!(*delay >= whole / 2 && *delay <= whole, "{n}: {delay:?}");
        }
        assert_eq!(budget.tries() as usize, delays.len() + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wish_of_the_server_is_kept_or_the_call_is_given_up() {
        let mut budget = Budget::new(Duration::from_secs(20));
        assert_eq!(budget.next(Some(Duration::from_secs(7))), Some(Duration::from_secs(7)));
        assert_eq!(budget.next(Some(Duration::from_secs(21))), None);
        assert_eq!(budget.tries(), 2);
    }
}
