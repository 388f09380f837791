//! What a decoded `tzinfo` stands for: the classes of Python, pymongo, dateutil and pytz, told by their names alone.

use super::payload::{Date, Offset, Time, TimeDelta};
use super::{Document, Node, Object};

/// A `tzinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    /// None.
    Naive,
    /// So far ahead of UTC.
    Fixed(TimeDelta),
    /// A zone of the IANA's database, whose offset depends on the day.
    Named(String),
    /// Of a class that is not read here.
    Foreign,
}

/// Which of two times with one name is meant, when clocks are put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    First,
    Second,
}

impl Zone {
    /// Reads the node of a `tzinfo`.
    pub(super) fn read(document: &Document, node: &Node) -> Self {
        if node.is_null() {
            return Self::Naive;
        }
        let Some(Object::Reduce(parts)) = document.shared(node) else { return Self::Foreign };
        Self::reduced(document, parts).unwrap_or(Self::Foreign)
    }

    /// Reads the elements of `__reduce__` of one.
    pub(super) fn reduced(document: &Document, parts: &[Node]) -> Option<Self> {
        let utc = || TimeDelta::from_seconds(0).map(Self::Fixed);
        match document.construction(parts)? {
            ("datetime.timezone" | "bson.tz_util.FixedOffset", [delta, ..]) => {
                timedelta(document, delta).map(Self::Fixed)
            }
            ("pytz._UTC", []) => utc(),
            ("pytz._p", [Node::Text(_), Node::Number(seconds), ..]) => {
                TimeDelta::from_seconds(seconds.as_i64()?).map(Self::Fixed)
            }
            ("pytz._p" | "zoneinfo.ZoneInfo._unpickle", [Node::Text(name), ..]) => {
                Some(Self::Named(name.clone()))
            }
            ("dateutil.tz.tz.tzfile", [_, Node::Text(path)]) => {
                path.split_once("/zoneinfo/").map(|(_, name)| Self::Named(name.to_owned()))
            }
            ("copyreg._reconstructor", [Node::Type(class), ..]) => match class.as_str() {
                "dateutil.tz.tz.tzutc" => utc(),
                "dateutil.tz.tz.tzoffset" => {
                    timedelta(document, document.get(parts.get(2)?, "_offset")?).map(Self::Fixed)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// The offset at that time of that day.
    pub(super) fn offset_at(&self, date: Date, time: &Time, fold: Fold) -> Offset {
        match self {
            Self::Naive => Offset::Naive,
            Self::Fixed(delta) => Offset::Fixed(*delta),
            Self::Named(name) => looked_up(name, date, time, fold).map_or(Offset::Foreign, Offset::Fixed),
            Self::Foreign => Offset::Foreign,
        }
    }
}

fn timedelta(document: &Document, node: &Node) -> Option<TimeDelta> {
    let Some(Object::Reduce(parts)) = document.shared(node) else { return None };
    match document.construction(parts)? {
        ("datetime.timedelta", arguments) => TimeDelta::from_arguments(arguments),
        _ => None,
    }
}

fn looked_up(name: &str, date: Date, time: &Time, fold: Fold) -> Option<TimeDelta> {
    let small = |number: u8| i8::try_from(number).ok();
    let civil = jiff::civil::DateTime::new(
        i16::try_from(date.year).ok()?,
        small(date.month)?,
        small(date.day)?,
        small(time.hour)?,
        small(time.minute)?,
        small(time.second)?,
        0,
    );
    let ambiguous = jiff::tz::TimeZone::get(name).ok()?.to_ambiguous_zoned(civil.ok()?);
    let zoned = match fold {
        Fold::First => ambiguous.compatible(),
        Fold::Second => ambiguous.later(),
    };
    TimeDelta::from_seconds(zoned.ok()?.offset().seconds().into())
}
