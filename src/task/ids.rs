//! The small names and numbers of a task. Each is its own type so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name or number that is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{what} must not be empty")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// The text is longer than every broker can carry.
    #[error("{what} has {length} bytes, the most is {most}")]
    Long {
        /// Which name.
        what: &'static str,
        /// Bytes seen.
        length: usize,
        /// Bytes allowed.
        most: usize,
    },
    /// The text holds a character that names must not have.
    #[error("{what} {text:?} holds white space or a control character")]
    Character {
        /// Which name.
        what: &'static str,
        /// The refused text.
        text: String,
    },
    /// A priority beyond 9.
    #[error("priority {0} is not in 0-9")]
    Priority(u64),
}

const MOST_BYTES: usize = 255;

fn checked(what: &'static str, text: String) -> Result<String, IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > MOST_BYTES {
        return Err(IdError::Long { what, length: text.len(), most: MOST_BYTES });
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(IdError::Character { what, text });
    }
    Ok(text)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(#[schemars(length(min = 1, max = 255))] String);

        impl $name {
            /// The name if it is 1 to 255 bytes without white space and control characters.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                checked($what, text.into()).map(Self)
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A task's identity. Opaque text: a UUID v7 when made here, whatever the producer chose otherwise.
    TaskId,
    "task id"
);
name!(
    /// The name of a queue.
    QueueName,
    "queue name"
);

impl TaskId {
    /// A new id, ordered by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

impl Default for QueueName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// 0-9, 9 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
pub struct Priority(#[schemars(range(max = 9))] u8);

impl Priority {
    /// The priority, if it is in 0-9.
    pub fn new(number: u64) -> Result<Self, IdError> {
        u8::try_from(number).ok().filter(|n| *n <= 9).map(Self).ok_or(IdError::Priority(number))
    }
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
    /// The broker-side class it falls in.
    pub fn class(self) -> PriorityClass {
        match self.0 {
            0..=3 => PriorityClass::Low,
            4..=6 => PriorityClass::Normal,
            _ => PriorityClass::High,
        }
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}
impl TryFrom<u64> for Priority {
    type Error = IdError;
    fn try_from(number: u64) -> Result<Self, IdError> {
        Self::new(number)
    }
}
impl From<Priority> for u64 {
    fn from(priority: Priority) -> u64 {
        u64::from(priority.0)
    }
}

/// The three classes in which brokers keep priorities apart, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PriorityClass {
    /// 7-9
    High,
    /// 4-6
    Normal,
    /// 0-3
    Low,
}

impl PriorityClass {
    /// All classes in the order in which they are served.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// As it stands in subjects and keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// One life of a task id; the first is 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Generation(pub u32);

impl Generation {
    /// Whether this is the life in which the task was first submitted.
    pub fn is_first(&self) -> bool {
        self.0 == 0
    }
    /// The following life.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that only grows, handed out by the store with each attempt; what an attempt does with an older one is refused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Fence(pub u64);

impl Fence {
    /// The fence after `stored`: `max(stored + 1, unix microseconds)`, so that a store that lost its data still hands out larger ones.
    #[must_use]
    pub fn after(stored: Self, now: jiff::Timestamp) -> Self {
        let clock = u64::try_from(now.as_microsecond()).unwrap_or(0);
        Self(clock.max(stored.0.saturating_add(1)))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_text_or_with_blanks_are_refused() {
        assert_eq!(TaskId::new(""), Err(IdError::Empty { what: "task id" }));
        assert!(QueueName::new("a b").is_err());
        assert!(QueueName::new("a\nb").is_err());
        assert!(TaskId::new("x".repeat(256)).is_err());
        assert!(TaskId::new("x".repeat(255)).is_ok());
    }

    #[test]
    fn priorities_fall_into_three_classes() {
        let class = |n| Priority::new(n).unwrap().class();
        assert_eq!([class(0), class(3)], [PriorityClass::Low; 2]);
        assert_eq!([class(4), class(6)], [PriorityClass::Normal; 2]);
        assert_eq!([class(7), class(9)], [PriorityClass::High; 2]);
        assert_eq!(Priority::new(10), Err(IdError::Priority(10)));
    }

    #[test]
    fn a_fence_grows_even_when_the_clock_stands_or_goes_back() {
        let now = jiff::Timestamp::from_microsecond(1_000).unwrap();
        assert_eq!(Fence::after(Fence(0), now), Fence(1_000));
        assert_eq!(Fence::after(Fence(5_000), now), Fence(5_001));
    }
}
