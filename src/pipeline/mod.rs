//! What a task's transforms do: volumes, pipes and streams around a container.
//!
//! Owns [`Transform`], the table [`TRANSFORMS`] that gives each class name its transform, and the [`Pipeline`] that
//! stages them into a [`ContainerPlan`], carries the streams while the container runs, finishes and cleans up. Knows
//! nothing of any container engine: what only an engine can do is the trait [`Cleaner`]. Called by `docker/`.
//!
//! # Decisions
//! - FIFOs live in a folder that only the worker can enter and are mounted one by one: a container can then neither
//!   replace one nor make the worker open something else.
//! - A sink drives its stream ([`Sink::take`]), so that backpressure is nothing but not asking for more.

mod beneath;
pub mod conduit;
pub mod driver;
mod fetches;
pub mod fifo;
pub mod lines;
pub mod made;
mod media_type;
mod mentions;
pub mod outputs;
pub mod plan;
mod sent;
pub mod settings;
pub mod spool;
pub mod staging;
mod targets;
mod transforms;
mod tree;
mod volumes;
pub mod workspace;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::Value;

pub use conduit::{Origin, Sink, StandardStreams};
pub use driver::{Exit, Pipeline, Request, WorkerFile};
pub use made::Made;
pub use mentions::volumes_of;
pub use outputs::Taking;
pub use plan::{ContainerPlan, Mount, MountKind, MountMode};
pub use settings::Settings;
pub use staging::Staging;

use crate::error::TaskError;
use crate::task::TransformSpec;

/// One transform of a task, from staging to cleanup.
#[async_trait]
pub trait Transform: Send {
    /// Prepares it for where it stands; says which text takes its place, if any.
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError>;
    /// Asks others for what it needs to be an end of a `Connect`.
    async fn prepare(&mut self, _staging: &mut Staging) -> Result<(), TaskError> {
        Ok(())
    }
    /// Itself as the input of a `Connect`; none when it cannot be one.
    fn source(&mut self, _staging: &mut Staging) -> Result<Option<Origin>, TaskError> {
        Ok(None)
    }
    /// Itself as the output of a `Connect`; none when it cannot be one.
    fn sink(&mut self, _staging: &mut Staging) -> Result<Option<Box<dyn Sink>>, TaskError> {
        Ok(None)
    }
    /// After which ends [`Transform::finish`] is called.
    fn when(&self) -> When {
        When::OnSuccess
    }
    /// Does what is left to do once the container ended, as a result hook; the value becomes part of the result.
    async fn finish(&mut self, _exit: &Exit) -> Result<Value, TaskError> {
        Ok(Value::Null)
    }
    /// Keeps what it would bring away in the empty folder `place`, which only the worker can enter; from where, when that
    /// must hear of its end.
    async fn keep(&mut self, _place: &Path, _how: Taking) -> Result<Option<PathBuf>, TaskError> {
        Ok(None)
    }
    /// Takes back what staging made outside the workspace. Idempotent.
    async fn cleanup(&mut self) {}
}

/// Where a transform stands in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among the arguments, the entrypoint or the options.
    Argument,
    /// Among the volumes.
    Volume,
    /// Among the stream connectors.
    Connector,
    /// Among the result hooks.
    Hook,
}

/// After which ends a result hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After exit code 0.
    OnSuccess,
    /// After every end but a cancellation.
    Always,
}

/// Removes what the worker may not unlink itself, because another user's process made it.
#[async_trait]
pub trait Cleaner: Send + Sync {
    /// Removes everything inside `folder`, an absolute path on the worker's own file system.
    async fn clean(&self, folder: &Path) -> Result<(), TaskError>;
}

/// How a class name becomes a transform.
pub struct TransformRow {
    /// The class name.
    pub name: &'static str,
    /// Makes the transform of a spec of that name.
    make: fn(&TransformSpec) -> Option<Box<dyn Transform>>,
}

/// Every transform that this build can run.
pub const TRANSFORMS: &[TransformRow] = &[
    TransformRow { name: "BindMountVolume", make: transforms::volume::bind_mount },
    TransformRow { name: "TemporaryVolume", make: transforms::volume::temporary },
    TransformRow { name: "VolumePath", make: transforms::volume::path },
    TransformRow { name: "NamedInputPipe", make: transforms::pipe::input },
    TransformRow { name: "NamedOutputPipe", make: transforms::pipe::output },
    TransformRow { name: "Connect", make: transforms::pipe::connect },
    TransformRow { name: "HostStdOut", make: transforms::stdio::host_stdout },
    TransformRow { name: "HostStdErr", make: transforms::stdio::host_stderr },
    TransformRow { name: "ContainerStdOut", make: transforms::stdio::container_stdout },
    TransformRow { name: "ContainerStdErr", make: transforms::stdio::container_stderr },
    TransformRow { name: "ChunkedTransferEncodingStream", make: transforms::http_stream::stream },
    TransformRow { name: "ProgressPipe", make: transforms::progress::pipe },
    TransformRow { name: "GirderFileIdToStream", make: transforms::girder_stream::stream },
    TransformRow { name: "GirderFileIdToVolume", make: transforms::girder_fetch::file },
    TransformRow { name: "GirderItemIdToVolume", make: transforms::girder_fetch::item },
    TransformRow { name: "GirderFolderIdToVolume", make: transforms::girder_fetch::folder },
    TransformRow { name: "DirectGirderFileIdToVolume", make: transforms::girder_fetch::direct },
    TransformRow { name: "GirderUploadVolumePathToItem", make: transforms::girder_upload::item },
    TransformRow { name: "GirderUploadVolumePathToFolder", make: transforms::girder_upload::folder },
    TransformRow { name: "GirderUploadVolumePathJobArtifact", make: transforms::girder_upload::artifact },
    TransformRow { name: "CommaJoinedVolumes", make: transforms::slicer::joined },
    TransformRow { name: "GirderApiUrl", make: transforms::slicer::api_url },
    TransformRow { name: "GirderToken", make: transforms::slicer::token },
    TransformRow { name: "PythonTransform", make: transforms::python::transform },
];

/// The transform of `spec`.
fn transform_of(spec: &TransformSpec) -> Result<Box<dyn Transform>, TaskError> {
    TRANSFORMS.iter().find(|row| row.name == spec.name()).and_then(|row| (row.make)(spec)).ok_or_else(|| {
        TaskError::permanent(
            "unsupported_transform",
            format!(
                "the transform {} is not known to this build of the worker; update the worker",
                spec.name()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transform_of_a_task_has_a_row() {
        let missing: Vec<&str> = TransformSpec::NAMES
            .iter()
            .copied()
            .filter(|name| !TRANSFORMS.iter().any(|row| row.name == *name))
            .collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn every_row_makes_the_transform_of_its_name() {
        let specs = serde_json::json!([
            {"$": "BindMountVolume", "host_path": "/a", "container_path": "/b"},
            {"$": "TemporaryVolume"},
            {"$": "VolumePath", "filename": "a"},
            {"$": "NamedInputPipe", "name": "a"},
            {"$": "NamedOutputPipe", "name": "a"},
            {"$": "Connect", "input": {"$": "NamedOutputPipe", "name": "a"}, "output": {"$": "HostStdOut"}},
            {"$": "HostStdOut"},
            {"$": "HostStdErr"},
            {"$": "ContainerStdOut"},
            {"$": "ContainerStdErr"},
            {"$": "ChunkedTransferEncodingStream", "url": "http://a/"},
            {"$": "ProgressPipe"},
            {"$": "GirderFileIdToStream", "file_id": "1"},
            {"$": "GirderFileIdToVolume", "file_id": "1"},
            {"$": "GirderItemIdToVolume", "item_id": "1"},
            {"$": "GirderFolderIdToVolume", "folder_id": "1"},
            {"$": "DirectGirderFileIdToVolume", "file_id": "1"},
            {"$": "GirderUploadVolumePathToItem", "volumepath": {"$": "VolumePath", "filename": "a"}, "item_id": "a"},
            {"$": "GirderUploadVolumePathToFolder", "volumepath": {"$": "VolumePath", "filename": "a"}, "folder_id": "a"},
            {"$": "GirderUploadVolumePathJobArtifact", "volumepath": {"$": "VolumePath", "filename": "a"}},
            {"$": "CommaJoinedVolumes", "volumes": []},
            {"$": "GirderApiUrl"},
            {"$": "GirderToken"},
            {"$": "PythonTransform", "class": "a.B", "instead": "C"},
        ]);
        let specs: Vec<TransformSpec> = serde_json::from_value(specs).unwrap();
        assert_eq!(specs.len(), TRANSFORMS.len());
        for (spec, row) in specs.iter().zip(TRANSFORMS) {
            assert_eq!(spec.name(), row.name);
            assert!((row.make)(spec).is_some(), "{}", row.name);
        }
    }
}
