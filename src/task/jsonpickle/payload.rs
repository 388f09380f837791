//! What the standard classes pack into texts: base64 and base85, the bytes of dates and times.

use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::Node;
use super::zone::{Fold, Zone};

/// A `datetime.datetime`, in the fields of its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// The day.
    pub date: Date,
    /// The time of the day, with its offset.
    pub time: Time,
}

/// A `datetime.date`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// 1 to 9999
    pub year: u16,
    /// 1 to 12
    pub month: u8,
    /// 1 to 31
    pub day: u8,
}

/// A `datetime.time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// 0 to 23
    pub hour: u8,
    /// 0 to 59
    pub minute: u8,
    /// 0 to 59
    pub second: u8,
    /// 0 to 999,999
    pub microsecond: u32,
    /// The zone it is told in.
    pub offset: Offset,
}

/// The zone of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// None is told.
    Naive,
    /// This far ahead of UTC.
    Fixed(TimeDelta),
    /// A zone of a class that is not read here.
    Foreign,
}

/// A `datetime.timedelta`, as Python normalises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeDelta {
    /// May be negative.
    pub days: i64,
    /// 0 to 86,399
    pub seconds: i64,
    /// 0 to 999,999
    pub microseconds: i64,
}

impl TimeDelta {
    /// From the arguments of its construction: days, seconds, microseconds.
    pub fn from_arguments(arguments: &[Node]) -> Option<Self> {
        let mut numbers = [0_i64; 3];
        if arguments.len() > numbers.len() {
            return None;
        }
        for (number, argument) in numbers.iter_mut().zip(arguments) {
            match argument {
                Node::Number(given) => *number = given.as_i64()?,
                _ => return None,
            }
        }
        let [days, seconds, microseconds] = numbers;
        let seconds = seconds.checked_add(microseconds.div_euclid(1_000_000))?;
        let days = days.checked_add(seconds.div_euclid(86_400))?;
        let normal = Self {
            days,
            seconds: seconds.rem_euclid(86_400),
            microseconds: microseconds.rem_euclid(1_000_000),
        };
        (days.abs() <= 999_999_999).then_some(normal)
    }
    /// So many seconds.
    pub fn from_seconds(seconds: i64) -> Option<Self> {
        Self::from_arguments(&[Node::Number(0.into()), Node::Number(seconds.into())])
    }
    /// The whole seconds.
    pub fn whole_seconds(self) -> i64 {
        self.days * 86_400 + self.seconds
    }
}

/// `str(timedelta)`: `1 day, 2:03:04.000005`.
impl fmt::Display for TimeDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0 {
            let plural = if self.days.abs() == 1 { "" } else { "s" };
            write!(f, "{} day{plural}, ", self.days)?;
        }
        write!(f, "{}:{:02}:{:02}", self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60)?;
        if self.microseconds != 0 {
            write!(f, ".{:06}", self.microseconds)?;
        }
        Ok(())
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}:{:02}", self.hour, self.minute, self.second)?;
        if self.microsecond != 0 {
            write!(f, ".{:06}", self.microsecond)?;
        }
        match self.offset {
            Offset::Naive | Offset::Foreign => Ok(()),
            Offset::Fixed(delta) => Shift(delta).fmt(f),
        }
    }
}

/// An offset as Python prints it: `+01:30`.
pub(super) struct Shift(pub(super) TimeDelta);

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.whole_seconds();
        let sign = if seconds < 0 { '-' } else { '+' };
        let seconds = seconds.abs();
        write!(f, "{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)?;
        if seconds % 60 != 0 {
            write!(f, ":{:02}", seconds % 60)?;
        }
        Ok(())
    }
}

impl DateTime {
    /// `datetime.isoformat(sep)`.
    pub fn isoformat(&self, separator: char) -> String {
        format!("{}{separator}{}", self.date, self.time)
    }
}

/// The ten bytes of a `datetime`: year (2), month, day, hour, minute, second, microsecond (3); the month's top bit is the fold.
pub(super) fn datetime(bytes: &[u8], zone: &Zone) -> Option<DateTime> {
    let (day, clock) = bytes.split_at_checked(4)?;
    let date = date(&[day[0], day[1], day[2] & 0x7f, day[3]])?;
    let time = time(clock, &Zone::Naive)?;
    let fold = if day[2] & 0x80 == 0 { Fold::First } else { Fold::Second };
    Some(DateTime { date, time: Time { offset: zone.offset_at(date, &time, fold), ..time } })
}

/// The four bytes of a `date`.
pub(super) fn date(bytes: &[u8]) -> Option<Date> {
    let [high, low, month @ 1..=12, day @ 1..=31] = *bytes else { return None };
    let year = u16::from_be_bytes([high, low]);
    (1..=9999).contains(&year).then_some(Date { year, month, day })
}

/// The six bytes of a `time`; the hour's top bit is the fold. Where only a day tells the offset, Python has none either.
pub(super) fn time(bytes: &[u8], zone: &Zone) -> Option<Time> {
    let [hour, minute @ 0..=59, second @ 0..=59, a, b, c] = *bytes else { return None };
    let (hour, microsecond) = (hour & 0x7f, u32::from_be_bytes([0, a, b, c]));
    let offset = match zone {
        Zone::Naive | Zone::Named(_) => Offset::Naive,
        Zone::Fixed(delta) => Offset::Fixed(*delta),
        Zone::Foreign => Offset::Foreign,
    };
    (hour < 24 && microsecond < 1_000_000).then_some(Time { hour, minute, second, microsecond, offset })
}

/// Strict base64 of the usual alphabet; missing padding is forgiven.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(text).ok()
}

/// Python's `base64.b85decode`: five characters of RFC 1924's alphabet are four bytes, the last group may be shorter.
pub(super) fn base85(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] =
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    let mut out = Vec::with_capacity(text.len() / 5 * 4 + 4);
    for group in text.as_bytes().chunks(5) {
        let mut value = 0_u64;
        for n in 0..5 {
            let c = group.get(n).copied().unwrap_or(b'~');
            let digit = ALPHABET.iter().position(|known| *known == c)?;
            value = value * 85 + digit as u64;
        }
        let bytes = u32::try_from(value).ok()?.to_be_bytes();
        out.extend_from_slice(bytes.get(..group.len().checked_sub(1)?)?);
    }
    Some(out)
}
