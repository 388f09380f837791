//! From JSON to a [`Document`]: which values have an identity, and in which order they get it.
//!
//! # Decisions
//! Identities are numbered as the producer does (depth first, when a value is entered), not as the Python reader does:
//! that one loses count after a class that it cannot import.

use std::collections::HashSet;

use super::payload;
use super::zone::Zone;
use super::{Document, Instance, Node, Object};
use crate::task::envelope::{DecodeError, Limits};
use crate::task::json::{self, Json};

/// Whether maps still stand in the order in which the producer wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyOrder {
    /// Yes: references can be resolved.
    #[default]
    Kept,
    /// No: some AMQP clients sort header tables by key. References then become [`Node::Unresolved`].
    Lost,
}

/// Whether a key that begins with `json://` is a document itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyText {
    /// Yes, as girder_worker 5 writes keys of task bodies that are no texts.
    #[default]
    Document,
    /// No: every key is a text, as in result hooks.
    Literal,
}

/// How a document was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The order of its maps.
    pub order: KeyOrder,
    /// The meaning of its keys.
    pub keys: KeyText,
}

/// Decodes the document `json`, found at `path`.
pub fn decode(json: &Json, rules: Rules, path: &str, limits: &Limits) -> Result<Document, DecodeError> {
    let mut decoder = Decoder {
        document: Document { root: Node::Null, objects: Vec::new() },
        rules,
        path: path.to_owned(),
        depth: limits.max_depth,
        nodes: limits.max_nodes,
        limits,
    };
    decoder.document.root = decoder.node(json)?;
    Ok(decoder.document)
}

struct Decoder<'a> {
    document: Document,
    rules: Rules,
    path: String,
    depth: usize,
    nodes: usize,
    limits: &'a Limits,
}

impl Decoder<'_> {
    fn error(&self, reason: impl Into<String>, value: impl Into<String>) -> DecodeError {
        DecodeError::Field { path: self.path.clone(), value: value.into(), reason: reason.into() }
    }

    /// Runs `inner` with `step` appended to the path.
    fn at<T>(
        &mut self,
        step: std::fmt::Arguments<'_>,
        inner: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        use std::fmt::Write as _;
        let length = self.path.len();
        let _ = write!(self.path, "{step}");
        let result = inner(self);
        self.path.truncate(length);
        result
    }

    fn node(&mut self, json: &Json) -> Result<Node, DecodeError> {
        self.depth = self
            .depth
            .checked_sub(1)
            .ok_or_else(|| self.error(format!("nested deeper than {} levels", self.limits.max_depth), ""))?;
        self.nodes = self
            .nodes
            .checked_sub(1)
            .ok_or_else(|| self.error(format!("more than {} values", self.limits.max_nodes), ""))?;
        let node = match json {
            Json::Null => Node::Null,
            Json::Bool(truth) => Node::Bool(*truth),
            Json::Number(number) => Node::Number(number.clone()),
            Json::BigInteger(digits) => Node::BigInteger(digits.clone()),
            Json::NonFinite(number) => Node::NonFinite(*number),
            Json::Text(text) => Node::Text(text.clone()),
            Json::Surrogates(units) => Node::Surrogates(units.clone()),
            Json::List(items) => self.list(items)?,
            Json::Map(entries) => self.map(entries)?,
        };
        self.depth += 1;
        Ok(node)
    }

    /// Gives the next identity away before the value's children are entered.
    fn enter(&mut self) -> usize {
        self.document.objects.push(Object::List(Vec::new()));
        self.document.objects.len() - 1
    }
    fn leave(&mut self, index: usize, object: Object) -> Node {
        self.document.objects[index] = object;
        Node::Shared(index)
    }

    fn list(&mut self, items: &[Json]) -> Result<Node, DecodeError> {
        let index = self.enter();
        let items = self.nodes(items)?;
        Ok(self.leave(index, Object::List(items)))
    }

    fn nodes(&mut self, items: &[Json]) -> Result<Vec<Node>, DecodeError> {
        let mut nodes = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            nodes.push(self.at(format_args!("[{n}]"), |this| this.node(item))?);
        }
        Ok(nodes)
    }

    /// The first tag present wins, in the reader's order.
    fn map(&mut self, entries: &[(String, Json)]) -> Result<Node, DecodeError> {
        let tag = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        if let Some(items) = tag("py/tuple") {
            return Ok(Node::Tuple(self.tagged_items("py/tuple", items)?));
        }
        if let Some(items) = tag("py/set") {
            return Ok(Node::Set(self.tagged_items("py/set", items)?));
        }
        if let Some(text) = tag("py/b64") {
            return self.bytes("py/b64", text, payload::base64);
        }
        if let Some(text) = tag("py/b85") {
            return self.bytes("py/b85", text, payload::base85);
        }
        if let Some(id) = tag("py/id") {
            return self.reference(id);
        }
        if let Some(items) = tag("py/iterator") {
            let index = self.enter();
            let items = self.tagged_items("py/iterator", items)?;
            return Ok(self.leave(index, Object::List(items)));
        }
        if let Some(class) = tag("py/object") {
            let class = self.name("py/object", class)?;
            return self.object(class, entries);
        }
        if let Some(name) = tag("py/type") {
            return self.name("py/type", name).map(Node::Type);
        }
        if let Some(parts) = tag("py/reduce") {
            let index = self.enter();
            let parts = self.tagged_items("py/reduce", parts)?;
            return Ok(self.leave(index, Object::Reduce(parts)));
        }
        if let Some(name) = tag("py/function") {
            return self.name("py/function", name).map(Node::Function);
        }
        for refused in ["py/mod", "py/repr", "py/ref"] {
            if tag(refused).is_some() {
                return Err(self.error(
                    format!("the tag {refused:?} is not decoded: reading it would load code, or it is of a jsonpickle before 0.7"),
                    "",
                ));
            }
        }
        self.dict(entries)
    }

    fn tagged_items(&mut self, tag: &str, items: &Json) -> Result<Vec<Node>, DecodeError> {
        match items {
            Json::List(items) => self.nodes(items),
            other => Err(self.error(format!("the tag {tag:?} must hold a list"), shown(other))),
        }
    }

    fn name(&self, tag: &str, name: &Json) -> Result<String, DecodeError> {
        match name {
            Json::Text(name) => Ok(name.clone()),
            other => Err(self.error(format!("the tag {tag:?} must hold a name"), shown(other))),
        }
    }

    fn bytes(
        &self,
        tag: &str,
        text: &Json,
        read: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<Node, DecodeError> {
        text.text().and_then(read).map(Node::Bytes).ok_or_else(|| {
            self.error(format!("the tag {tag:?} does not hold what its name says"), shown(text))
        })
    }

    fn reference(&self, id: &Json) -> Result<Node, DecodeError> {
        if self.rules.order == KeyOrder::Lost {
            return Ok(Node::Unresolved);
        }
        let known = self.document.objects.len();
        match id {
            Json::Number(number) => number
                .as_u64()
                .and_then(|id| usize::try_from(id).ok())
                .filter(|id| *id < known)
                .map(Node::Shared)
                .ok_or_else(|| {
                    self.error(format!("\"py/id\" must name one of the {known} objects before it"), shown(id))
                }),
            other => Err(self.error("\"py/id\" must be a whole number", shown(other))),
        }
    }

    fn object(&mut self, class: String, entries: &[(String, Json)]) -> Result<Node, DecodeError> {
        let index = self.enter();
        let object = match class.as_str() {
            "datetime.datetime" | "datetime.date" | "datetime.time" => self.clock(&class, entries)?,
            "uuid.UUID" => Object::Uuid(self.entry(entries, "hex", "uuid.UUID")?.to_owned()),
            "re.Pattern" | "_sre.SRE_Pattern" => {
                Object::Pattern(self.entry(entries, "pattern", "re.Pattern")?.to_owned())
            }
            _ => self.instance(class, entries)?,
        };
        Ok(self.leave(index, object))
    }

    fn entry<'e>(
        &self,
        entries: &'e [(String, Json)],
        key: &str,
        class: &str,
    ) -> Result<&'e str, DecodeError> {
        let value = entries.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        value
            .and_then(Json::text)
            .ok_or_else(|| self.error(format!("{class} must have the text {key:?}"), ""))
    }

    /// `"__reduce__": [type, [base64, zone?]]`: the arrays and the type have no identity, the zone may.
    fn clock(&mut self, class: &str, entries: &[(String, Json)]) -> Result<Object, DecodeError> {
        let reduce = entries.iter().find(|(key, _)| key == "__reduce__").and_then(|(_, value)| value.items());
        let Some([_, arguments]) = reduce else {
            return Err(self.error(format!("{class} must have \"__reduce__\" with two elements"), ""));
        };
        let (packed, zone) = match arguments.items() {
            Some([packed]) => (packed, None),
            Some([packed, zone]) => (packed, Some(zone)),
            _ => return Err(self.error(format!("{class} has one or two arguments"), shown(arguments))),
        };
        let zone = match zone {
            None => Zone::Naive,
            Some(zone) => {
                let zone = self.at(format_args!(".tzinfo"), |this| this.node(zone))?;
                Zone::read(&self.document, &zone)
            }
        };
        let bytes = packed.text().and_then(payload::base64).unwrap_or_default();
        let read = match class {
            "datetime.datetime" => payload::datetime(&bytes, &zone).map(Object::DateTime),
            "datetime.date" => payload::date(&bytes).map(Object::Date),
            _ => payload::time(&bytes, &zone).map(Object::Time),
        };
        read.ok_or_else(|| self.error(format!("{class} does not hold the bytes of one"), shown(packed)))
    }

    fn instance(&mut self, class: String, entries: &[(String, Json)]) -> Result<Object, DecodeError> {
        let tag = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let mut instance = Instance { class, ..Instance::default() };
        if let Some(factory) = tag("default_factory") {
            let factory = self.at(format_args!(".default_factory"), |this| this.node(factory))?;
            instance.attributes.push(("default_factory".to_owned(), factory));
        }
        let given = match tag("py/newargsex") {
            Some(pair) => pair.items().unwrap_or_default(),
            None => tag("py/newargs").or(tag("py/initargs")).map_or(&[][..], std::slice::from_ref),
        };
        // Empty ones are never entered by the reader, so they take no identity.
        for arguments in given.iter().filter(|json| !json.items().is_some_and(<[Json]>::is_empty)) {
            instance.arguments.push(self.node(arguments)?);
        }
        for (key, value) in entries {
            if key.starts_with("py/") || key == "default_factory" {
                continue;
            }
            let value = self.at(format_args!(".{key}"), |this| this.node(value))?;
            instance.attributes.push((key.clone(), value));
        }
        if let Some(items) = tag("py/seq") {
            instance.items = self.tagged_items("py/seq", items)?;
        }
        if let Some(state) = tag("py/state") {
            let state = self.node(state)?;
            match (instance.class.as_str(), &state) {
                ("bson.objectid.ObjectId", Node::Bytes(bytes)) => {
                    return <[u8; 12]>::try_from(bytes.as_slice())
                        .map(Object::ObjectId)
                        .map_err(|_| self.error("an ObjectId has 12 bytes", bytes.len().to_string()));
                }
                _ => self.merge(&mut instance, state),
            }
        }
        Ok(Object::Instance(instance))
    }

    /// A state that is a map, or a pair of maps (attributes and slots), is attributes; null is none.
    fn merge(&self, instance: &mut Instance, state: Node) {
        let maps: Vec<&Node> = match &state {
            Node::Null => return,
            Node::Tuple(pair) if pair.len() == 2 => pair.iter().filter(|node| !node.is_null()).collect(),
            other => vec![other],
        };
        let entries: Option<Vec<&[(Node, Node)]>> =
            maps.into_iter().map(|node| self.document.entries(node)).collect();
        match entries {
            Some(maps) if maps.iter().all(|map| map.iter().all(|(key, _)| key.text().is_some())) => {
                let named =
                    maps.into_iter().flatten().map(|(key, value)| (key.text().unwrap_or_default(), value));
                let replaced: HashSet<&str> = named.clone().map(|(name, _)| name).collect();
                instance.attributes.retain(|(name, _)| !replaced.contains(name.as_str()));
                instance.attributes.extend(named.map(|(name, value)| (name.to_owned(), value.clone())));
            }
            _ => instance.state = Some(state),
        }
    }

    /// Plain keys first, then keys that are documents themselves: these share the numbering.
    fn dict(&mut self, entries: &[(String, Json)]) -> Result<Node, DecodeError> {
        const DOCUMENT: &str = "json://";
        let index = self.enter();
        let keys = self.rules.keys;
        let is_document = |key: &str| keys == KeyText::Document && key.starts_with(DOCUMENT);
        let mut decoded = Vec::with_capacity(entries.len());
        for (key, value) in entries.iter().filter(|(key, _)| !is_document(key)) {
            let value = self.at(format_args!(".{key}"), |this| this.node(value))?;
            decoded.push((Node::Text(key.clone()), value));
        }
        for (key, value) in entries.iter().filter(|(key, _)| is_document(key)) {
            let text = &key[DOCUMENT.len()..];
            let limits = Limits { max_nodes: self.nodes, max_depth: self.depth, ..*self.limits };
            let read = json::parse(text.as_bytes(), &limits)
                .map_err(|error| self.error(format!("a key after \"json://\" is no JSON: {error}"), ""))?;
            let (key, value) = self.at(format_args!("[key {}]", decoded.len()), |this| {
                Ok((this.node(&read)?, this.node(value)?))
            })?;
            decoded.push((key, value));
        }
        Ok(self.leave(index, Object::Dict(decoded)))
    }
}

/// Only scalars are shown: a list or map may hold a token.
fn shown(json: &Json) -> String {
    match json {
        Json::List(_) => "a list".to_owned(),
        Json::Map(_) => "a map".to_owned(),
        scalar => crate::task::arg::shown(&scalar.to_value()),
    }
}
