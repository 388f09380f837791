//! Compares a decoded document with the README's encoding of what Python decoded.

use std::collections::HashMap;

use base64::Engine as _;
use longshore::task::json::Json;
use longshore::task::jsonpickle::{Document, Instance, Node, Object};

/// One numbering of objects: args, kwargs and embed share one, every hook has its own.
pub(crate) struct Comparison<'a> {
    document: &'a Document,
    recommend: &'a str,
    /// Which of our objects stands for an expected one, and back.
    ours: HashMap<u64, usize>,
    theirs: HashMap<usize, u64>,
    /// What differs, with its place.
    pub(crate) differences: Vec<String>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(document: &'a Document, recommend: &'a str) -> Self {
        Self { document, recommend, ours: HashMap::new(), theirs: HashMap::new(), differences: Vec::new() }
    }

    fn differ(&mut self, path: &str, expected: &Json, node: &Node) {
        let mut shown = expected.to_string();
        shown.truncate((0..=120.min(shown.len())).rev().find(|n| shown.is_char_boundary(*n)).unwrap_or(0));
        self.differences.push(format!("{path}: {} instead of {shown}", self.document.kind(node)));
    }

    pub(crate) fn compare(&mut self, path: &str, expected: &Json, node: &Node) {
        let same = match (expected, node) {
            (Json::Null, Node::Null) => true,
            (Json::Null, Node::Shared(_)) => self.is_skipped_empty_object(node),
            (Json::Bool(a), Node::Bool(b)) => a == b,
            (Json::Number(a), Node::Number(b)) => a == b,
            (Json::BigInteger(a), Node::BigInteger(b)) | (Json::Text(a), Node::Text(b)) => a == b,
            (Json::NonFinite(a), Node::NonFinite(b)) => a == b,
            (Json::Surrogates(a), Node::Surrogates(b)) => a == b,
            (Json::Map(_), _) => return self.tagged(path, expected, node),
            _ => false,
        };
        if !same {
            self.differ(path, expected, node);
        }
    }

    /// jsonpickle 2's reader makes null of an object without attributes; here it stays one.
    fn is_skipped_empty_object(&self, node: &Node) -> bool {
        let empty = |instance: &Instance| instance.attributes.is_empty() && instance.state.is_none();
        self.recommend == "null_state_as_object_skip" && self.document.instance(node).is_some_and(empty)
    }

    fn tagged(&mut self, path: &str, expected: &Json, node: &Node) {
        let kind = expected.get("$").and_then(Json::text).unwrap_or_default().to_owned();
        let number = match expected.get("obj") {
            Some(Json::Number(number)) => number.as_u64(),
            _ => None,
        };
        if let (Some(number), Node::Shared(index)) = (number, node) {
            let ours = *self.ours.entry(number).or_insert(*index);
            let theirs = *self.theirs.entry(*index).or_insert(number);
            if ours != *index || theirs != number {
                self.differences.push(format!("{path}: another object than {number}"));
                return;
            }
            if kind == "ref" || kind == "opaque" {
                return;
            }
        }
        let document = self.document;
        let get = |key: &str| expected.get(key).unwrap_or(&Json::Null);
        let same = match (kind.as_str(), node, document.shared(node)) {
            ("list", _, Some(Object::List(items))) | ("tuple", Node::Tuple(items), _) => {
                self.items(path, get("items"), items)
            }
            ("set" | "frozenset", Node::Set(items), _) => self.set(get("items"), items),
            ("dict", _, Some(Object::Dict(entries))) => {
                let entries: Vec<(&Node, &Node)> = entries.iter().map(|(key, value)| (key, value)).collect();
                self.entries(path, get("items"), &entries)
            }
            ("object", _, Some(Object::Instance(instance))) => {
                get("class").text() == Some(&instance.class) && self.attributes(path, get("attrs"), instance)
            }
            ("signature", _, Some(Object::Instance(instance))) => {
                self.signature(path, get("items"), instance)
            }
            ("signature", _, Some(Object::Dict(entries))) => {
                let entries: Vec<(&Node, &Node)> = entries.iter().map(|(key, value)| (key, value)).collect();
                self.entries(path, get("items"), &entries)
            }
            ("bytes", Node::Bytes(bytes), _) => {
                get("base64").text() == Some(&base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            ("type", Node::Type(name), _) | ("function", Node::Function(name), _) => {
                get("name").is_null() || get("name").text() == Some(name)
            }
            ("datetime", _, Some(Object::DateTime(time))) => get("iso").text() == Some(&time.isoformat('T')),
            ("date", _, Some(Object::Date(date))) => get("iso").text() == Some(&date.to_string()),
            ("time", _, Some(Object::Time(time))) => get("iso").text() == Some(&time.to_string()),
            ("object_id", _, Some(Object::ObjectId(_))) => {
                get("hex").text() == document.plain_text(node).as_deref()
            }
            ("timedelta" | "timezone", _, Some(_)) | ("opaque", _, _) | ("float", Node::Number(_), _) => true,
            ("float", Node::NonFinite(number), _) => {
                let text = expected.to_string().to_lowercase();
                text.contains(number.as_python().trim_start_matches('-'))
            }
            _ => false,
        };
        if !same {
            self.differ(path, expected, node);
        }
    }

    fn items(&mut self, path: &str, expected: &Json, items: &[Node]) -> bool {
        let Some(expected) = expected.items().filter(|expected| expected.len() == items.len()) else {
            return false;
        };
        for (n, (expected, item)) in expected.iter().zip(items).enumerate() {
            self.compare(&format!("{path}[{n}]"), expected, item);
        }
        true
    }

    /// The order of a set is nobody's; its members here are plain.
    fn set(&mut self, expected: &Json, items: &[Node]) -> bool {
        let expected = expected.items().unwrap_or_default();
        expected.len() == items.len()
            && expected.iter().all(|expected| {
                items.iter().any(|item| {
                    let mut trial = Comparison::new(self.document, self.recommend);
                    trial.compare("", expected, item);
                    trial.differences.is_empty()
                })
            })
    }

    fn entries(&mut self, path: &str, expected: &Json, entries: &[(&Node, &Node)]) -> bool {
        let Some(expected) = expected.items().filter(|expected| expected.len() == entries.len()) else {
            return false;
        };
        for (n, (pair, (key, value))) in expected.iter().zip(entries).enumerate() {
            let Some([expected_key, expected_value]) = pair.items() else { return false };
            self.compare(&format!("{path}.key {n}"), expected_key, key);
            self.compare(&format!("{path}.{expected_key}"), expected_value, value);
        }
        true
    }

    fn attributes(&mut self, path: &str, expected: &Json, instance: &Instance) -> bool {
        let expected = expected.entries().unwrap_or_default();
        for (name, expected) in expected {
            match instance.attribute(name) {
                Some(node) => self.compare(&format!("{path}.{name}"), expected, node),
                None => return false,
            }
        }
        expected.len() == instance.attributes.len()
    }

    fn signature(&mut self, path: &str, expected: &Json, instance: &Instance) -> bool {
        let keys: Vec<Node> = instance.attributes.iter().map(|(key, _)| Node::Text(key.clone())).collect();
        let entries: Vec<(&Node, &Node)> = keys
            .iter()
            .zip(&instance.attributes)
            .filter(|(key, _)| key.text() != Some("__dict__"))
            .map(|(key, (_, value))| (key, value))
            .collect();
        self.entries(path, expected, &entries)
    }
}
