//! When a failed attempt is tried again, and how long to wait. Known by all rooms, knows none.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;

/// What happens after a failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// How many attempts may be charged in all; 1 means no second one.
    #[serde(default = "RetryPolicy::default_max_attempts")]
    #[schemars(range(min = 1))]
    pub max_attempts: u32,
    /// The delay before the second attempt; it doubles with each further one.
    #[serde(default = "RetryPolicy::default_backoff")]
    pub backoff: Span,
    /// The longest delay.
    #[serde(default = "RetryPolicy::default_max_backoff")]
    pub max_backoff: Span,
    /// Which failures: `retryable`, an error code such as `oom_killed`, or `exit:<n>`.
    #[serde(default = "RetryPolicy::default_on")]
    pub on: Vec<String>,
}

impl RetryPolicy {
    fn default_max_attempts() -> u32 {
        3
    }
    fn default_backoff() -> Span {
        Span::seconds(5)
    }
    fn default_max_backoff() -> Span {
        Span::seconds(600)
    }
    fn default_on() -> Vec<String> {
        vec!["retryable".to_owned()]
    }

    /// The delay after the attempt numbered `attempt` (from 1), with full jitter over its upper half:
    /// between a half and the whole of `backoff · 2^(attempt-1)`, at most `max_backoff`. `unit` is in 0..1.
    pub fn delay(&self, attempt: u32, unit: f64) -> Duration {
        let doubled = 2_f64.powi(i32::try_from(attempt.saturating_sub(1).min(62)).unwrap_or(62));
        let whole = (self.backoff.get().as_secs_f64() * doubled).min(self.max_backoff.get().as_secs_f64());
        Duration::from_secs_f64(whole * (0.5 + 0.5 * unit.clamp(0.0, 1.0)))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: Self::default_max_attempts(),
            backoff: Self::default_backoff(),
            max_backoff: Self::default_max_backoff(),
            on: Self::default_on(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_bound_and_jitters_over_its_upper_half() {
        let policy = RetryPolicy {
            backoff: Span::seconds(4),
            max_backoff: Span::seconds(10),
            ..RetryPolicy::default()
        };
        assert_eq!(policy.delay(1, 1.0), Duration::from_secs(4));
        assert_eq!(policy.delay(1, 0.0), Duration::from_secs(2));
        assert_eq!(policy.delay(2, 1.0), Duration::from_secs(8));
        assert_eq!(policy.delay(3, 1.0), Duration::from_secs(10));
        assert_eq!(policy.delay(u32::MAX, 1.0), Duration::from_secs(10));
    }
}
