//! The arguments of the tasks that are ours: Python's positions and keywords, as the named arguments of `docker_run`; those
//! of longshore's own probe stay as they are.
//!
//! Written by [`arguments`]: `image`, `pull` (`always`, `missing` or `never`), `entrypoint` (a list), `container_args` (a
//! list), `volumes` (a map in docker-py's form, or a list of volumes), `remove_container`, `stream_connectors` (a
//! list), `options` (every other keyword), and for slicer_cli_web [`STDOUT_FILTER`].
//!
//! # Decisions
//! `volumes` may stand in its position, which the Python worker answers with a TypeError: its meaning is plain.

use super::super::jsonpickle::{Node, Object};
use super::Request;
use super::value::{Budget, Reader, unusable};
use super::volume::{Part, Volumes};
use crate::task::envelope::DecodeError;
use crate::task::{Arg, ArgMap};

/// How a task's arguments are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// `docker_run(image, pull_image=True, entrypoint=None, container_args=None, volumes=None, remove_container=True, **kwargs)`
    DockerRun,
    /// `ping(payload=None, **kwargs)`: longshore's own probe, which does nothing or as its arguments say.
    Ping,
    /// `run(**kwargs)` of slicer_cli_web: the same keywords, and progress tags in the container's standard output.
    DirectDockerRun,
}

impl Callee {
    /// The task kind that runs it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::DockerRun | Self::DirectDockerRun => "docker_run",
            Self::Ping => "longshore.ping",
        }
    }
}

/// The argument that names a filter for the container's standard output.
pub const STDOUT_FILTER: &str = "stdout_filter";
/// Its value for slicer_cli_web: `<filter-…>` tags become progress and are taken out.
pub const SLICER_PROGRESS: &str = "slicer_progress";

const POSITIONS: &[&str] =
    &["image", "pull_image", "entrypoint", "container_args", "volumes", "remove_container"];
/// Keywords that girder_worker drops, because it sets them itself.
const DROPPED: &[&str] = &["tty", "detach"];

/// Reads the arguments of `request` as `callee` would.
pub(super) fn arguments(
    request: &Request,
    callee: Callee,
    volumes: &mut Volumes,
    budget: &Budget,
) -> Result<ArgMap, DecodeError> {
    let document = &request.document;
    let mut call =
        Call { given: named(request, callee)?, reader: Reader::new(document, volumes, Part::Body, budget) };
    let mut args = ArgMap::new();
    if callee == Callee::Ping {
        for Given { name, path, node } in std::mem::take(&mut call.given) {
            args.insert(name, call.reader.argument(node, &path)?);
        }
        return Ok(args);
    }
    args.insert("image".to_owned(), call.image()?);
    args.insert("pull".to_owned(), call.pull());
    call.entrypoint()?.map(|arg| args.insert("entrypoint".to_owned(), arg));
    call.container_args()?.map(|arg| args.insert("container_args".to_owned(), arg));
    call.volumes()?.map(|arg| args.insert("volumes".to_owned(), arg));
    let remove = call.take("remove_container").is_none_or(|(_, node)| call.truth(node));
    args.insert("remove_container".to_owned(), Arg::Bool(remove));
    call.stream_connectors()?.map(|arg| args.insert("stream_connectors".to_owned(), arg));
    let options = call.options()?;
    if !options.is_empty() {
        args.insert("options".to_owned(), Arg::Map(options));
    }
    if callee == Callee::DirectDockerRun {
        args.insert(STDOUT_FILTER.to_owned(), Arg::Text(SLICER_PROGRESS.to_owned()));
    }
    Ok(args)
}

/// One argument as it was given.
struct Given<'a> {
    name: String,
    path: String,
    node: &'a Node,
}

/// Every argument by name; positions first, as Python binds them.
fn named(request: &Request, callee: Callee) -> Result<Vec<Given<'_>>, DecodeError> {
    let document = &request.document;
    let positional = document.items(&request.args).unwrap_or_default();
    let positions = match callee {
        Callee::DockerRun => POSITIONS,
        Callee::Ping => &["payload"],
        Callee::DirectDockerRun => &[],
    };
    if positional.len() > positions.len() {
        let reason = format!(
            "{} positional arguments are too many, the most is {}: send keywords",
            positional.len(),
            positions.len()
        );
        return Err(unusable("args", String::new(), &reason));
    }
    let mut given: Vec<Given<'_>> = positional
        .iter()
        .zip(positions)
        .enumerate()
        .map(|(n, (node, name))| Given { name: (*name).to_owned(), path: format!("args[{n}]"), node })
        .collect();
    for (key, node) in document.entries(&request.kwargs).unwrap_or_default() {
        let Some(name) = key.text() else {
            return Err(unusable("kwargs", document.kind(key), "every keyword must be a text"));
        };
        if given.iter().take(positional.len()).any(|taken| taken.name == name) {
            let path = format!("kwargs.{name}");
            return Err(unusable(&path, String::new(), "stands among the positional arguments, too"));
        }
        given.push(Given { name: name.to_owned(), path: format!("kwargs.{name}"), node });
    }
    Ok(given)
}

struct Call<'a> {
    given: Vec<Given<'a>>,
    reader: Reader<'a>,
}

impl<'a> Call<'a> {
    /// The argument called `name`, unless it is null, which is every parameter's way to be left out.
    fn take(&mut self, name: &str) -> Option<(String, &'a Node)> {
        let n = self.given.iter().position(|given| given.name == name)?;
        let Given { path, node, .. } = self.given.remove(n);
        (!node.is_null()).then_some((path, node))
    }

    fn image(&mut self) -> Result<Arg, DecodeError> {
        let remedy = "must be the name of an image, such as busybox:latest";
        match self.take("image") {
            Some((_, Node::Text(image))) if !image.is_empty() => Ok(Arg::Text(image.clone())),
            Some((path, node)) => Err(unusable(&path, self.reader.document.kind(node), remedy)),
            None => Err(unusable("image", String::new(), remedy)),
        }
    }

    /// What is true pulls always, what is false (and null, when it is given) never; `if-not-present` is
    /// slicer_cli_web's.
    fn pull(&mut self) -> Arg {
        let null = self.given.iter().any(|given| given.name == "pull_image" && given.node.is_null());
        let word = match self.take("pull_image") {
            None if null => "never",
            None => "always",
            Some((_, Node::Text(word))) if word == "if-not-present" || word == "missing" => "missing",
            Some((_, Node::Text(word))) if word == "never" => "never",
            Some((_, node)) if self.truth(node) => "always",
            Some(_) => "never",
        };
        word.into()
    }

    /// One that is no list is a list of one.
    fn entrypoint(&mut self) -> Result<Option<Arg>, DecodeError> {
        let Some((path, node)) = self.take("entrypoint") else { return Ok(None) };
        match self.reader.document.items(node) {
            Some(items) => self.reader.list(items, &path).map(Some),
            None => Ok(Some(Arg::List(vec![self.reader.argument(node, &path)?]))),
        }
    }

    /// A text is a sequence of its characters, as Python iterates over it.
    fn container_args(&mut self) -> Result<Option<Arg>, DecodeError> {
        let Some((path, node)) = self.take("container_args") else { return Ok(None) };
        let keys: Vec<Node>;
        let document = self.reader.document;
        let items: &[Node] = match (node, document.items(node)) {
            (Node::Text(text), _) => {
                return Ok(Some(Arg::List(text.chars().map(|c| Arg::Text(c.to_string())).collect())));
            }
            (Node::Set(items), _) => items,
            (_, Some(items)) => items,
            _ if !self.truth(node) => &[],
            _ => match (document.entries(node), document.shared(node)) {
                // Python iterates over a map's keys.
                (Some(entries), _) => {
                    keys = entries.iter().map(|(key, _)| key.clone()).collect();
                    &keys
                }
                (None, Some(Object::Reduce(_))) => return self.sequence(node, &path).map(Some),
                _ => return Err(unusable(&path, document.kind(node), "must be a list")),
            },
        };
        let read = items
            .iter()
            .enumerate()
            .map(|(n, item)| self.reader.container_argument(item, &format!("{path}[{n}]")));
        read.collect::<Result<_, _>>().map(|args| Some(Arg::List(args)))
    }

    /// What is no list and is iterated over like one.
    fn sequence(&mut self, node: &Node, path: &str) -> Result<Arg, DecodeError> {
        match self.reader.argument(node, path)? {
            list @ Arg::List(_) => Ok(list),
            other => Err(unusable(path, other.kind().to_owned(), "must be a list")),
        }
    }

    /// docker-py's map, or a list of volume objects (texts in docker-py's form are passed on).
    fn volumes(&mut self) -> Result<Option<Arg>, DecodeError> {
        let Some((path, node)) = self.take("volumes") else { return Ok(None) };
        let document = self.reader.document;
        match (document.items(node), document.shared(node)) {
            (Some(items), _) => {
                let mut volumes = Vec::with_capacity(items.len());
                for (n, item) in items.iter().enumerate() {
                    let path = format!("{path}[{n}]");
                    volumes.push(match item {
                        item @ Node::Text(_) => self.reader.argument(item, &path)?,
                        item => self.reader.volume_argument(item, &path)?,
                    });
                }
                Ok(Some(Arg::List(volumes)))
            }
            (None, Some(Object::Dict(_) | Object::Reduce(_))) => self.reader.argument(node, &path).map(Some),
            _ if !self.truth(node) => Ok(None),
            _ => Err(unusable(
                &path,
                document.kind(node),
                "must be a map of host paths to {bind, mode}, or a list of volumes",
            )),
        }
    }

    fn stream_connectors(&mut self) -> Result<Option<Arg>, DecodeError> {
        let Some((path, node)) = self.take("stream_connectors") else { return Ok(None) };
        let Some(items) = self.reader.document.items(node) else {
            return Err(unusable(&path, self.reader.document.kind(node), "must be a list of Connect"));
        };
        let mut connectors = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            connectors.push(self.reader.transform(item, &format!("{path}[{n}]"))?.into());
        }
        Ok(Some(Arg::List(connectors)))
    }

    /// What is left.
    fn options(&mut self) -> Result<ArgMap, DecodeError> {
        let mut options = ArgMap::new();
        for Given { name, path, node } in std::mem::take(&mut self.given) {
            if DROPPED.contains(&name.as_str()) {
                continue;
            }
            let value = self.reader.argument(node, &path)?;
            options.insert(name, value);
        }
        Ok(options)
    }

    /// Python's `bool(value)`.
    fn truth(&self, node: &Node) -> bool {
        self.reader.truth(node)
    }
}
