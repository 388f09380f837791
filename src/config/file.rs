//! One TOML document as a layer: its values as figment takes them, and the line of each key.

use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};
use toml_edit::{Document, Item, Table, TableLike};

use super::problem::Problem;

/// A parsed document.
pub(super) struct File {
    /// Where it was read.
    pub(super) path: PathBuf,
    document: Document<String>,
}

impl File {
    /// Parses `text`, found at `path`.
    pub(super) fn parse(path: &Path, text: String) -> Result<Self, Problem> {
        let lines = text.clone();
        match Document::parse(text) {
            Ok(document) => Ok(Self { path: path.to_owned(), document }),
            Err(error) => Err(Problem::Syntax {
                file: path.to_owned(),
                line: error.span().map_or(1, |span| line_at(&lines, span.start)),
                reason: error.message().trim().replace('\n', ", "),
            }),
        }
    }

    /// All values.
    pub(super) fn values(&self) -> Dict {
        dict(self.document.as_table())
    }

    /// The line of the key at `path`, or of the nearest table around it.
    pub(super) fn line(&self, path: &[String]) -> usize {
        let mut table: &dyn TableLike = self.document.as_table();
        let mut start = None;
        let mut keys = path.iter();
        while let Some(key) = keys.next() {
            let Some((name, item)) = table.get_key_value(key) else { break };
            start = name.span().or_else(|| item.span()).map(|span| span.start).or(start);
            if let Some(tables) = item.as_array_of_tables() {
                let nth = keys.next().and_then(|n| n.parse::<usize>().ok()).and_then(|n| tables.get(n));
                let Some(inner) = nth else { break };
                start = inner.span().map(|span| span.start).or(start);
                table = inner;
            } else if let Some(inner) = item.as_table_like() {
                table = inner;
            } else {
                start = element(item, keys.next()).or(start);
                break;
            }
        }
        start.map_or(1, |start| line_at(self.document.raw(), start))
    }

    /// The keys of all leaves in the order of the file.
    pub(super) fn leaves(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        collect_leaves(self.document.as_table(), &mut Vec::new(), &mut found);
        found
    }
}

/// Where the element `index` of an array begins.
fn element(item: &Item, index: Option<&String>) -> Option<usize> {
    let index: usize = index?.parse().ok()?;
    item.as_array()?.get(index)?.span().map(|span| span.start)
}

fn line_at(text: &str, offset: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < offset).filter(|(_, letter)| *letter == '\n').count() + 1
}

fn collect_leaves(table: &Table, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (key, item) in table {
        path.push(key.to_owned());
        match item.as_table() {
            Some(inner) => collect_leaves(inner, path, found),
            None => found.push(path.clone()),
        }
        path.pop();
    }
}

fn dict(table: &dyn TableLike) -> Dict {
    table.iter().filter_map(|(key, item)| Some((key.to_owned(), from_item(item)?))).collect()
}

fn from_item(item: &Item) -> Option<Value> {
    match item {
        Item::None => None,
        Item::Value(value) => Some(from_value(value)),
        Item::Table(table) => Some(Value::from(dict(table))),
        Item::ArrayOfTables(tables) => {
            Some(Value::from(tables.iter().map(|table| Value::from(dict(table))).collect::<Vec<_>>()))
        }
    }
}

/// A TOML value as figment takes it; a date becomes its text.
pub(super) fn from_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::from(*truth.value()),
        toml_edit::Value::Datetime(time) => Value::from(time.value().to_string()),
        toml_edit::Value::Array(items) => Value::from(items.iter().map(from_value).collect::<Vec<_>>()),
        toml_edit::Value::InlineTable(table) => Value::from(dict(table)),
    }
}
