//! The transforms a task may name, as data. What each one does lives in `pipeline/transforms`.
//!
//! Names and fields are `girder_worker`'s own (`girder_worker.docker.transforms`), in snake case without the leading
//! underscore. A map whose `$` is one of [`TransformSpec::NAMES`] is that transform.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Secret;

macro_rules! transforms {
    ($($(#[$doc:meta])* $name:ident$(($body:ty))?,)*) => {
        /// One transform of a task.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "$")]
        pub enum TransformSpec {
            $($(#[$doc])* $name$(($body))?,)*
        }
        impl TransformSpec {
            /// Every name that `$` may have.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// The name that `$` has.
            pub fn name(&self) -> &'static str {
                match self {
                    $(transforms!(@pattern $name $(, body $body)?) => stringify!($name),)*
                }
            }
        }
    };
    (@pattern $name:ident) => { Self::$name };
    (@pattern $name:ident, body $body:ty) => { Self::$name(_) };
}

transforms! {
    /// A host folder or file mounted into the container.
    BindMountVolume(BindMountVolume),
    /// A folder that lives as long as the task.
    TemporaryVolume(TemporaryVolume),
    /// A path inside a volume.
    VolumePath(VolumePath),
    /// A FIFO that the container reads.
    NamedInputPipe(NamedPipe),
    /// A FIFO that the container writes.
    NamedOutputPipe(NamedPipe),
    /// Joins a source with a sink.
    Connect(Connect),
    /// The worker's standard output as a sink.
    HostStdOut,
    /// The worker's standard error as a sink.
    HostStdErr,
    /// The container's standard output as a source.
    ContainerStdOut,
    /// The container's standard error as a source.
    ContainerStdErr,
    /// An HTTP request with a chunked body as a sink.
    ChunkedTransferEncodingStream(HttpStream),
    /// A FIFO on which the container writes one JSON object per line.
    ProgressPipe(ProgressPipe),
    /// A Girder file as a source.
    GirderFileIdToStream(GirderFileStream),
    /// A Girder file, downloaded to a volume.
    GirderFileIdToVolume(GirderFile),
    /// A Girder item's files, downloaded to a volume.
    GirderItemIdToVolume(GirderItem),
    /// A Girder folder, downloaded to a volume.
    GirderFolderIdToVolume(GirderFolder),
    /// Uploads a volume's file or flat folder to an item.
    GirderUploadVolumePathToItem(UploadToItem),
    /// Uploads a volume's file or folder to a folder.
    GirderUploadVolumePathToFolder(UploadToFolder),
    /// Attaches a volume's file or flat folder to the job.
    GirderUploadVolumePathJobArtifact(UploadArtifact),
    /// A Girder file that may be mounted from where it lies (`slicer_cli_web`).
    DirectGirderFileIdToVolume(DirectGirderFile),
    /// Container paths joined by commas (`slicer_cli_web`).
    CommaJoinedVolumes(CommaJoined),
    /// The API's address as an argument (`slicer_cli_web`): `api_url` and a slash, as `girder_client` has it.
    GirderApiUrl(GirderValue),
    /// The API token as an argument (`slicer_cli_web`).
    GirderToken(GirderValue),
    /// A transform of `girder_worker` for tasks that are Python functions. It fails `docker_run` before anything starts.
    PythonTransform(PythonTransform),
}

/// The most similar of `known` to `name`, if one is near.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// A path below a volume's root: relative, without `..`, at least one component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

/// Why a text is no [`RelativePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is no path below a volume: {reason}")]
pub struct RelativePathError {
    path: String,
    reason: &'static str,
}

impl RelativePath {
    /// The path as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl TryFrom<String> for RelativePath {
    type Error = RelativePathError;
    fn try_from(path: String) -> Result<Self, RelativePathError> {
        let reason = if path.is_empty() {
            "it is empty"
        } else if path.starts_with('/') {
            "it must not start with a slash"
        } else if path.contains('\0') {
            "it holds a zero byte"
        } else if path.split('/').any(|part| part == "..") {
            "it must not contain `..`"
        } else if path.len() > 4_000 || path.split('/').any(|part| part.len() > 255) {
            "it is longer than a file system allows"
        } else {
            return Ok(Self(path));
        };
        Err(RelativePathError { path, reason })
    }
}
impl From<RelativePath> for String {
    fn from(path: RelativePath) -> String {
        path.0
    }
}
impl JsonSchema for RelativePath {
    fn schema_name() -> Cow<'static, str> {
        "RelativePath".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "minLength": 1, "description": "relative, without `..`" })
    }
}

/// A place that is mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "$")]
pub enum Volume {
    /// A host folder or file.
    BindMountVolume(BindMountVolume),
    /// A folder that lives as long as the task.
    TemporaryVolume(TemporaryVolume),
}

/// A host folder or file mounted into the container. As an argument it is its container path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BindMountVolume {
    /// Absolute path on the host.
    pub host_path: String,
    /// Absolute path in the container.
    pub container_path: String,
    /// `rw` or `ro`, and whatever else Docker's bind syntax takes after the second colon.
    #[serde(default = "BindMountVolume::default_mode")]
    pub mode: String,
}

impl BindMountVolume {
    fn default_mode() -> String {
        "rw".to_owned()
    }
}

/// A folder that lives as long as the task. Without an id it is the task's default one, which is always mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemporaryVolume {
    /// Two mentions with one id are one volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The folder on the host in which it is made, instead of the worker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dir: Option<String>,
    /// Permission bits, as a number; `0o777` (511) when none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// A path inside a volume: a container path as an argument, a host path in a result hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumePath {
    /// Below the volume's root.
    pub filename: RelativePath,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

/// A FIFO between host and container: in a volume, or at two explicit paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedPipe {
    /// The FIFO's name in its volume.
    pub name: RelativePath,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// With `host_path`: the absolute folder path that the container sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_path: Option<String>,
    /// With `container_path`: the absolute folder path on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
}

/// Joins a source with a sink; one of them is a pipe of the container. As an argument it is that pipe's container path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Where bytes come from.
    pub input: Box<TransformSpec>,
    /// Where they go.
    pub output: Box<TransformSpec>,
}

/// An HTTP POST whose body is what the stream carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpStream {
    /// Absolute `http` or `https` URL.
    pub url: String,
    /// Sent with the request, to its own origin only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
}

/// A FIFO on which the container reports progress: one JSON object per line with `message`, `total`, `current`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProgressPipe {
    /// The FIFO's name in its volume.
    #[serde(default = "ProgressPipe::default_name")]
    pub name: RelativePath,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

impl ProgressPipe {
    fn default_name() -> RelativePath {
        RelativePath(".girder_progress".to_owned())
    }
}

impl Default for ProgressPipe {
    fn default() -> Self {
        Self { name: Self::default_name(), volume: None }
    }
}

/// Which Girder, and the token that opens it; the task's own `girder` when a transform has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderAccess {
    /// Base of its API.
    pub api_url: String,
    /// Sent as `Girder-Token`, to this origin only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// A Girder file as a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderFileStream {
    /// The file.
    pub file_id: String,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// A Girder file, downloaded to `<volume>/<file id>/<name>`, or to `<volume>/<filename>` when one is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderFile {
    /// The file.
    pub file_id: String,
    /// Instead of Girder's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// A Girder item's files, downloaded to `<volume>/<item id>/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderItem {
    /// The item.
    pub item_id: String,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// A Girder folder with all below it, downloaded to `<volume>/<folder id>/<name>/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderFolder {
    /// The folder.
    pub folder_id: String,
    /// Instead of Girder's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder_name: Option<String>,
    /// The task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// A transform that works on what a Python function takes or gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PythonTransform {
    /// Its class.
    pub class: String,
    /// What `docker_run` has for the same purpose.
    pub instead: String,
}

/// What an upload takes: a path in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "$")]
pub enum UploadSource {
    /// A path in a volume.
    VolumePath(VolumePath),
    /// A path of the worker's own machine. It fails the task before anything starts: what lies there is not the task's.
    HostPath(HostPath),
}

/// A path of the worker's own machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostPath {
    /// As it was given.
    pub path: String,
}

/// Uploads a volume's file, or a flat folder's files, to an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadToItem {
    /// What to upload.
    pub volumepath: UploadSource,
    /// The item.
    pub item_id: String,
    /// `reference` and `mimeType` of the upload.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub upload_kwargs: Map<String, Value>,
    /// Whether the file is removed after its upload.
    #[serde(default)]
    pub delete_file: bool,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// Uploads a volume's file, or a folder with all below it, to a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadToFolder {
    /// What to upload.
    pub volumepath: UploadSource,
    /// The folder.
    pub folder_id: String,
    /// `reference` and `mimeType` of the upload.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub upload_kwargs: Map<String, Value>,
    /// Whether the file is removed after its upload.
    #[serde(default)]
    pub delete_file: bool,
    /// Whether a missing path fails the task.
    #[serde(default = "UploadToFolder::default_must_exist")]
    pub must_exist: bool,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

impl UploadToFolder {
    fn default_must_exist() -> bool {
        true
    }
}

/// Attaches a volume's file, or a flat folder's files, to the job. A missing path is no error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadArtifact {
    /// What to attach.
    pub volumepath: UploadSource,
    /// The job; the task's own when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Instead of the file's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it is attached when the container failed, too.
    #[serde(default)]
    pub upload_on_exception: bool,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// A Girder file that is mounted read-only from where it lies when the worker can read it there, else downloaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectGirderFile {
    /// The file.
    pub file_id: String,
    /// Its name in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Where it lies, as Girder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_file_path: Option<String>,
    /// Where a download goes; the task's default temporary volume when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}

/// Container paths joined by commas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommaJoined {
    /// Each becomes its container path.
    pub volumes: Vec<TransformSpec>,
}

/// A value of the Girder connection as an argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GirderValue {
    /// Which Girder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub girder: Option<GirderAccess>,
}
