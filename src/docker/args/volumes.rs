//! Volumes of a task: docker-py's binds, and volume transforms.

use std::fmt;

use super::error::ArgError;
use super::given::Given;
use crate::task::transform::Volume;
use crate::task::{Arg, TransformSpec};

/// One entry of `volumes`, in the order in which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeArg {
    /// A mount as docker-py describes it.
    Bind(Bind),
    /// A volume that the pipeline makes or maps first.
    Transform(Volume),
}

/// A host path or a named volume at a path of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    source: Option<String>,
    target: String,
    mode: String,
}

/// What the engine takes after the second colon.
const MODES: &[&str] = &[
    "rw",
    "ro",
    "z",
    "Z",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "nocopy",
    "consistent",
    "cached",
    "delegated",
];

impl Bind {
    /// A bind found at `path`. `source` is an absolute host path or the name of a volume; none is a new volume without
    /// a name. The engine separates the parts by colons, so none of them may hold one.
    pub fn new(path: &str, source: Option<&str>, target: &str, mode: &str) -> Result<Self, ArgError> {
        let refuse = |value: &str, accepted: &str| {
            Err(ArgError::Value {
                path: path.to_owned(),
                value: format!("{value:?}"),
                accepted: accepted.to_owned(),
            })
        };
        if let Some(source) = source {
            let sound =
                if source.starts_with('/') { !source.contains([':', '\0']) } else { is_volume_name(source) };
            if !sound {
                return refuse(
                    source,
                    "an absolute path on the host without a colon, or the name of a volume",
                );
            }
        }
        if !target.starts_with('/') || target.contains([':', '\0']) {
            return refuse(target, "an absolute path in the container without a colon");
        }
        let mode = if mode.is_empty() { "rw" } else { mode };
        if let Some(word) = mode.split(',').find(|word| !MODES.contains(word)) {
            return refuse(word, &format!("a mode of {}", MODES.join(", ")));
        }
        Ok(Self { source: source.map(str::to_owned), target: target.to_owned(), mode: mode.to_owned() })
    }

    /// The host path or volume name; none is a new volume without a name.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }
    /// The source if it is a path on the host.
    pub fn host_path(&self) -> Option<&str> {
        self.source().filter(|source| source.starts_with('/'))
    }
    /// The absolute path in the container.
    pub fn target(&self) -> &str {
        &self.target
    }
    /// `rw` or `ro` and whatever else was asked, separated by commas.
    pub fn mode(&self) -> &str {
        &self.mode
    }
}

/// As the engine takes it: `source:target:mode`.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source}:{}:{}", self.target, self.mode),
            None => f.write_str(&self.target),
        }
    }
}

/// Docker's rule for names of volumes.
fn is_volume_name(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Reads `volumes`: docker-py's map `{host: {bind, mode}}`, its list `["host:container:mode"]`, or a list with volume
/// transforms in it. A listed bind without a mode gets `default_mode`.
pub(super) fn read(given: &Given<'_>, default_mode: &str) -> Result<Vec<VolumeArg>, ArgError> {
    match given.arg {
        Arg::Null => Ok(Vec::new()),
        Arg::Map(_) => given
            .entries()?
            .into_iter()
            .map(|(source, value)| entry(source, &value).map(VolumeArg::Bind))
            .collect(),
        Arg::List(_) => given.items()?.iter().map(|item| listed(item, default_mode)).collect(),
        _ => Err(given.refuse("a map {host path: {\"bind\": path, \"mode\": \"rw\"}} or a list of volumes")),
    }
}

fn entry(source: &str, given: &Given<'_>) -> Result<Bind, ArgError> {
    if let Arg::Text(target) = given.arg {
        return Bind::new(&given.path, Some(source), target, "rw");
    }
    let known = [("bind", "bind"), ("mode", "mode"), ("ro", "ro"), ("propagation", "propagation")];
    let fields = given.fields(&known)?;
    let Some(target) = fields.get("bind", Given::text)? else {
        return Err(given.refuse("a map with bind, the path in the container, and mode"));
    };
    let (mode, ro) = (fields.get("mode", Given::text)?, fields.get("ro", Given::flag)?);
    let mut mode = match (mode, ro) {
        (Some(_), Some(_)) => {
            return Err(ArgError::Refused {
                path: given.path.clone(),
                reason: "it has both ro and mode, give only one of them".to_owned(),
            });
        }
        (Some(mode), None) => mode,
        (None, Some(true)) => "ro".to_owned(),
        (None, _) => "rw".to_owned(),
    };
    if let Some(propagation) = fields.get("propagation", Given::text)?.filter(|text| !text.is_empty()) {
        mode = if mode.is_empty() { propagation } else { format!("{mode},{propagation}") };
    }
    Bind::new(&given.path, Some(source), &target, &mode)
}

fn listed(given: &Given<'_>, default_mode: &str) -> Result<VolumeArg, ArgError> {
    const ACCEPTED: &str = "\"host:container[:mode]\", a BindMountVolume or a TemporaryVolume";
    match given.arg {
        Arg::Text(text) => {
            let parts: Vec<&str> = text.split(':').collect();
            let bind = match parts[..] {
                [target] => Bind::new(&given.path, None, target, default_mode),
                [source, target] => Bind::new(&given.path, Some(source), target, default_mode),
                [source, target, mode] => Bind::new(&given.path, Some(source), target, mode),
                _ => Err(given.refuse(ACCEPTED)),
            };
            bind.map(VolumeArg::Bind)
        }
        Arg::Transform(spec) => match spec.as_ref() {
            TransformSpec::BindMountVolume(volume) => {
                Bind::new(&given.path, Some(&volume.host_path), &volume.container_path, &volume.mode)?;
                Ok(VolumeArg::Transform(Volume::BindMountVolume(volume.clone())))
            }
            TransformSpec::TemporaryVolume(volume) => {
                Ok(VolumeArg::Transform(Volume::TemporaryVolume(volume.clone())))
            }
            _ => Err(given.refuse(ACCEPTED)),
        },
        _ => Err(given.refuse(ACCEPTED)),
    }
}
