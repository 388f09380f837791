//! The Python classes that are known, and which transform each one is.
//!
//! A class name selects a row of [`CLASSES`]; anything else where a value is used is refused by its name. Attributes are
//! read as celery.md's producers write them; what they keep for themselves is not looked at.

use serde_json::{Map, Value};

use super::super::jsonpickle::{Node, Object};
use super::attributes::Attributes;
use super::value::{Reader, construction, foreign, foreign_function, unresolved, unusable};
use crate::task::envelope::DecodeError;
use crate::task::transform::{
    BindMountVolume, CommaJoined, Connect, DirectGirderFile, GirderFile, GirderFileStream, GirderFolder,
    GirderItem, GirderValue, HostPath, HttpStream, NamedPipe, ProgressPipe, PythonTransform, TemporaryVolume,
    UploadArtifact, UploadSource, UploadToFolder, UploadToItem, Volume, VolumePath,
};
use crate::task::{Arg, TransformSpec};

/// What a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    BindMountVolume,
    TemporaryVolume,
    DefaultTemporaryVolume,
    VolumePath,
    NamedInputPipe,
    NamedOutputPipe,
    Connect,
    HostStdOut,
    HostStdErr,
    ContainerStdOut,
    ContainerStdErr,
    ChunkedTransferEncodingStream,
    ProgressPipe,
    GirderFileIdToStream,
    GirderFileIdToVolume,
    GirderItemIdToVolume,
    GirderFolderIdToVolume,
    GirderUploadVolumePathToItem,
    GirderUploadVolumePathToFolder,
    GirderUploadVolumePathJobArtifact,
    DirectGirderFileIdToVolume,
    CommaJoinedVolumes,
    GirderApiUrl,
    GirderToken,
    /// For tasks that are Python functions; docker_run has another for the purpose.
    Function(&'static str),
}

const DOCKER: &str = "girder_worker.docker.transforms.";
const GIRDER: &str = "girder_worker.docker.transforms.girder.";
const SLICER: &str = "slicer_cli_web.girder_worker_plugin.direct_docker_run.";
/// girder_worker 5 and 0.10.
const FUNCTIONS: [&str; 2] = ["girder_worker.utils.transforms.", "girder_worker_utils.transforms."];

const CLASSES: &[(&str, &str, Row)] = &[
    (DOCKER, "BindMountVolume", Row::BindMountVolume),
    (DOCKER, "TemporaryVolume", Row::TemporaryVolume),
    (DOCKER, "_DefaultTemporaryVolume", Row::DefaultTemporaryVolume),
    (DOCKER, "VolumePath", Row::VolumePath),
    (DOCKER, "NamedInputPipe", Row::NamedInputPipe),
    (DOCKER, "NamedOutputPipe", Row::NamedOutputPipe),
    (DOCKER, "Connect", Row::Connect),
    (DOCKER, "HostStdOut", Row::HostStdOut),
    (DOCKER, "HostStdErr", Row::HostStdErr),
    (DOCKER, "ContainerStdOut", Row::ContainerStdOut),
    (DOCKER, "ContainerStdErr", Row::ContainerStdErr),
    (DOCKER, "ChunkedTransferEncodingStream", Row::ChunkedTransferEncodingStream),
    (GIRDER, "ProgressPipe", Row::ProgressPipe),
    (GIRDER, "GirderFileIdToStream", Row::GirderFileIdToStream),
    (GIRDER, "GirderFileIdToVolume", Row::GirderFileIdToVolume),
    (GIRDER, "GirderItemIdToVolume", Row::GirderItemIdToVolume),
    (GIRDER, "GirderFolderIdToVolume", Row::GirderFolderIdToVolume),
    (GIRDER, "GirderUploadVolumePathToItem", Row::GirderUploadVolumePathToItem),
    (GIRDER, "GirderUploadVolumePathToFolder", Row::GirderUploadVolumePathToFolder),
    (GIRDER, "GirderUploadVolumePathJobArtifact", Row::GirderUploadVolumePathJobArtifact),
    (SLICER, "DirectGirderFileIdToVolume", Row::DirectGirderFileIdToVolume),
    (SLICER, "CommaJoinedVolumes", Row::CommaJoinedVolumes),
    (SLICER, "GirderApiUrl", Row::GirderApiUrl),
    (SLICER, "GirderToken", Row::GirderToken),
];

/// Classes of tasks that are Python functions, below either of [`FUNCTIONS`], and what docker_run has instead.
const FUNCTION_CLASSES: &[(&str, &str)] = &[
    ("girder_io.GirderFileId", "GirderFileIdToVolume"),
    ("girder_io.GirderItemId", "GirderItemIdToVolume"),
    ("girder_io.GirderItemMetadata", "GirderUploadVolumePathToItem"),
    ("girder_io.GirderUploadToItem", "GirderUploadVolumePathToItem"),
    ("girder_io.GirderUploadToFolder", "GirderUploadVolumePathToFolder"),
    ("girder_io.GirderUploadJobArtifact", "GirderUploadVolumePathJobArtifact"),
    ("contrib.girder_io.GirderFileIdAllowDirect", "DirectGirderFileIdToVolume"),
    ("common.TemporaryDirectory", "TemporaryVolume"),
];

fn row(class: &str) -> Option<Row> {
    let of_function = || {
        let name = FUNCTIONS.iter().find_map(|prefix| class.strip_prefix(prefix))?;
        FUNCTION_CLASSES.iter().find(|(known, _)| *known == name).map(|(_, instead)| Row::Function(instead))
    };
    let found = CLASSES.iter().find(|(prefix, name, _)| class.strip_prefix(prefix) == Some(*name));
    found.map(|(_, _, row)| *row).or_else(of_function)
}

impl Reader<'_> {
    /// The transform that `node` is.
    pub(super) fn transform(&mut self, node: &Node, path: &str) -> Result<TransformSpec, DecodeError> {
        self.count(path)?;
        let document = self.document;
        let (Node::Shared(index), Some(instance)) = (node, document.instance(node)) else {
            return Err(match (node, document.shared(node)) {
                (Node::Unresolved, _) => unresolved(path),
                (Node::Type(name), _) => foreign(path, name),
                (Node::Function(name), _) => foreign_function(path, name),
                (_, Some(Object::Reduce(parts))) => construction(path, parts),
                _ => unusable(path, document.kind(node), "must be a transform of girder_worker.docker"),
            });
        };
        let Some(row) = row(&instance.class) else { return Err(foreign(path, &instance.class)) };
        // An argument's own reader has already entered the instance itself.
        let again = self.open.iter().rev().skip(usize::from(self.open.last() == Some(index)));
        if again.into_iter().any(|open| open == index) {
            return Err(unusable(path, instance.class.clone(), "refers to itself: send each transform once"));
        }
        self.open.push(*index);
        let spec = self.read(row, &Attributes { instance, path }, *index)?;
        self.open.pop();
        Ok(spec)
    }

    /// An element of a list of volumes.
    pub(super) fn volume_argument(&mut self, node: &Node, path: &str) -> Result<Arg, DecodeError> {
        match self.transform(node, path)? {
            spec @ (TransformSpec::BindMountVolume(_) | TransformSpec::TemporaryVolume(_)) => Ok(spec.into()),
            other => {
                Err(unusable(path, other.name().to_owned(), "must be a BindMountVolume or TemporaryVolume"))
            }
        }
    }

    fn read(&mut self, row: Row, of: &Attributes<'_>, index: usize) -> Result<TransformSpec, DecodeError> {
        Ok(match row {
            Row::BindMountVolume => TransformSpec::BindMountVolume(self.bind_mount(of)?),
            Row::TemporaryVolume => {
                let settings = self.temporary(of)?;
                TransformSpec::TemporaryVolume(self.volumes.named(self.part, index, &settings))
            }
            Row::DefaultTemporaryVolume => TransformSpec::TemporaryVolume(TemporaryVolume::default()),
            Row::VolumePath => TransformSpec::VolumePath(VolumePath {
                filename: self.relative(of, "filename")?,
                volume: self.volume(of)?,
            }),
            Row::NamedInputPipe => TransformSpec::NamedInputPipe(self.pipe(of)?),
            Row::NamedOutputPipe => TransformSpec::NamedOutputPipe(self.pipe(of)?),
            Row::Connect => TransformSpec::Connect(Connect {
                input: Box::new(self.transform(of.get("_input"), &of.at("_input"))?),
                output: Box::new(self.transform(of.get("_output"), &of.at("_output"))?),
            }),
            Row::HostStdOut => TransformSpec::HostStdOut,
            Row::HostStdErr => TransformSpec::HostStdErr,
            Row::ContainerStdOut => TransformSpec::ContainerStdOut,
            Row::ContainerStdErr => TransformSpec::ContainerStdErr,
            Row::ChunkedTransferEncodingStream => TransformSpec::ChunkedTransferEncodingStream(HttpStream {
                url: self.text(of, "url")?,
                headers: self.headers(of)?,
            }),
            Row::ProgressPipe => TransformSpec::ProgressPipe(ProgressPipe {
                name: self.relative(of, "name")?,
                volume: self.volume(of)?,
            }),
            Row::CommaJoinedVolumes => TransformSpec::CommaJoinedVolumes(self.joined(of)?),
            Row::Function(instead) => TransformSpec::PythonTransform(PythonTransform {
                class: of.instance.class.clone(),
                instead: instead.to_owned(),
            }),
            Row::GirderUploadVolumePathToItem
            | Row::GirderUploadVolumePathToFolder
            | Row::GirderUploadVolumePathJobArtifact => self.upload(row, of)?,
            Row::GirderFileIdToStream
            | Row::GirderFileIdToVolume
            | Row::GirderItemIdToVolume
            | Row::GirderFolderIdToVolume
            | Row::DirectGirderFileIdToVolume
            | Row::GirderApiUrl
            | Row::GirderToken => self.fetch(row, of)?,
        })
    }

    fn fetch(&mut self, row: Row, of: &Attributes<'_>) -> Result<TransformSpec, DecodeError> {
        let girder = self.access(of)?;
        Ok(match row {
            Row::GirderFileIdToStream => TransformSpec::GirderFileIdToStream(GirderFileStream {
                file_id: self.text(of, "file_id")?,
                girder,
            }),
            Row::GirderFileIdToVolume => TransformSpec::GirderFileIdToVolume(GirderFile {
                file_id: self.text(of, "_file_id")?,
                filename: self.optional(of, "_filename")?,
                volume: self.volume(of)?,
                girder,
            }),
            Row::GirderItemIdToVolume => TransformSpec::GirderItemIdToVolume(GirderItem {
                item_id: self.text(of, "_item_id")?,
                volume: self.volume(of)?,
                girder,
            }),
            Row::GirderFolderIdToVolume => TransformSpec::GirderFolderIdToVolume(GirderFolder {
                folder_id: self.text(of, "_folder_id")?,
                folder_name: self.optional(of, "_folder_name")?,
                volume: self.volume(of)?,
                girder,
            }),
            Row::DirectGirderFileIdToVolume => TransformSpec::DirectGirderFileIdToVolume(DirectGirderFile {
                file_id: self.text(of, "_file_id")?,
                filename: self.optional(of, "_filename")?,
                direct_file_path: self.optional(of, "_direct_file_path")?,
                volume: self.volume(of)?,
                girder,
            }),
            Row::GirderApiUrl => TransformSpec::GirderApiUrl(GirderValue { girder }),
            _ => TransformSpec::GirderToken(GirderValue { girder }),
        })
    }

    fn upload(&mut self, row: Row, of: &Attributes<'_>) -> Result<TransformSpec, DecodeError> {
        let volumepath = self.source(of)?;
        let girder = self.access(of)?;
        let delete_file = matches!(of.get("delete_file"), Node::Bool(true));
        Ok(match row {
            Row::GirderUploadVolumePathToItem => TransformSpec::GirderUploadVolumePathToItem(UploadToItem {
                volumepath,
                item_id: self.text(of, "item_id")?,
                upload_kwargs: self.upload_kwargs(of)?,
                delete_file,
                girder,
            }),
            Row::GirderUploadVolumePathToFolder => {
                TransformSpec::GirderUploadVolumePathToFolder(UploadToFolder {
                    volumepath,
                    folder_id: self.text(of, "folder_id")?,
                    upload_kwargs: self.upload_kwargs(of)?,
                    delete_file,
                    must_exist: of.instance.attribute("must_exist").is_none_or(|node| self.truth(node)),
                    girder,
                })
            }
            _ => TransformSpec::GirderUploadVolumePathJobArtifact(UploadArtifact {
                volumepath,
                job_id: self.optional(of, "job_id")?.or_else(|| self.own_job(of)),
                name: self.optional(of, "name")?,
                upload_on_exception: self.truth(of.get("_upload_on_exception")),
                girder,
            }),
        })
    }

    /// The job document that Girder puts into a hook; only its id matters.
    fn own_job(&self, of: &Attributes<'_>) -> Option<String> {
        self.document.plain_text(self.document.get(of.get("job"), "_id")?)
    }

    fn bind_mount(&self, of: &Attributes<'_>) -> Result<BindMountVolume, DecodeError> {
        Ok(BindMountVolume {
            host_path: self.text(of, "_host_path")?,
            container_path: self.text(of, "_container_path")?,
            mode: self.optional(of, "mode")?.unwrap_or_else(|| "rw".to_owned()),
        })
    }

    fn temporary(&self, of: &Attributes<'_>) -> Result<TemporaryVolume, DecodeError> {
        /// What girder_worker gives when nothing is said.
        const USUAL: u32 = 0o777;
        let mode = match of.get("_mode") {
            Node::Null => None,
            Node::Number(number) => {
                let bits =
                    number.as_u64().filter(|bits| *bits <= 0o7777).and_then(|bits| u32::try_from(bits).ok());
                Some(bits.ok_or_else(|| {
                    unusable(&of.at("_mode"), number.to_string(), "must be permission bits, 0 to 4095")
                })?)
            }
            other => {
                return Err(unusable(&of.at("_mode"), self.document.kind(other), "must be permission bits"));
            }
        };
        Ok(TemporaryVolume {
            id: None,
            host_dir: self.optional(of, "host_dir")?,
            mode: mode.filter(|mode| *mode != USUAL),
        })
    }

    /// The volume of a path or pipe; the task's default one is none here.
    fn volume(&mut self, of: &Attributes<'_>) -> Result<Option<Volume>, DecodeError> {
        let node = of.get("_volume");
        if node.is_null() {
            return Ok(None);
        }
        let path = of.at("_volume");
        match self.transform(node, &path)? {
            TransformSpec::BindMountVolume(volume) => Ok(Some(Volume::BindMountVolume(volume))),
            TransformSpec::TemporaryVolume(TemporaryVolume { id: None, .. }) => Ok(None),
            TransformSpec::TemporaryVolume(volume) => Ok(Some(Volume::TemporaryVolume(volume))),
            other => {
                Err(unusable(&path, other.name().to_owned(), "must be a BindMountVolume or TemporaryVolume"))
            }
        }
    }

    fn pipe(&mut self, of: &Attributes<'_>) -> Result<NamedPipe, DecodeError> {
        Ok(NamedPipe {
            name: self.relative(of, "name")?,
            volume: self.volume(of)?,
            container_path: self.optional(of, "_container_path")?,
            host_path: self.optional(of, "_host_path")?,
        })
    }

    fn joined(&mut self, of: &Attributes<'_>) -> Result<CommaJoined, DecodeError> {
        let path = of.at("_volumes");
        let node = of.get("_volumes");
        let Some(items) = self.document.items(node) else {
            return Err(unusable(&path, self.document.kind(node), "must be a list of transforms"));
        };
        let read = items.iter().enumerate().map(|(n, item)| self.transform(item, &format!("{path}[{n}]")));
        read.collect::<Result<_, _>>().map(|volumes| CommaJoined { volumes })
    }

    fn source(&mut self, of: &Attributes<'_>) -> Result<UploadSource, DecodeError> {
        let path = of.at("_volumepath");
        let remedy = "must be a VolumePath; for a folder of the worker's host use one with a BindMountVolume";
        let node = of.get("_volumepath");
        if let Some(text) = self.document.plain_text(node) {
            return Ok(UploadSource::HostPath(HostPath { path: self.counted(text, &path)? }));
        }
        if self.document.instance(node).is_none() && *node != Node::Unresolved {
            return Err(unusable(&path, self.document.kind(node), remedy));
        }
        match self.transform(node, &path)? {
            TransformSpec::VolumePath(volumepath) => Ok(UploadSource::VolumePath(volumepath)),
            other => Err(unusable(&path, other.name().to_owned(), remedy)),
        }
    }

    fn upload_kwargs(&mut self, of: &Attributes<'_>) -> Result<Map<String, Value>, DecodeError> {
        let path = of.at("upload_kwargs");
        match self.argument(of.get("upload_kwargs"), &path)? {
            Arg::Null => Ok(Map::new()),
            Arg::Map(map) => Ok(map.iter().map(|(key, value)| (key.clone(), value.to_value())).collect()),
            other => Err(unusable(&path, other.kind().to_owned(), "must be a map")),
        }
    }
}
