//! A value with the path at which it was given, and the ways to read it as what a keyword takes.
//!
//! Every refusal names path, value and what is accepted. Readers accept what docker-py accepts; where docker-py passes
//! a value on unseen, they accept what the Engine API takes.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use bollard::models::HostConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{ArgError, shown};
use crate::task::Arg;
use crate::task::python::python_str;
use crate::task::transform::nearest;

/// An argument and where it stands.
pub(super) struct Given<'a> {
    pub(super) path: String,
    pub(super) arg: &'a Arg,
}

impl<'a> Given<'a> {
    pub(super) fn new(path: impl Into<String>, arg: &'a Arg) -> Self {
        Self { path: path.into(), arg }
    }

    pub(super) fn refuse(&self, accepted: impl Into<String>) -> ArgError {
        ArgError::Value { path: self.path.clone(), value: shown(self.arg), accepted: accepted.into() }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.arg, Arg::Null)
    }

    pub(super) fn flag(&self) -> Result<bool, ArgError> {
        match self.arg {
            Arg::Bool(truth) => Ok(*truth),
            _ => Err(self.refuse("true or false")),
        }
    }

    /// An integer in `range`; a float without a fraction is one.
    pub(super) fn integer(&self, range: &RangeInclusive<i64>) -> Result<i64, ArgError> {
        let number = match self.arg {
            Arg::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            _ => None,
        };
        number
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.refuse(format!("an integer{}", within(range))))
    }

    pub(super) fn text(&self) -> Result<String, ArgError> {
        match self.arg {
            Arg::Text(text) => self.clean(text.clone()),
            _ => Err(self.refuse("a text")),
        }
    }

    /// A plain value as the text that Python's `str` makes of it.
    pub(super) fn scalar(&self) -> Result<String, ArgError> {
        match self.arg {
            Arg::Text(_) | Arg::Number(_) | Arg::Bool(_) => self.clean(python_str(self.arg)),
            Arg::Null | Arg::List(_) | Arg::Map(_) | Arg::Transform(_) => {
                Err(self.refuse("a text, a number or a truth value"))
            }
        }
    }

    /// Any value as the text that Python's `str` makes of it.
    pub(super) fn printed(&self) -> Result<String, ArgError> {
        match self.arg {
            Arg::Transform(_) => Err(self.refuse("a value that the pipeline has no part in")),
            _ => self.clean(python_str(self.arg)),
        }
    }

    /// No kernel interface takes a zero byte; the engine's own error would not say where it stood.
    fn clean(&self, text: String) -> Result<String, ArgError> {
        if text.contains('\0') {
            return Err(ArgError::Value {
                path: self.path.clone(),
                value: "a text with a zero byte".to_owned(),
                accepted: "a text without one".to_owned(),
            });
        }
        Ok(text)
    }

    /// A list of texts; a text alone is a list of one, as the engine reads it.
    pub(super) fn texts(&self) -> Result<Vec<String>, ArgError> {
        match self.arg {
            Arg::Text(_) => Ok(vec![self.text()?]),
            Arg::List(_) => self.items()?.iter().map(Self::text).collect(),
            _ => Err(self.refuse("a list of texts")),
        }
    }

    /// Like [`Given::texts`], with numbers among them.
    pub(super) fn scalars(&self) -> Result<Vec<String>, ArgError> {
        match self.arg {
            Arg::List(_) => self.items()?.iter().map(Self::scalar).collect(),
            Arg::Text(_) | Arg::Number(_) => Ok(vec![self.scalar()?]),
            _ => Err(self.refuse("a list of texts or numbers")),
        }
    }

    pub(super) fn items(&self) -> Result<Vec<Given<'a>>, ArgError> {
        match self.arg {
            Arg::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(n, item)| Given::new(format!("{}[{n}]", self.path), item))
                .collect()),
            _ => Err(self.refuse("a list")),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Given<'a>)>, ArgError> {
        match self.arg {
            Arg::Map(map) => Ok(map
                .iter()
                .map(|(key, item)| (key.as_str(), Given::new(format!("{}.{key}", self.path), item)))
                .collect()),
            _ => Err(self.refuse("a map")),
        }
    }

    /// A map of plain values; null is the empty text, as the engine reads it.
    pub(super) fn text_map(&self) -> Result<HashMap<String, String>, ArgError> {
        self.entries()?
            .into_iter()
            .map(|(key, value)| {
                let text = if value.is_null() { String::new() } else { value.scalar()? };
                Ok((key.to_owned(), text))
            })
            .collect()
    }

    /// A size: a number of bytes, or a text with a unit as `docker.utils.parse_bytes` reads it (`512m`, `1.5g`, `64kb`:
    /// powers of 1024, all of them), or with `KiB`, `MiB`, `GiB`, `TiB`.
    pub(super) fn size(&self, least: i64) -> Result<i64, ArgError> {
        let bytes = match self.arg {
            Arg::Number(number) => {
                number.as_i64().or_else(|| number.as_f64().map(f64::floor).and_then(whole))
            }
            Arg::Text(text) => parse_bytes(text),
            _ => None,
        };
        bytes.filter(|n| *n >= least).ok_or_else(|| {
            let unlimited = if least < 0 { ", or -1 for no limit" } else { "" };
            self.refuse(format!("a number of bytes or a size such as \"512m\" or \"2g\"{unlimited}"))
        })
    }

    /// One of `choices`; a choice that ends with a colon stands for every text that begins with it and goes on.
    pub(super) fn choice(&self, choices: &[&str]) -> Result<String, ArgError> {
        let text = self.text().map_err(|_| self.refuse(listed(choices)))?;
        let fits = |choice: &&str| {
            if choice.ends_with(':') {
                text.len() > choice.len() && text.starts_with(*choice)
            } else {
                text == **choice
            }
        };
        if choices.iter().any(fits) { Ok(text) } else { Err(self.refuse(listed(choices))) }
    }

    /// A map with the Engine API's own field names, such as `{"Path": "/dev/sda", "Rate": 1024}`.
    ///
    /// The model ignores what it does not know, so what it did not take is looked for and refused.
    pub(super) fn model<T: DeserializeOwned + Serialize>(&self, accepted: &str) -> Result<T, ArgError> {
        if !matches!(self.arg, Arg::Map(_)) {
            return Err(self.refuse(accepted));
        }
        let value = self.arg.to_value();
        let model: T = serde_json::from_value(value.clone()).map_err(|error| ArgError::Value {
            path: self.path.clone(),
            value: format!("a map of which the engine's model says \"{error}\""),
            accepted: accepted.to_owned(),
        })?;
        let taken = serde_json::to_value(&model).map_err(|error| self.refuse(error.to_string()))?;
        match untaken(&value, &taken, &self.path) {
            None => Ok(model),
            Some(path) => Err(ArgError::UnknownKeyword { nearest: near(&path, accepted), path }),
        }
    }

    /// Reads the fields of a map that docker-py takes in either spelling, such as `Soft` and `soft`.
    pub(super) fn fields(&self, known: &[(&str, &str)]) -> Result<Fields<'a>, ArgError> {
        let mut found = HashMap::new();
        for (key, value) in self.entries()? {
            let Some((snake, _)) = known.iter().find(|(snake, pascal)| key == *snake || key == *pascal)
            else {
                return Err(ArgError::UnknownKeyword {
                    path: value.path,
                    nearest: nearest(key, known.iter().map(|(snake, _)| *snake)),
                });
            };
            if !value.is_null() {
                found.insert((*snake).to_owned(), value);
            }
        }
        Ok(Fields(found))
    }
}

/// The fields of a map by their snake-case names; those given as null are not among them.
pub(super) struct Fields<'a>(HashMap<String, Given<'a>>);

impl<'a> Fields<'a> {
    pub(super) fn get<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Given<'a>) -> Result<T, ArgError>,
    ) -> Result<Option<T>, ArgError> {
        self.0.get(name).map(read).transpose()
    }
}

/// The path of the first value in `given` that `taken` lacks. Nulls mean "not set" and may be lacking.
fn untaken(given: &Value, taken: &Value, path: &str) -> Option<String> {
    match (given, taken) {
        (Value::Object(given), Value::Object(taken)) => given.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match taken.get(key) {
                None if value.is_null() => None,
                None => Some(path),
                Some(other) => untaken(value, other, &path),
            }
        }),
        (Value::Array(given), Value::Array(taken)) => given
            .iter()
            .zip(taken)
            .enumerate()
            .find_map(|(n, (value, other))| untaken(value, other, &format!("{path}[{n}]"))),
        _ => None,
    }
}

/// The most similar word of `accepted` to the last part of `path`.
fn near(path: &str, accepted: &str) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let words = accepted.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    nearest(name, words)
}

fn listed(choices: &[&str]) -> String {
    let shown = |choice: &&str| {
        if choice.ends_with(':') { format!("\"{choice}<name or id>\"") } else { format!("{choice:?}") }
    };
    choices.iter().map(shown).collect::<Vec<_>>().join(" or ")
}

fn within(range: &RangeInclusive<i64>) -> String {
    match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) => String::new(),
        (least, i64::MAX) => format!(" of at least {least}"),
        (least, most) => format!(" from {least} to {most}"),
    }
}

/// The integer that a float is, where floats are exact.
fn whole(float: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and exact")]
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}

fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number = number.trim();
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift);
    }
    let factor = [1.0, 1_024.0, 1_048_576.0, 1_073_741_824.0, 1_099_511_627_776.0][shift / 10];
    number.parse::<f64>().ok().and_then(|n| whole((n * factor).floor()))
}

/// A list of engine models, each a map.
pub(super) fn models<T: DeserializeOwned + Serialize>(
    given: &Given<'_>,
    accepted: &str,
) -> Result<Vec<T>, ArgError> {
    let Arg::List(_) = given.arg else {
        return Err(given.refuse(format!("a list of {accepted}")));
    };
    given.items()?.iter().map(|item| item.model(accepted)).collect()
}

/// The part of a body that concerns the host; made when it is not there.
pub(super) fn host(body: &mut bollard::models::ContainerCreateBody) -> &mut HostConfig {
    body.host_config.get_or_insert_default()
}
