//! From a document's values to arguments.
//!
//! What JSON cannot hold becomes the text that Python's `str` gives, because that is what a container argument or an
//! environment variable would have become; what has no such text is refused, with its place and its class.

use std::cell::Cell;
use std::collections::HashSet;

use super::super::jsonpickle::{Document, Node, Object};
use super::volume::{Part, Volumes};
use crate::task::envelope::{DecodeError, Limits};
use crate::task::transform::nearest;
use crate::task::{Arg, ArgMap, TransformSpec};

/// Modules of docker-py whose classes are dicts.
const DOCKER_TYPES: [&str; 4] = [
    "docker.types.containers.",
    "docker.types.healthcheck.",
    "docker.types.networks.",
    "docker.types.services.",
];

/// What the values of one message may still unfold to: shared ones are written out at each mention.
pub(super) struct Budget {
    values: Cell<usize>,
    bytes: Cell<usize>,
    limits: Limits,
}

impl Budget {
    /// As much as a message may hold that shares nothing.
    pub(super) fn new(limits: &Limits) -> Self {
        Self { values: Cell::new(limits.max_nodes), bytes: Cell::new(limits.max_bytes), limits: *limits }
    }
    /// Lists, maps and transforms inside each other; the envelope around the arguments needs some levels, too.
    fn depth(&self) -> usize {
        self.limits.max_depth.saturating_sub(8)
    }
}

/// Reads the values of one document.
pub(super) struct Reader<'a> {
    pub(super) document: &'a Document,
    pub(super) volumes: &'a mut Volumes,
    pub(super) part: Part,
    /// The objects being read: one met again refers to itself.
    pub(super) open: Vec<usize>,
    budget: &'a Budget,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        document: &'a Document,
        volumes: &'a mut Volumes,
        part: Part,
        budget: &'a Budget,
    ) -> Self {
        Self { document, volumes, part, open: Vec::new(), budget }
    }

    /// One element of `container_args`: lists and maps become text at once, unless transforms stand in them.
    pub(super) fn container_argument(&mut self, node: &Node, path: &str) -> Result<Arg, DecodeError> {
        let nested = match node {
            Node::Tuple(_) | Node::Set(_) => true,
            _ => matches!(
                self.document.shared(node),
                Some(Object::List(_) | Object::Dict(_) | Object::Reduce(_))
            ),
        };
        if nested
            && !holds_instance(self.document, node, &mut HashSet::new())
            && let Ok(text) = self.document.python_str(node)
        {
            return self.counted(text, path).map(Arg::Text);
        }
        self.argument(node, path)
    }

    /// Any other value.
    pub(super) fn argument(&mut self, node: &Node, path: &str) -> Result<Arg, DecodeError> {
        self.count(path)?;
        match node {
            Node::Null => Ok(Arg::Null),
            Node::Bool(truth) => Ok(Arg::Bool(*truth)),
            Node::Number(number) => Ok(Arg::Number(number.clone())),
            Node::Text(text) => {
                self.fits(text.len(), path)?;
                Ok(Arg::Text(text.clone()))
            }
            Node::Tuple(items) | Node::Set(items) => self.list(items, path),
            Node::BigInteger(_) | Node::NonFinite(_) | Node::Bytes(_) => {
                self.printed(node, path).map(Arg::Text)
            }
            Node::Surrogates(units) => Err(unusable(
                path,
                format!("{:?}", String::from_utf16_lossy(units)),
                "the text holds a lone surrogate, which no container can be given: send valid Unicode",
            )),
            Node::Type(name) if is_standard(name) => self
                .document
                .python_str(node)
                .map(Arg::Text)
                .map_err(|error| unusable(path, name.clone(), &error.to_string())),
            Node::Type(name) => Err(foreign(path, name)),
            Node::Function(name) => Err(foreign_function(path, name)),
            Node::Unresolved => Err(unresolved(path)),
            Node::Shared(index) => self.shared(*index, node, path),
        }
    }

    fn shared(&mut self, index: usize, node: &Node, path: &str) -> Result<Arg, DecodeError> {
        let document = self.document;
        let object = document.object(index);
        if self.open.contains(&index) {
            // As Python prints a list or map inside itself.
            return match object {
                Object::Dict(_) => Ok(Arg::Text("{...}".to_owned())),
                Object::List(_) => Ok(Arg::Text("[...]".to_owned())),
                _ => Err(unusable(path, String::new(), "refers to itself: send each value once")),
            };
        }
        self.open.push(index);
        let arg = match object {
            Object::List(items) => self.list(items, path)?,
            Object::Dict(entries) => self.map(entries.iter().map(|(key, value)| (key, value)), path)?,
            Object::Instance(instance) => match instance.class.as_str() {
                "collections.defaultdict" | "collections.OrderedDict" | "collections.Counter" => {
                    let items = instance.attributes.iter().filter(|(key, _)| key != "default_factory");
                    let items: Vec<(Node, &Node)> =
                        items.map(|(key, value)| (Node::Text(key.clone()), value)).collect();
                    self.map(items.iter().map(|(key, value)| (key, *value)), path)?
                }
                // docker-py's own: maps in the words of the engine.
                class if DOCKER_TYPES.iter().any(|module| class.starts_with(module)) => {
                    let items = instance.attributes.iter().filter(|(key, _)| key != "__dict__");
                    let items: Vec<(Node, &Node)> =
                        items.map(|(key, value)| (Node::Text(key.clone()), value)).collect();
                    self.map(items.iter().map(|(key, value)| (key, *value)), path)?
                }
                "builtins.bytearray" => Arg::Text(self.printed(node, path)?),
                _ => self.transform(node, path)?.into(),
            },
            Object::Pattern(_) => Arg::Text(self.printed(node, path)?),
            Object::Reduce(parts) => self.reduced(parts, node, path)?,
            Object::DateTime(_)
            | Object::Date(_)
            | Object::Time(_)
            | Object::ObjectId(_)
            | Object::Uuid(_) => match document.plain_text(node) {
                Some(text) => Arg::Text(self.counted(text, path)?),
                None => {
                    return Err(unusable(path, document.kind(node), "cannot be an argument: send a text"));
                }
            },
        };
        self.open.pop();
        Ok(arg)
    }

    /// Its text as Python prints it.
    fn printed(&self, node: &Node, path: &str) -> Result<String, DecodeError> {
        let text = self.document.python_str(node);
        text.map_err(|error| unusable(path, String::new(), &error.to_string()))
            .and_then(|text| self.counted(text, path))
    }

    /// `path` is where the list stands.
    pub(super) fn list(&mut self, items: &[Node], path: &str) -> Result<Arg, DecodeError> {
        let read = items.iter().enumerate().map(|(n, item)| self.argument(item, &format!("{path}[{n}]")));
        read.collect::<Result<_, _>>().map(Arg::List)
    }

    fn map<'n>(
        &mut self,
        entries: impl Iterator<Item = (&'n Node, &'n Node)>,
        path: &str,
    ) -> Result<Arg, DecodeError> {
        let mut map = ArgMap::new();
        for (key, value) in entries {
            let key = self
                .document
                .python_str(key)
                .map_err(|error| unusable(path, String::new(), &format!("a key of the map: {error}")))?;
            self.fits(key.len(), path)?;
            if key == "$" {
                return Err(unusable(
                    path,
                    String::new(),
                    "the map has the key \"$\", which names transforms",
                ));
            }
            let value = self.argument(value, &format!("{path}.{key}"))?;
            if map.insert(key.clone(), value).is_some() {
                return Err(unusable(path, format!("{key:?}"), "two keys of the map have the same text"));
            }
        }
        Ok(Arg::Map(map))
    }

    /// The few constructions that are plain data; nothing is constructed.
    fn reduced(&mut self, parts: &[Node], node: &Node, path: &str) -> Result<Arg, DecodeError> {
        let document = self.document;
        if let Some(text) = document.plain_text(node) {
            return self.counted(text, path).map(Arg::Text);
        }
        match (document.construction(parts), parts) {
            (Some(("collections.OrderedDict" | "collections.defaultdict", _)), [_, _, rest @ ..]) => {
                let pairs = rest.get(2).and_then(|pairs| document.items(pairs)).unwrap_or_default();
                let pairs: Option<Vec<(&Node, &Node)>> = pairs
                    .iter()
                    .map(|pair| match document.items(pair) {
                        Some([key, value]) => Some((key, value)),
                        _ => None,
                    })
                    .collect();
                let pairs = pairs.ok_or_else(|| unusable(path, String::new(), "must hold pairs"))?;
                self.map(pairs.into_iter(), path)
            }
            (Some(("collections.Counter", [counts])), _) => self.argument(counts, path),
            (Some(("builtins.frozenset" | "builtins.set" | "builtins.iter", [items])), _)
            | (Some(("collections.deque", _)), [_, _, _, items, ..]) => {
                self.list(document.items(items).unwrap_or_default(), path)
            }
            (Some(("builtins.range", arguments)), _) => self.range(arguments, path),
            _ => Err(construction(path, parts)),
        }
    }

    /// `range(start, stop, step)` as the list that it counts.
    fn range(&self, arguments: &[Node], path: &str) -> Result<Arg, DecodeError> {
        let number = |node: &Node| match node {
            Node::Number(number) => number.as_i64(),
            _ => None,
        };
        let wrong =
            || unusable(path, String::new(), "must be a range of whole numbers with a step that is not 0");
        let numbers: Option<Vec<i64>> = arguments.iter().map(number).collect();
        let Some([start, stop, step]) = numbers.as_deref() else { return Err(wrong()) };
        if *step == 0 {
            return Err(wrong());
        }
        let mut list = Vec::new();
        let mut at = *start;
        while (*step > 0 && at < *stop) || (*step < 0 && at > *stop) {
            self.count(path)?;
            list.push(Arg::Number(at.into()));
            let Some(next) = at.checked_add(*step) else { break };
            at = next;
        }
        Ok(Arg::List(list))
    }

    /// Takes the room of a text.
    fn fits(&self, bytes: usize, path: &str) -> Result<(), DecodeError> {
        let left = self.budget.bytes.get().checked_sub(bytes);
        self.budget.bytes.set(left.ok_or_else(|| {
            let reason = format!("unfolds to more than {} bytes of text", self.budget.limits.max_bytes);
            unusable(path, String::new(), &reason)
        })?);
        Ok(())
    }

    /// A text whose room was taken.
    pub(super) fn counted(&self, text: String, path: &str) -> Result<String, DecodeError> {
        self.fits(text.len(), path).map(|()| text)
    }

    /// Takes the room of a value.
    pub(super) fn count(&self, path: &str) -> Result<(), DecodeError> {
        let most = self.budget.depth();
        if self.open.len() > most {
            let reason = format!("nested deeper than {most} levels, references followed");
            return Err(unusable(path, String::new(), &reason));
        }
        let left = self.budget.values.get().checked_sub(1);
        self.budget.values.set(left.ok_or_else(|| {
            let reason = format!("unfolds to more than {} values", self.budget.limits.max_nodes);
            unusable(path, String::new(), &reason)
        })?);
        Ok(())
    }
}

/// A refusal of a value that was understood.
pub(super) fn unusable(path: &str, value: String, reason: &str) -> DecodeError {
    DecodeError::Unusable { path: path.to_owned(), value, reason: reason.to_owned() }
}

/// Whether a class is one of Python's own for plain data: every reader knows it, though no argument can hold it.
fn is_standard(class: &str) -> bool {
    let module = class.rsplit_once('.').map_or("", |(module, _)| module);
    matches!(
        module,
        "builtins"
            | "collections"
            | "datetime"
            | "decimal"
            | "fractions"
            | "pathlib"
            | "array"
            | "re"
            | "uuid"
    )
}

/// A refusal of a class that has no row here: poison, unless it is one of Python's own.
pub(super) fn foreign(path: &str, class: &str) -> DecodeError {
    if is_standard(class) {
        return unusable(path, class.to_owned(), "cannot be an argument: send a text, number, list or map");
    }
    foreign_function(path, class)
}

/// A refusal of what would be called.
pub(super) fn foreign_function(path: &str, name: &str) -> DecodeError {
    let short = name.rsplit('.').next().unwrap_or_default();
    let near = nearest(short, TransformSpec::NAMES.iter().copied());
    DecodeError::Class {
        path: path.to_owned(),
        name: name.to_owned(),
        nearest: near.filter(|near| near != short),
    }
}

/// A refusal of what would be constructed or called (`py/reduce`).
pub(super) fn construction(path: &str, parts: &[Node]) -> DecodeError {
    match parts {
        [Node::Type(name), ..] => foreign(path, name),
        [Node::Function(name), ..] => foreign_function(path, name),
        _ => foreign_function(path, "a construction (py/reduce)"),
    }
}

/// A refusal of a reference whose object cannot be told.
pub(super) fn unresolved(path: &str) -> DecodeError {
    unusable(
        path,
        String::new(),
        "refers to another object of a header, and the order of that header was lost on its way",
    )
}

/// Whether a list or map holds an instance anywhere; `seen` keeps the walk linear.
fn holds_instance(document: &Document, node: &Node, seen: &mut HashSet<usize>) -> bool {
    match node {
        Node::Tuple(items) | Node::Set(items) => {
            items.iter().any(|item| holds_instance(document, item, seen))
        }
        // Deeper ones are refused by whoever reads them.
        Node::Shared(index) if seen.len() < 100_000 && seen.insert(*index) => match document.object(*index) {
            Object::List(items) => items.iter().any(|item| holds_instance(document, item, seen)),
            Object::Dict(entries) => entries.iter().any(|(_, value)| holds_instance(document, value, seen)),
            Object::Instance(_) => true,
            _ => false,
        },
        _ => false,
    }
}
