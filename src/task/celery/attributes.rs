//! Reads the attributes of an instance as what a transform needs them to be.

use std::collections::BTreeMap;

use super::super::jsonpickle::{Instance, Node, Object};
use super::value::{Reader, foreign, unresolved, unusable};
use crate::task::Secret;
use crate::task::envelope::DecodeError;
use crate::task::transform::{GirderAccess, RelativePath};

/// The class of a client, of which only address and token are read.
const CLIENT: &str = "girder_client.GirderClient";

/// An instance and where it stands; an attribute that is missing is null.
pub(super) struct Attributes<'a> {
    pub(super) instance: &'a Instance,
    pub(super) path: &'a str,
}

impl<'a> Attributes<'a> {
    pub(super) fn get(&self, name: &str) -> &'a Node {
        self.instance.attribute(name).unwrap_or(&Node::Null)
    }
    pub(super) fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }
}

impl Reader<'_> {
    pub(super) fn headers(&self, of: &Attributes<'_>) -> Result<BTreeMap<String, Secret>, DecodeError> {
        let node = of.get("headers");
        if node.is_null() {
            return Ok(BTreeMap::new());
        }
        let path = of.at("headers");
        let Some(entries) = self.document.entries(node) else {
            return Err(unusable(&path, self.document.kind(node), "must be a map of texts"));
        };
        let text = |node: &Node| {
            let text = self.document.python_str(node);
            text.map_err(|error| unusable(&path, String::new(), &error.to_string()))
                .and_then(|text| self.counted(text, &path))
        };
        entries.iter().map(|(key, value)| Ok((text(key)?, Secret::new(text(value)?)))).collect()
    }

    /// Only the address and the token of a client are read.
    pub(super) fn access(&self, of: &Attributes<'_>) -> Result<Option<GirderAccess>, DecodeError> {
        let node = of.get("gc");
        if node.is_null() {
            return Ok(None);
        }
        let path = of.at("gc");
        let Some(client) = self.document.instance(node) else {
            return Err(match node {
                Node::Unresolved => unresolved(&path),
                _ => unusable(&path, self.document.kind(node), "must be a GirderClient"),
            });
        };
        if client.class != CLIENT {
            return Err(foreign(&path, &client.class));
        }
        let of = Attributes { instance: client, path: &path };
        Ok(Some(GirderAccess {
            api_url: self.text(&of, "urlBase")?.trim_end_matches('/').to_owned(),
            token: self.optional(&of, "token")?.map(Secret::new),
        }))
    }

    /// A text, or what is one: an ObjectId, a path.
    pub(super) fn optional(&self, of: &Attributes<'_>, name: &str) -> Result<Option<String>, DecodeError> {
        match of.get(name) {
            Node::Null => Ok(None),
            Node::Unresolved => Err(unresolved(&of.at(name))),
            node => match self.document.plain_text(node) {
                Some(text) => self.counted(text, of.path).map(Some),
                None => Err(unusable(&of.at(name), self.document.kind(node), "must be a text")),
            },
        }
    }

    pub(super) fn text(&self, of: &Attributes<'_>, name: &str) -> Result<String, DecodeError> {
        let text = self.optional(of, name)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| unusable(&of.at(name), String::new(), "must be a text that is not empty"))
    }

    /// A path below a volume; an empty one is the volume itself.
    pub(super) fn relative(&self, of: &Attributes<'_>, name: &str) -> Result<RelativePath, DecodeError> {
        let text = self.optional(of, name)?;
        let text = text.ok_or_else(|| unusable(&of.at(name), String::new(), "must be a text"))?;
        let text = if text.is_empty() { ".".to_owned() } else { text };
        RelativePath::try_from(text)
            .map_err(|error| unusable(&of.at(name), String::new(), &error.to_string()))
    }

    /// Python's `bool(value)`.
    pub(super) fn truth(&self, node: &Node) -> bool {
        match node {
            Node::Null => false,
            Node::Bool(truth) => *truth,
            Node::Number(number) => number.as_f64() != Some(0.0),
            Node::Text(text) => !text.is_empty(),
            Node::Bytes(bytes) => !bytes.is_empty(),
            Node::Tuple(items) | Node::Set(items) => !items.is_empty(),
            Node::Shared(_) => match self.document.shared(node) {
                Some(Object::List(items)) => !items.is_empty(),
                Some(Object::Dict(entries)) => !entries.is_empty(),
                _ => true,
            },
            Node::BigInteger(_)
            | Node::NonFinite(_)
            | Node::Surrogates(_)
            | Node::Type(_)
            | Node::Function(_)
            | Node::Unresolved => true,
        }
    }
}
