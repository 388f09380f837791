//! Reads JSON as Python writes it, under limits, keeping what Rust's usual types cannot hold.
//!
//! Python's `json` writes `NaN`, `Infinity`, integers of any length and lone surrogates (`\ud800`). Celery messages
//! hold them, so [`Json`] keeps each as itself and leaves it to the reader of a value whether it can be used. Maps keep
//! their order, because `jsonpickle` numbers objects by it; a key that stands twice is refused, because two readers
//! would disagree about its value.
//!
//! Knows nothing of tags or tasks. Called by `jsonpickle`, `celery` and `message`.

mod parse;

pub use parse::parse;

use std::fmt;

use serde_json::{Number, Value};

/// One JSON value as Python may write it.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer of at most 64 bits or a finite float.
    Number(Number),
    /// The digits of an integer beyond 64 bits, with its sign.
    BigInteger(String),
    /// A float that is no number.
    NonFinite(NonFinite),
    /// A text.
    Text(String),
    /// A text with lone surrogates, which UTF-8 cannot express, as UTF-16.
    Surrogates(Vec<u16>),
    /// A sequence.
    List(Vec<Json>),
    /// A map in the order of its document; no key stands twice.
    Map(Vec<(String, Json)>),
}

/// A float that is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// Not a number.
    Nan,
    /// Positive infinity.
    Infinity,
    /// Negative infinity.
    NegativeInfinity,
}

impl NonFinite {
    /// As Python's `str` prints it.
    pub fn as_python(self) -> &'static str {
        match self {
            Self::Nan => "nan",
            Self::Infinity => "inf",
            Self::NegativeInfinity => "-inf",
        }
    }
    /// As Python's `json` writes it.
    pub fn as_json(self) -> &'static str {
        match self {
            Self::Nan => "NaN",
            Self::Infinity => "Infinity",
            Self::NegativeInfinity => "-Infinity",
        }
    }
}

/// Why a text is no JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {at}")]
pub struct JsonError {
    /// Bytes read before.
    pub at: usize,
    /// What is wrong.
    pub reason: String,
}

impl Json {
    /// The value of `key` in a map.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.entries()?.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
    /// A map's entries.
    pub fn entries(&self) -> Option<&[(String, Json)]> {
        match self {
            Self::Map(entries) => Some(entries),
            _ => None,
        }
    }
    /// A list's items.
    pub fn items(&self) -> Option<&[Json]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }
    /// A text without lone surrogates.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
    /// The value without what JSON proper cannot hold: such numbers become texts, lone surrogates U+FFFD.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Number(number) => Value::Number(number.clone()),
            Self::BigInteger(digits) => Value::String(digits.clone()),
            Self::NonFinite(number) => Value::String(number.as_python().to_owned()),
            Self::Text(text) => Value::String(text.clone()),
            Self::Surrogates(units) => Value::String(String::from_utf16_lossy(units)),
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_value())).collect())
            }
        }
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(map) => {
                Self::Map(map.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect())
            }
        }
    }
}

/// Writes the value as Python's `json` would, with `\u` escapes for lone surrogates only.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::BigInteger(digits) => f.write_str(digits),
            Self::NonFinite(number) => f.write_str(number.as_json()),
            Self::Text(text) => write_text(text, f),
            Self::Surrogates(units) => {
                f.write_str("\"")?;
                for unit in char::decode_utf16(units.iter().copied()) {
                    match unit {
                        Ok(c) => write_char(c, f)?,
                        Err(lone) => write!(f, "\\u{:04x}", lone.unpaired_surrogate())?,
                    }
                }
                f.write_str("\"")
            }
            Self::List(items) => {
                f.write_str("[")?;
                for (n, item) in items.iter().enumerate() {
                    f.write_str(if n == 0 { "" } else { ", " })?;
                    item.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (n, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if n == 0 { "" } else { ", " })?;
                    write_text(key, f)?;
                    f.write_str(": ")?;
                    value.fmt(f)?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    text.chars().try_for_each(|c| write_char(c, f))?;
    f.write_str("\"")
}

fn write_char(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match c {
        '"' => f.write_str("\\\""),
        '\\' => f.write_str("\\\\"),
        c if (c as u32) < 0x20 => write!(f, "\\u{:04x}", c as u32),
        c => write!(f, "{c}"),
    }
}

#[cfg(test)]
mod tests;
