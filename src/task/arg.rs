//! The argument tree: JSON values in which any map may be a transform.

use std::borrow::Cow;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};

use super::envelope::DecodeError;
use super::transform::{TransformSpec, nearest};

/// Named arguments in the order in which they were given.
pub type ArgMap = IndexMap<String, Arg>;

/// One node of the argument tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// No value.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer or a finite float.
    Number(Number),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Arg>),
    /// A map that is not a transform.
    Map(ArgMap),
    /// A map whose `$` names a transform.
    Transform(Box<TransformSpec>),
}

impl Arg {
    /// Reads `value` found at `path`. A map with the key `$` must be a known transform with the fields it knows.
    pub fn from_value(value: Value, path: &str) -> Result<Self, DecodeError> {
        match value {
            Value::Null => Ok(Self::Null),
            Value::Bool(truth) => Ok(Self::Bool(truth)),
            Value::Number(number) => Ok(Self::Number(number)),
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(n, item)| Self::from_value(item, &format!("{path}[{n}]")))
                .collect::<Result<_, _>>()
                .map(Self::List),
            Value::Object(map) if map.contains_key("$") => {
                transform_from_value(Value::Object(map), path).map(|spec| Self::Transform(Box::new(spec)))
            }
            Value::Object(map) => map
                .into_iter()
                .map(|(key, item)| {
                    let arg = Self::from_value(item, &format!("{path}.{key}"))?;
                    Ok((key, arg))
                })
                .collect::<Result<_, _>>()
                .map(Self::Map),
        }
    }

    /// The tree as a JSON value; the inverse of [`Arg::from_value`]. Exposes the secrets of transforms.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Text(text) => Value::String(text.clone()),
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Map(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), v.to_value())).collect()),
            Self::Transform(spec) => serde_json::to_value(spec)
                .expect("invariant: a transform has text keys and finite numbers only"),
        }
    }

    /// Calls `visit` with every transform in the tree, outermost first.
    pub fn each_transform<'a>(&'a self, visit: &mut dyn FnMut(&'a TransformSpec)) {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => {}
            Self::List(items) => items.iter().for_each(|item| item.each_transform(visit)),
            Self::Map(map) => map.values().for_each(|item| item.each_transform(visit)),
            Self::Transform(spec) => visit(spec),
        }
    }

    /// What kind of value this is, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Transform(spec) => spec.name(),
        }
    }
}

/// Reads a map whose `$` names a transform.
pub fn transform_from_value(value: Value, path: &str) -> Result<TransformSpec, DecodeError> {
    let name = match value.get("$") {
        Some(Value::String(name)) => name.clone(),
        other => {
            return Err(DecodeError::Field {
                path: format!("{path}.$"),
                value: other.map_or_else(String::new, shown),
                reason: "must be the name of a transform as text".to_owned(),
            });
        }
    };
    if !TransformSpec::NAMES.contains(&name.as_str()) {
        let nearest = nearest(&name, TransformSpec::NAMES.iter().copied());
        return Err(DecodeError::UnknownTransform { path: path.to_owned(), name, nearest });
    }
    serde_json::from_value(value).map_err(|error| DecodeError::Transform {
        path: path.to_owned(),
        name,
        reason: error.to_string(),
    })
}

/// A value as it may stand in an error message: short, on one line.
pub(super) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 80 {
        let end = (0..=77).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

impl Serialize for Arg {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Self::Map(map) => {
                let mut out = serializer.serialize_map(Some(map.len()))?;
                map.iter().try_for_each(|(key, item)| out.serialize_entry(key, item))?;
                out.end()
            }
            Self::Transform(spec) => spec.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Arg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(value, "args").map_err(serde::de::Error::custom)
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Arg {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<bool> for Arg {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}
impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(number.into())
    }
}
impl From<Vec<Arg>> for Arg {
    fn from(items: Vec<Arg>) -> Self {
        Self::List(items)
    }
}
impl From<ArgMap> for Arg {
    fn from(map: ArgMap) -> Self {
        Self::Map(map)
    }
}
impl From<TransformSpec> for Arg {
    fn from(spec: TransformSpec) -> Self {
        Self::Transform(Box::new(spec))
    }
}

impl JsonSchema for Arg {
    fn schema_name() -> Cow<'static, str> {
        "Argument".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let spec = generator.subschema_for::<TransformSpec>();
        schemars::json_schema!({
            "description": "Any JSON value; a map with the key `$` is a transform.",
            "if": { "type": "object", "required": ["$"] },
            "then": spec,
        })
    }
}
