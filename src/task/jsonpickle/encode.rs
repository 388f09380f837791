//! From a [`Document`] back to JSON, numbered anew: parts of one message travel on as a document of their own.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::payload::{Date, DateTime, Offset, Time, TimeDelta};
use super::{Document, Instance, Node, Object};
use crate::task::json::Json;

/// Why a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Too deep once references are followed.
    #[error("the value is nested deeper than {0} levels")]
    Deep(usize),
    /// A reference without its object, a zone of a foreign class, an instance made from arguments, or a signature with a state of its own.
    #[error("the value holds a reference, time zone or instance that is not known here")]
    Unknown,
    /// A document of its own as the key of a map, or a name that jsonpickle would read as its own.
    #[error("a map or instance in the value has a key that is no text, or that only jsonpickle may use")]
    Key,
}

const MOST_DEPTH: usize = 128;

/// Writes `node` as a document of its own, whose numbering starts with it. Keys of maps must be texts.
pub fn encode(document: &Document, node: &Node) -> Result<Json, EncodeError> {
    let mut encoder = Encoder { document, ids: HashMap::new(), next: 0, depth: 0 };
    encoder.node(node)
}

struct Encoder<'a> {
    document: &'a Document,
    /// New identities of the objects already written, by their index.
    ids: HashMap<usize, u64>,
    next: u64,
    depth: usize,
}

impl Encoder<'_> {
    fn node(&mut self, node: &Node) -> Result<Json, EncodeError> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(EncodeError::Deep(MOST_DEPTH));
        }
        let json = match node {
            Node::Null => Json::Null,
            Node::Bool(truth) => Json::Bool(*truth),
            Node::Number(number) => Json::Number(number.clone()),
            Node::BigInteger(digits) => Json::BigInteger(digits.clone()),
            Node::NonFinite(number) => Json::NonFinite(*number),
            Node::Text(text) => Json::Text(text.clone()),
            Node::Surrogates(units) => Json::Surrogates(units.clone()),
            Node::Tuple(items) => tagged("py/tuple", Json::List(self.nodes(items)?)),
            Node::Set(items) => tagged("py/set", Json::List(self.nodes(items)?)),
            Node::Bytes(bytes) => tagged("py/b64", Json::Text(STANDARD.encode(bytes))),
            Node::Type(name) => tagged("py/type", Json::Text(name.clone())),
            Node::Function(name) => tagged("py/function", Json::Text(name.clone())),
            Node::Unresolved => return Err(EncodeError::Unknown),
            Node::Shared(index) => {
                if let Some(id) = self.ids.get(index) {
                    tagged("py/id", Json::Number((*id).into()))
                } else {
                    self.enter(*index);
                    self.object(self.document.object(*index))?
                }
            }
        };
        self.depth -= 1;
        Ok(json)
    }

    fn enter(&mut self, index: usize) {
        self.ids.insert(index, self.next);
        self.next += 1;
    }

    fn nodes(&mut self, items: &[Node]) -> Result<Vec<Json>, EncodeError> {
        items.iter().map(|item| self.node(item)).collect()
    }

    fn object(&mut self, object: &Object) -> Result<Json, EncodeError> {
        Ok(match object {
            Object::List(items) => Json::List(self.nodes(items)?),
            Object::Dict(entries) => {
                let mut written = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let key = key.text().ok_or(EncodeError::Key)?.to_owned();
                    if is_reserved(&key) {
                        return Err(EncodeError::Key);
                    }
                    written.push((key, self.node(value)?));
                }
                Json::Map(written)
            }
            Object::Instance(instance) => self.instance(instance)?,
            Object::Reduce(parts) => tagged("py/reduce", Json::List(self.nodes(parts)?)),
            Object::DateTime(DateTime { date, time }) => self.clock(
                "datetime.datetime",
                &[date_bytes(*date), time_bytes(*time)].concat(),
                time.offset,
            )?,
            Object::Date(date) => self.clock("datetime.date", &date_bytes(*date), Offset::Naive)?,
            Object::Time(time) => self.clock("datetime.time", &time_bytes(*time), time.offset)?,
            Object::ObjectId(bytes) => instance(
                "bson.objectid.ObjectId",
                "py/state",
                tagged("py/b64", Json::Text(STANDARD.encode(bytes))),
            ),
            Object::Uuid(digits) => instance("uuid.UUID", "hex", Json::Text(digits.clone())),
            Object::Pattern(text) => instance("re.Pattern", "pattern", Json::Text(text.clone())),
        })
    }

    /// A signature of Celery is a map; what it keeps in `__dict__` is its application. One with more than a map can hold is
    /// none of Celery's making, and nothing of it is dropped unsaid.
    fn instance(&mut self, instance: &Instance) -> Result<Json, EncodeError> {
        if !instance.arguments.is_empty() {
            return Err(EncodeError::Unknown);
        }
        if instance.class.starts_with("celery.canvas.") {
            if !instance.items.is_empty() || instance.state.is_some() {
                return Err(EncodeError::Unknown);
            }
            let items = instance.attributes.iter().filter(|(key, _)| key != "__dict__");
            if items.clone().any(|(key, _)| is_reserved(key)) {
                return Err(EncodeError::Key);
            }
            let written: Result<Vec<_>, _> =
                items.map(|(key, value)| Ok((key.clone(), self.node(value)?))).collect();
            return written.map(Json::Map);
        }
        let mut written = vec![("py/object".to_owned(), Json::Text(instance.class.clone()))];
        for (n, (key, value)) in instance.attributes.iter().enumerate() {
            // A state may have brought any name. A reader takes a factory before all others, so it cannot follow them.
            if key.starts_with("py/") || (key == "default_factory" && n > 0) {
                return Err(EncodeError::Key);
            }
            written.push((key.clone(), self.node(value)?));
        }
        if !instance.items.is_empty() {
            written.push(("py/seq".to_owned(), Json::List(self.nodes(&instance.items)?)));
        }
        if let Some(state) = &instance.state {
            written.push(("py/state".to_owned(), self.node(state)?));
        }
        Ok(Json::Map(written))
    }

    fn clock(&mut self, class: &str, bytes: &[u8], offset: Offset) -> Result<Json, EncodeError> {
        let mut arguments = vec![Json::Text(STANDARD.encode(bytes))];
        match offset {
            Offset::Naive => {}
            Offset::Foreign => return Err(EncodeError::Unknown),
            Offset::Fixed(TimeDelta { days, seconds, microseconds }) => {
                // The zone and its difference are two objects, which no other value refers to.
                self.next += 2;
                let numbers = [days, seconds, microseconds].map(|number| Json::Number(number.into()));
                let delta = reduce("datetime.timedelta", numbers.into());
                arguments.push(reduce("datetime.timezone", vec![delta]));
            }
        }
        let class_node = tagged("py/type", Json::Text(class.to_owned()));
        Ok(instance(class, "__reduce__", Json::List(vec![class_node, Json::List(arguments)])))
    }
}

/// Whether a map cannot have this key, because a reader takes it for a tag or for a document.
fn is_reserved(key: &str) -> bool {
    key.starts_with("json://") || key.starts_with("py/")
}

fn tagged(tag: &str, value: Json) -> Json {
    Json::Map(vec![(tag.to_owned(), value)])
}

fn instance(class: &str, key: &str, value: Json) -> Json {
    Json::Map(vec![("py/object".to_owned(), Json::Text(class.to_owned())), (key.to_owned(), value)])
}

fn reduce(class: &str, arguments: Vec<Json>) -> Json {
    let class = tagged("py/type", Json::Text(class.to_owned()));
    tagged("py/reduce", Json::List(vec![class, tagged("py/tuple", Json::List(arguments))]))
}

fn date_bytes(date: Date) -> Vec<u8> {
    let [high, low] = date.year.to_be_bytes();
    vec![high, low, date.month, date.day]
}

fn time_bytes(time: Time) -> Vec<u8> {
    let [_, a, b, c] = time.microsecond.to_be_bytes();
    vec![time.hour, time.minute, time.second, a, b, c]
}
