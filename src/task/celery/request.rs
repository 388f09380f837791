//! Which protocol a message speaks, and its three parts: fields, arguments, canvas.

use super::super::jsonpickle::{self, Document, Node, Object, Rules};
use super::{compression, refuse_executable, wrong};
use crate::task::envelope::{ContentType, DecodeError, Limits};
use crate::task::json::{self, Json};
use crate::task::message::RawMessage;

/// A message of either protocol, taken apart.
#[derive(Clone, Debug)]
pub struct Request {
    /// 2, or 1 when the body names the task.
    pub protocol: u8,
    /// The body, in which arguments and canvas share objects.
    pub document: Document,
    /// Positional arguments: a list or tuple.
    pub args: Node,
    /// Named arguments: a dict.
    pub kwargs: Node,
    /// Callbacks, errbacks, chain and chord: a dict.
    pub embed: Node,
    headers: Vec<(String, Json)>,
    body: Vec<(String, Json)>,
}

impl Request {
    /// Takes `message` apart. Its body must be `application/json`, which girder_worker's serializer calls itself, too.
    pub fn read(message: &RawMessage, limits: &Limits) -> Result<Self, DecodeError> {
        content(message)?;
        let bytes = compression::expand(&message.body, message.header("compression"), limits)?;
        let json = json::parse(&bytes, limits).map_err(|error| DecodeError::Malformed {
            format: ContentType::Json,
            reason: error.to_string(),
        })?;
        let mut document =
            jsonpickle::decode(&json, Rules::default(), "body", limits).map_err(parts_by_name)?;
        let named = message.header("task").is_some();
        let (args, kwargs, embed) = match (named, document.items(&document.root)) {
            (true, Some([args, kwargs, embed])) => (args.clone(), kwargs.clone(), embed.clone()),
            (true, Some(items)) => {
                return Err(wrong(
                    "body",
                    &format!("must be [args, kwargs, embed], and has {} items", items.len()),
                ));
            }
            (true, None) if document.get(&document.root, "args").is_some() => split(&mut document),
            (false, _) if document.get(&document.root, "task").is_some_and(|task| task.text().is_some()) => {
                split(&mut document)
            }
            (true, None) => {
                return Err(wrong("body", "must be [args, kwargs, embed], or a map with \"args\""));
            }
            (false, _) => {
                return Err(wrong(
                    "task",
                    "is missing: name the task in the headers, or in a map as the body",
                ));
            }
        };
        let body = fields(&document);
        let protocol = if named { 2 } else { 1 };
        let headers = if named { message.headers.clone() } else { Vec::new() };
        let request = Self { protocol, document, args, kwargs, embed, headers, body };
        request.check()?;
        Ok(request)
    }

    /// A field of the protocol; null counts as none. Headers win over the body.
    pub fn field(&self, name: &str) -> Option<&Json> {
        let find = |entries: &'_ [(String, Json)]| entries.iter().position(|(key, _)| key == name);
        let found = match find(&self.headers) {
            Some(n) => Some(&self.headers[n].1),
            None => find(&self.body).map(|n| &self.body[n].1),
        };
        found.filter(|json| !json.is_null())
    }

    /// Whether the field stands there, even as null.
    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().chain(&self.body).any(|(key, _)| key == name)
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.document.items(&self.args).is_none() {
            return Err(wrong("args", &format!("must be a list, and is {}", self.document.kind(&self.args))));
        }
        if self.document.entries(&self.kwargs).is_none() {
            return Err(wrong(
                "kwargs",
                &format!("must be a map of named arguments, and is {}", self.document.kind(&self.kwargs)),
            ));
        }
        if !self.embed.is_null() && self.document.entries(&self.embed).is_none() {
            return Err(wrong(
                "embed",
                &format!("must be a map, and is {}", self.document.kind(&self.embed)),
            ));
        }
        Ok(())
    }
}

/// A missing content type is refused, because Celery's producers always give one: what comes without is something else.
fn content(message: &RawMessage) -> Result<(), DecodeError> {
    refuse_executable(message.content_type.as_deref())?;
    let refused = |path: &str, value: Option<&String>, reason: &str| DecodeError::Field {
        path: path.to_owned(),
        value: value.map_or_else(String::new, |text| format!("{text:?}")),
        reason: reason.to_owned(),
    };
    let essence = |text: &String| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match message.content_type.as_ref().map(essence).as_deref() {
        Some("application/json") => {}
        _ => {
            return Err(refused(
                "content_type",
                message.content_type.as_ref(),
                "must be application/json: set task_serializer = \"json\" in the producer",
            ));
        }
    }
    match message.content_encoding.as_ref().map(essence).as_deref() {
        None | Some("" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "binary") => Ok(()),
        Some(_) => Err(refused("content_encoding", message.content_encoding.as_ref(), "must be utf-8")),
    }
}

/// The three items of a body have names.
fn parts_by_name(error: DecodeError) -> DecodeError {
    match error {
        DecodeError::Field { path, value, reason } => {
            let named = [("body[0]", "args"), ("body[1]", "kwargs"), ("body[2]", "embed")];
            let renamed = named
                .iter()
                .find_map(|(position, name)| path.strip_prefix(position).map(|rest| format!("{name}{rest}")));
            DecodeError::Field { path: renamed.unwrap_or(path), value, reason }
        }
        other => other,
    }
}

/// The scalar fields of a map as the body, and its pairs of scalars, which may be lists or tuples.
fn fields(document: &Document) -> Vec<(String, Json)> {
    let scalar = |node: &Node| match node {
        Node::Null => Some(Json::Null),
        Node::Bool(truth) => Some(Json::Bool(*truth)),
        Node::Number(number) => Some(Json::Number(number.clone())),
        Node::Text(text) => Some(Json::Text(text.clone())),
        _ => None,
    };
    let field = |node: &Node| match document.items(node) {
        Some(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>().map(Json::List),
        None => scalar(node),
    };
    let entries = document.entries(&document.root).unwrap_or_default();
    entries.iter().filter_map(|(key, node)| Some((key.text()?.to_owned(), field(node)?))).collect()
}

/// The parts of a map as the body: protocol 1, or protocol 2's headers over it.
fn split(document: &mut Document) -> (Node, Node, Node) {
    let part = |document: &Document, name: &str| document.get(&document.root, name).cloned();
    let args = part(document, "args").unwrap_or(Node::Tuple(Vec::new()));
    let kwargs = part(document, "kwargs").unwrap_or_else(|| document.add(Object::Dict(Vec::new())));
    let embed = ["callbacks", "errbacks", "chord", "chain"]
        .map(|name| (Node::Text(name.to_owned()), part(document, name).unwrap_or(Node::Null)));
    let embed = document.add(Object::Dict(embed.into()));
    (args, kwargs, embed)
}
