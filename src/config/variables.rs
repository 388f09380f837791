//! The environment as a layer: which key a `LONGSHORE_` variable sets, and how its text is read.

use figment::value::{Dict, Value};

use super::file::{File, from_value};
use super::problem::Near;
use crate::failpoint::VARIABLES;

/// What every variable begins with.
const PREFIX: &str = "LONGSHORE_";
/// Tables whose keys the template does not list, because they depend on another: their types know them.
const UNLISTED: &[&str] = &["policy"];
/// Names the file; no setting.
const CONFIG: &str = "LONGSHORE_CONFIG";

/// Whether `name` is read elsewhere.
fn is_no_setting(name: &str) -> bool {
    name == CONFIG || VARIABLES.contains(&name)
}

/// The key that the variable `name` sets: `None` when it is none of ours, an error when it looks like ours and is not.
pub(super) fn key(name: &str, template: &File) -> Option<Result<Vec<String>, Near>> {
    let rest = name.strip_prefix(PREFIX).filter(|_| !is_no_setting(name))?;
    let asked: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
    let defaults = template.values();
    let unlisted = asked.len() > 1 && UNLISTED.contains(&asked[0].as_str());
    if unlisted || is_known(&asked, &defaults) {
        return Some(Ok(asked));
    }
    // Compared without the prefix, in which all are alike.
    let known: Vec<String> =
        template.leaves().iter().map(|path| path.join("__").to_ascii_uppercase()).collect();
    Some(Err(match Near::find(rest, &known) {
        Near::All(_) => Near::All(Vec::new()),
        Near::One(near) => Near::One(format!("{PREFIX}{near}")),
    }))
}

/// Whether `path` is a setting, or lies in a table whose keys are free.
fn is_known(path: &[String], defaults: &Dict) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    match defaults.get(first) {
        None => false,
        Some(Value::Dict(_, inner)) if inner.is_empty() => true,
        Some(Value::Dict(_, inner)) => !rest.is_empty() && is_known(rest, inner),
        Some(_) => rest.is_empty(),
    }
}

/// Reads `text` as the kind of value that the template has at `path`.
pub(super) fn value(path: &[String], text: &str, defaults: &Dict) -> Result<Value, String> {
    let mut default = None;
    let mut table = Some(defaults);
    for key in path {
        default = table.and_then(|table| table.get(key));
        table = default.and_then(Value::as_dict);
    }
    match default {
        Some(Value::String(..)) => Ok(Value::from(text)),
        Some(Value::Array(..)) => list(text),
        Some(Value::Dict(..)) => parsed(text, "a table such as {licence = 2}"),
        Some(Value::Bool(..)) => {
            text.parse::<bool>().map(Value::from).map_err(|_| format!("{text:?} is neither true nor false"))
        }
        None if text.starts_with(['[', '{']) => parsed(text, "a list such as [\"a\"] or a table"),
        None => Ok(text
            .parse::<bool>()
            .map(Value::from)
            .ok()
            .or_else(|| number(text))
            .unwrap_or_else(|| Value::from(text))),
        _ => Ok(number(text).unwrap_or_else(|| Value::from(text))),
    }
}

fn number(text: &str) -> Option<Value> {
    let text = text.trim();
    text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from)).ok()
}

/// `a,b` or, as TOML has it, `["a", "b"]`.
fn list(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('[') {
        return parsed(text, "a list such as a,b or [\"a\", \"b\"]");
    }
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(Value::from(parts.map(Value::from).collect::<Vec<_>>()))
}

fn parsed(text: &str, expected: &str) -> Result<Value, String> {
    text.trim()
        .parse::<toml_edit::Value>()
        .map(|value| from_value(&value))
        .map_err(|_| format!("{text:?} is not {expected}"))
}
