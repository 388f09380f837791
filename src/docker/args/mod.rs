//! From a task's arguments to a typed request: [`DockerRun`], and from its options to the engine's request:
//! [`ContainerOptions`].
//!
//! Pure: no engine, no files, no policy (`policy/` judges the finished request). Called by the `docker_run` handler
//! when it admits and stages a task, and by whatever checks a task without running it.
//!
//! # Decisions
//! - The meaning of every keyword is docker-py 7's, because that is what producers wrote against.
//! - Options are read twice: when the task is parsed, with its transforms stood in for, so that a mistake fails before
//!   anything is pulled; and after the pipeline has replaced the transforms by paths.
//! - `girder_worker` pulls before every run unless told otherwise; a native task pulls what is missing. Who decodes a
//!   Celery message therefore writes `pull` or `pull_image` always.

mod error;
mod given;
mod keywords;
mod options;
mod shapes;
#[cfg(test)]
mod tests;
mod volumes;

pub use error::ArgError;
pub use options::ContainerOptions;
pub use volumes::{Bind, VolumeArg};

use self::error::shown;
use self::given::Given;
use self::options::same_matter;
pub use crate::policy::image::Pull;
use crate::task::python::python_str;
use crate::task::transform::nearest;
use crate::task::{Arg, ArgMap, TransformSpec};

/// What one `docker_run` task asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct DockerRun {
    /// The image as it was named.
    pub image: String,
    /// When it is pulled.
    pub pull: Pull,
    /// Instead of the image's own entrypoint; transforms in it are not yet replaced.
    pub entrypoint: Option<Vec<Arg>>,
    /// The container's arguments; transforms in them are not yet replaced.
    pub container_args: Vec<Arg>,
    /// What is mounted beside the task's default temporary volume.
    pub volumes: Vec<VolumeArg>,
    /// Whether the container is removed after its end.
    pub remove_container: bool,
    /// Streams beside those among the arguments; each is a `Connect`.
    pub stream_connectors: Vec<TransformSpec>,
    /// What reads progress out of the container's standard output.
    pub stdout_filter: Option<StdoutFilter>,
    /// docker-py keywords; transforms in them are not yet replaced. [`ContainerOptions::read`] takes them then.
    pub options: ArgMap,
}

/// What reads progress out of a container's standard output and takes it off the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdoutFilter {
    /// `slicer_progress`: the `<filter-…>` elements of Slicer command line modules, as `slicer_cli_web` reads them.
    Slicer,
}

/// The names of all arguments; `pull_image` is `girder_worker`'s name of `pull`.
const ARGUMENTS: &[&str] = &[
    "image",
    "pull",
    "pull_image",
    "entrypoint",
    "container_args",
    "volumes",
    "remove_container",
    "stream_connectors",
    "stdout_filter",
    "options",
];

/// A path stands in for each transform while options are checked before the pipeline has run.
const STAND_IN: &str = "/longshore/stand-in";

/// docker-py's keywords in alphabetical order, each with what it takes in `options`.
pub fn keywords() -> impl Iterator<Item = (&'static str, &'static str)> {
    keywords::KEYWORDS.iter().map(|keyword| (keyword.name, keyword.take.describe()))
}

impl DockerRun {
    /// Reads the arguments of a task.
    pub fn read(args: &ArgMap) -> Result<Self, ArgError> {
        if let Some(name) = args.keys().find(|name| !ARGUMENTS.contains(&name.as_str())) {
            return Err(unknown_argument(name));
        }
        let given = |name: &str| {
            args.get(name).filter(|arg| **arg != Arg::Null).map(|arg| Given::new(format!("args.{name}"), arg))
        };
        let run = Self {
            image: image(given("image").as_ref())?,
            pull: pull(given("pull").as_ref(), given("pull_image").as_ref())?,
            entrypoint: given("entrypoint").map(|entrypoint| words(&entrypoint)).transpose()?,
            container_args: given("container_args").map_or(Ok(Vec::new()), |list| words(&list))?,
            volumes: given("volumes").map_or(Ok(Vec::new()), |volumes| volumes::read(&volumes, "rw"))?,
            remove_container: given("remove_container").map_or(Ok(true), |flag| flag.flag())?,
            stream_connectors: given("stream_connectors").map_or(Ok(Vec::new()), |list| connectors(&list))?,
            stdout_filter: given("stdout_filter").map(|filter| stdout_filter(&filter)).transpose()?,
            options: given("options").map_or(Ok(ArgMap::new()), |options| option_map(&options))?,
        };
        ContainerOptions::read(&stood_in(&run.options))?;
        Ok(run)
    }

    /// Fills what the task leaves open; what the task says wins.
    pub fn fill(&mut self, defaults: &RunDefaults) {
        let asked: Vec<String> = self.options.keys().cloned().collect();
        for (name, value) in &defaults.options {
            if !asked.iter().any(|other| same_matter(name, other)) {
                self.options.insert(name.clone(), value.clone());
            }
        }
        if self.entrypoint.is_none() {
            self.entrypoint.clone_from(&defaults.entrypoint);
        }
        for bind in &defaults.volumes {
            let taken = self.volumes.iter().any(|volume| match volume {
                VolumeArg::Bind(own) => own.source() == bind.source(),
                VolumeArg::Transform(_) => false,
            });
            if !taken {
                self.volumes.push(VolumeArg::Bind(bind.clone()));
            }
        }
    }
}

/// What every container of a worker gets unless its task says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunDefaults {
    options: ArgMap,
    entrypoint: Option<Vec<Arg>>,
    volumes: Vec<Bind>,
}

impl RunDefaults {
    /// Reads a map of docker-py keywords, such as `GIRDER_WORKER_DOCKER_RUN_OPTIONS` holds. As there, `entrypoint` and
    /// `volumes` may be among them, and a listed volume without a mode is read-only.
    pub fn read(map: &ArgMap) -> Result<Self, ArgError> {
        let mut options = map.clone();
        let entrypoint = options.shift_remove("entrypoint");
        let volumes = options.shift_remove("volumes").unwrap_or(Arg::Null);
        ContainerOptions::read(&options)?;
        let volumes = volumes::read(&Given::new("args.volumes", &volumes), "ro")?
            .into_iter()
            .map(|volume| match volume {
                VolumeArg::Bind(bind) => Ok(bind),
                VolumeArg::Transform(_) => Err(ArgError::Refused {
                    path: "args.volumes".to_owned(),
                    reason: "a default has no transforms, give host paths".to_owned(),
                }),
            })
            .collect::<Result<_, _>>()?;
        let entrypoint = entrypoint
            .filter(|arg| *arg != Arg::Null)
            .map(|arg| words(&Given::new("args.entrypoint", &arg)))
            .transpose()?;
        Ok(Self { options, entrypoint, volumes })
    }
}

/// The texts that `girder_worker` would pass: Python's `str` of each argument.
pub fn argument_texts(args: &[Arg]) -> Vec<String> {
    args.iter().map(python_str).collect()
}

fn unknown_argument(name: &str) -> ArgError {
    let hint = if keywords::find(name).is_some() {
        format!(": docker-py's keywords stand in args.options, write args.options.{name}")
    } else {
        let known = ARGUMENTS.iter().copied().chain(keywords().map(|(name, _)| name));
        nearest(name, known).map_or_else(String::new, |nearest| {
            if ARGUMENTS.contains(&nearest.as_str()) {
                format!(", did you mean {nearest:?}?")
            } else {
                format!(", did you mean {:?}?", format!("options.{nearest}"))
            }
        })
    };
    ArgError::UnknownArgument { path: format!("args.{name}"), hint }
}

fn image(given: Option<&Given<'_>>) -> Result<String, ArgError> {
    const ACCEPTED: &str = "the image to run, such as \"busybox:latest\"";
    let given = given
        .ok_or_else(|| ArgError::Missing { path: "args.image".to_owned(), accepted: ACCEPTED.to_owned() })?;
    let image = given.text().map_err(|_| given.refuse(ACCEPTED))?;
    let sound = !image.is_empty() && !image.contains(|c: char| c.is_whitespace() || c.is_control());
    if sound { Ok(image) } else { Err(given.refuse(ACCEPTED)) }
}

fn pull(native: Option<&Given<'_>>, girder: Option<&Given<'_>>) -> Result<Pull, ArgError> {
    let given = match (native, girder) {
        (Some(_), Some(girder)) => {
            return Err(ArgError::Refused {
                path: girder.path.clone(),
                reason: "it says the same as pull, give only one of them".to_owned(),
            });
        }
        (Some(given), None) | (None, Some(given)) => given,
        (None, None) => return Ok(Pull::Missing),
    };
    match given.arg {
        Arg::Bool(true) => Ok(Pull::Always),
        Arg::Bool(false) => Ok(Pull::Never),
        Arg::Text(text) => match text.as_str() {
            "always" => Ok(Pull::Always),
            "missing" | "if-not-present" => Ok(Pull::Missing),
            "never" => Ok(Pull::Never),
            _ => Err(given.refuse("\"always\", \"missing\" or \"never\"")),
        },
        _ => Err(given.refuse("\"always\", \"missing\" or \"never\"")),
    }
}

/// A list of arguments; anything else is a list of one.
fn words(given: &Given<'_>) -> Result<Vec<Arg>, ArgError> {
    let words = match given.arg {
        Arg::List(items) => items.clone(),
        Arg::Map(_) => return Err(given.refuse("a list of arguments")),
        other => vec![other.clone()],
    };
    for (n, word) in words.iter().enumerate() {
        if matches!(word, Arg::Text(text) if text.contains('\0')) {
            return Err(ArgError::Value {
                path: format!("{}[{n}]", given.path),
                value: "a text with a zero byte".to_owned(),
                accepted: "a text without one: no process takes it".to_owned(),
            });
        }
    }
    Ok(words)
}

fn connectors(given: &Given<'_>) -> Result<Vec<TransformSpec>, ArgError> {
    given
        .items()?
        .iter()
        .map(|item| match item.arg {
            Arg::Transform(spec) if matches!(spec.as_ref(), TransformSpec::Connect(_)) => {
                Ok(spec.as_ref().clone())
            }
            _ => Err(item.refuse("a Connect, which joins a source with a sink")),
        })
        .collect()
}

fn stdout_filter(given: &Given<'_>) -> Result<StdoutFilter, ArgError> {
    match given.arg {
        Arg::Text(text) if text == "slicer_progress" => Ok(StdoutFilter::Slicer),
        _ => Err(given.refuse("\"slicer_progress\"")),
    }
}

fn option_map(given: &Given<'_>) -> Result<ArgMap, ArgError> {
    match given.arg {
        Arg::Map(map) => Ok(map.clone()),
        other => Err(ArgError::Value {
            path: given.path.clone(),
            value: shown(other),
            accepted: "a map of docker-py's keywords".to_owned(),
        }),
    }
}

fn stood_in(options: &ArgMap) -> ArgMap {
    fn replaced(arg: &Arg) -> Arg {
        match arg {
            Arg::Transform(_) => Arg::Text(STAND_IN.to_owned()),
            Arg::List(items) => Arg::List(items.iter().map(replaced).collect()),
            Arg::Map(map) => Arg::Map(map.iter().map(|(key, item)| (key.clone(), replaced(item))).collect()),
            plain => plain.clone(),
        }
    }
    options.iter().map(|(name, value)| (name.clone(), replaced(value))).collect()
}
