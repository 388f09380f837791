//! Durations and sizes as people write them: `1h 30m`, `512MiB`. Known by all rooms, knows none.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, SpanRelativeTo};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("{0:?} is not a duration: write a number with its unit, such as 30s, 5m, 1h 30m or 7d")]
    Span(String),
    /// Not a size.
    #[error("{0:?} is not a size: write a number of bytes or one with its unit, such as 512MiB or 512m")]
    Size(String),
}

/// A length of time, zero or more. Text with a unit (`1h 30m`, `500ms`) or a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
    /// As the standard type.
    pub const fn get(self) -> Duration {
        self.0
    }
    fn from_number(seconds: f64) -> Option<Self> {
        Duration::try_from_secs_f64(seconds).ok().filter(|d| *d <= Self::MOST).map(Self)
    }
    /// A hundred years: beyond it sums with clocks would overflow.
    const MOST: Duration = Duration::from_secs(100 * 366 * 86_400);
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Span(text.to_owned());
        if let Ok(seconds) = text.trim().parse::<f64>() {
            return Self::from_number(seconds).ok_or_else(refused);
        }
        let parsed: jiff::Span = text.trim().parse().map_err(|_| refused())?;
        let signed = parsed.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| refused())?;
        Duration::try_from(signed).ok().filter(|d| *d <= Self::MOST).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX);
        write!(f, "{signed:#}")
    }
}
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\" or a number of seconds")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "anything near the loss is refused as too long"
                )]
                self.visit_f64(seconds as f64)
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "anything near the loss is refused as too long"
                )]
                self.visit_f64(seconds as f64)
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Span, E> {
                Span::from_number(seconds).ok_or_else(|| E::custom(UnitError::Span(seconds.to_string())))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["string", "number"], "description": "a duration such as 30s or 1h 30m, or seconds" })
    }
}

/// A number of bytes. Text with a unit as `bytesize` or docker-py reads it (`512MiB`, `512m`), or a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = UnitError;
    /// One-letter units are docker's, powers of 1024: `docker.utils.parse_bytes` reads `b`, `k`, `m`, `g`, `t` so.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Size(text.to_owned());
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let short = lower
            .strip_suffix(['b', 'k', 'm', 'g', 't'])
            .filter(|n| n.ends_with(|c: char| c.is_ascii_digit()));
        if let Some(number) = short {
            let shift = match lower.as_bytes().last() {
                Some(b'k') => 10,
                Some(b'm') => 20,
                Some(b'g') => 30,
                Some(b't') => 40,
                _ => 0,
            };
            let number: u64 = number.trim().parse().map_err(|_| refused())?;
            return number.checked_mul(1 << shift).map(Self).ok_or_else(refused);
        }
        trimmed.parse::<ByteSize>().map(|size| Self(size.as_u64())).map_err(|_| refused())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 > 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512MiB\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(UnitError::Size(bytes.to_string())))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["string", "integer"], "description": "a size such as 512MiB, or bytes" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let size = |text: &str| text.parse::<Size>().map(Size::bytes);
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("100b"), Ok(100));
        assert_eq!(size("42"), Ok(42));
        assert_eq!(size("much"), Err(UnitError::Size("much".to_owned())));
        assert_eq!(size("99999999999t"), Err(UnitError::Size("99999999999t".to_owned())));
    }

    #[test]
    fn durations_are_read_with_units_and_as_seconds() {
        let span = |text: &str| text.parse::<Span>().map(Span::get);
        assert_eq!(span("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(span("1w 2d"), Ok(Duration::from_secs(9 * 86_400)));
        assert!(span("1 month").is_err());
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("2.5"), Ok(Duration::from_millis(2_500)));
        assert!(span("-5s").is_err());
        assert!(span("soon").is_err());
    }

    #[test]
    fn both_come_back_as_they_were_written() {
        for bytes in [0, 1, 1 << 10, 3 << 20, 5 << 30, 1_000_001] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        for millis in [0, 1, 999, 60_000, 5_400_000, 86_400_000] {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
