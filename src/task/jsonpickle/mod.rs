//! `jsonpickle` documents as plain data: girder_worker writes task bodies and result hooks in this form.
//!
//! Owns the tree of a document ([`Document`], [`Node`], [`Object`]), its identities and the payloads of the few
//! standard classes. A class name is text here: nothing is looked up, made or called, whatever a document says. What a
//! class means is for the caller (`celery/transform.rs`) to decide, where the value is used.
//!
//! One document is one numbering of objects: a task's body is one, each result hook is another.

mod decode;
mod encode;
mod payload;
mod text;
mod zone;

pub use decode::{KeyOrder, KeyText, Rules, decode};
pub use encode::{EncodeError, encode};
pub use payload::{Date, DateTime, Offset, Time, TimeDelta};

use std::collections::HashMap;

use serde_json::Number;

use super::json::NonFinite;

/// A decoded document: its root, and every object that has an identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The outermost value.
    pub root: Node,
    objects: Vec<Object>,
}

/// One value of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `None`
    Null,
    /// `True` or `False`
    Bool(bool),
    /// An integer of at most 64 bits or a finite float.
    Number(Number),
    /// The digits of an integer beyond 64 bits.
    BigInteger(String),
    /// A float that is no number.
    NonFinite(NonFinite),
    /// A text.
    Text(String),
    /// A text with lone surrogates, as UTF-16.
    Surrogates(Vec<u16>),
    /// A tuple.
    Tuple(Vec<Node>),
    /// A set, in the order of the document.
    Set(Vec<Node>),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A class as a value, by name.
    Type(String),
    /// A function as a value, by name. Never called.
    Function(String),
    /// The object with this index: two nodes with one index are one object.
    Shared(usize),
    /// A reference whose object is not known, because the order of the document was lost on its way.
    Unresolved,
}

/// A value with an identity.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A list.
    List(Vec<Node>),
    /// A dict; keys are texts except where the producer wrote others.
    Dict(Vec<(Node, Node)>),
    /// An instance of a class.
    Instance(Instance),
    /// What `constructor(*arguments)` would give, and the elements of `__reduce__` behind them. Never called.
    Reduce(Vec<Node>),
    /// `datetime.datetime`
    DateTime(DateTime),
    /// `datetime.date`
    Date(Date),
    /// `datetime.time`
    Time(Time),
    /// `bson.objectid.ObjectId`
    ObjectId([u8; 12]),
    /// `uuid.UUID`, its 32 hexadecimal digits.
    Uuid(String),
    /// `re.Pattern`, its text.
    Pattern(String),
}

/// An instance of a class, as data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// The class's full name.
    pub class: String,
    /// Its attributes in the order of the document; the items of a dict subclass stand here too.
    pub attributes: Vec<(String, Node)>,
    /// The items of a list or set subclass.
    pub items: Vec<Node>,
    /// Arguments of its construction, where the producer wrote them.
    pub arguments: Vec<Node>,
    /// A state that is no map of attributes.
    pub state: Option<Node>,
}

impl Instance {
    /// The attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<&Node> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl Document {
    /// A document that holds nothing.
    pub fn new() -> Self {
        Self { root: Node::Null, objects: Vec::new() }
    }
    /// Takes over all of `other`; the node that stands here for its root.
    pub fn adopt(&mut self, other: Document) -> Node {
        let by = self.objects.len();
        let mut further = |node: Node| node.changed(&mut |index| index + by);
        let objects: Vec<Object> =
            other.objects.into_iter().map(|object| object.changed(&mut further)).collect();
        let root = further(other.root);
        self.objects.extend(objects);
        root
    }
    /// A copy of what `node` stands for that shares nothing with it: written beside it, it refers to none of it.
    pub fn copied(&mut self, node: &Node) -> Node {
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut found = Vec::new();
        let next = self.objects.len();
        // No recursion: references may lead as deep as a message is long.
        let mut place = |index: usize, found: &mut Vec<usize>| {
            *places.entry(index).or_insert_with(|| {
                found.push(index);
                next + found.len() - 1
            })
        };
        let copy = node.clone().changed(&mut |index| place(index, &mut found));
        let mut seen = 0;
        while let Some(index) = found.get(seen).copied() {
            let object = self.objects[index].clone();
            let copied = object.changed(&mut |node| node.changed(&mut |index| place(index, &mut found)));
            self.objects.push(copied);
            seen += 1;
        }
        copy
    }
    /// The same with the entries of maps and instances in the order of their names.
    #[must_use]
    pub fn sorted(&self) -> Self {
        let objects = self.objects.iter().cloned().map(Object::sorted).collect();
        Self { root: self.root.clone(), objects }
    }
    /// The object with this index.
    ///
    /// # Panics
    /// When `index` is not of a [`Node::Shared`] of this document.
    pub fn object(&self, index: usize) -> &Object {
        &self.objects[index]
    }
    /// How many objects have an identity.
    pub fn len(&self) -> usize {
        self.objects.len()
    }
    /// Whether no object has an identity.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
    /// Adds an object and gives the node that stands for it.
    pub fn add(&mut self, object: Object) -> Node {
        self.objects.push(object);
        Node::Shared(self.objects.len() - 1)
    }
    /// The object that `node` stands for.
    pub fn shared(&self, node: &Node) -> Option<&Object> {
        match node {
            Node::Shared(index) => self.objects.get(*index),
            _ => None,
        }
    }
    /// The items of a list or tuple.
    pub fn items<'a>(&'a self, node: &'a Node) -> Option<&'a [Node]> {
        match (node, self.shared(node)) {
            (Node::Tuple(items), _) | (_, Some(Object::List(items))) => Some(items),
            _ => None,
        }
    }
    /// The entries of a dict.
    pub fn entries(&self, node: &Node) -> Option<&[(Node, Node)]> {
        match self.shared(node) {
            Some(Object::Dict(entries)) => Some(entries),
            _ => None,
        }
    }
    /// The instance that `node` stands for.
    pub fn instance(&self, node: &Node) -> Option<&Instance> {
        match self.shared(node) {
            Some(Object::Instance(instance)) => Some(instance),
            _ => None,
        }
    }
    /// The value of the text key `key` in a dict or of that attribute in an instance.
    pub fn get(&self, node: &Node, key: &str) -> Option<&Node> {
        match self.shared(node)? {
            Object::Dict(entries) => {
                entries.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
            }
            Object::Instance(instance) => instance.attribute(key),
            _ => None,
        }
    }
    /// What kind of value `node` is, for messages.
    pub fn kind(&self, node: &Node) -> String {
        let known = match node {
            Node::Null => "null",
            Node::Bool(_) => "a boolean",
            Node::Number(_) | Node::BigInteger(_) | Node::NonFinite(_) => "a number",
            Node::Text(_) | Node::Surrogates(_) => "a text",
            Node::Tuple(_) => "a tuple",
            Node::Set(_) => "a set",
            Node::Bytes(_) => "bytes",
            Node::Type(name) => return format!("the class {name}"),
            Node::Function(name) => return format!("the function {name}"),
            Node::Unresolved => "a reference that cannot be resolved",
            Node::Shared(_) => match self.shared(node) {
                Some(Object::List(_)) => "a list",
                Some(Object::Dict(_)) => "a map",
                Some(Object::Instance(instance)) => return instance.class.clone(),
                Some(Object::Reduce(_)) => "a reduced object",
                Some(Object::DateTime(_) | Object::Date(_) | Object::Time(_)) => "a time",
                Some(Object::ObjectId(_)) => "an ObjectId",
                Some(Object::Uuid(_)) => "a UUID",
                Some(Object::Pattern(_)) => "a pattern",
                None => "nothing",
            },
        };
        known.to_owned()
    }
    /// The class called by a reduced object and its arguments, where it is written like that.
    pub fn construction<'a>(&self, parts: &'a [Node]) -> Option<(&'a str, &'a [Node])> {
        match parts {
            [Node::Type(name) | Node::Function(name), Node::Tuple(arguments), ..] => Some((name, arguments)),
            _ => None,
        }
    }
}

impl Default for Document {
    fn default() -> Self {
        Self::new()
    }
}

impl Object {
    /// The object with each node in it changed.
    fn changed(self, change: &mut dyn FnMut(Node) -> Node) -> Self {
        let mut change = |node: Node| change(node);
        match self {
            Self::List(items) => Self::List(items.into_iter().map(change).collect()),
            Self::Dict(entries) => {
                Self::Dict(entries.into_iter().map(|(key, value)| (change(key), change(value))).collect())
            }
            Self::Instance(Instance { class, attributes, items, arguments, state }) => {
                Self::Instance(Instance {
                    class,
                    items: items.into_iter().map(&mut change).collect(),
                    arguments: arguments.into_iter().map(&mut change).collect(),
                    attributes: attributes.into_iter().map(|(name, value)| (name, change(value))).collect(),
                    state: state.map(change),
                })
            }
            Self::Reduce(parts) => Self::Reduce(parts.into_iter().map(change).collect()),
            Self::DateTime(_)
            | Self::Date(_)
            | Self::Time(_)
            | Self::ObjectId(_)
            | Self::Uuid(_)
            | Self::Pattern(_) => self,
        }
    }

    fn sorted(mut self) -> Self {
        match &mut self {
            Self::Dict(entries) => entries.sort_by(|(a, _), (b, _)| a.text().cmp(&b.text())),
            Self::Instance(instance) => instance.attributes.sort_by(|(a, _), (b, _)| a.cmp(b)),
            Self::List(_)
            | Self::Reduce(_)
            | Self::DateTime(_)
            | Self::Date(_)
            | Self::Time(_)
            | Self::ObjectId(_)
            | Self::Uuid(_)
            | Self::Pattern(_) => {}
        }
        self
    }
}

impl Node {
    /// The node with the indices that it holds changed.
    fn changed(self, change: &mut dyn FnMut(usize) -> usize) -> Self {
        match self {
            Self::Shared(index) => Self::Shared(change(index)),
            Self::Tuple(items) => Self::Tuple(items.into_iter().map(|item| item.changed(change)).collect()),
            Self::Set(items) => Self::Set(items.into_iter().map(|item| item.changed(change)).collect()),
            other => other,
        }
    }
    /// The text, if it is one that UTF-8 can express.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
    /// Whether it is `None`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

#[cfg(test)]
mod tests;
