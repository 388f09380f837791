//! `BindMountVolume`, `TemporaryVolume` and `VolumePath`: places, and paths in them.

use async_trait::async_trait;
use serde_json::Value;

use crate::error::TaskError;
use crate::pipeline::staging::in_folder;
use crate::pipeline::{Exit, Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::{Volume, VolumePath};

/// The row's maker.
pub(in crate::pipeline) fn bind_mount(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::BindMountVolume(bind) => Some(Box::new(Whole(Volume::BindMountVolume(bind.clone())))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn temporary(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::TemporaryVolume(volume) => {
            Some(Box::new(Whole(Volume::TemporaryVolume(volume.clone()))))
        }
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn path(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::VolumePath(path) => Some(Box::new(Path { spec: path.clone(), host: None })),
        _ => None,
    }
}

/// A volume itself: its text is its container path.
struct Whole(Volume);

#[async_trait]
impl Transform for Whole {
    async fn stage(&mut self, _place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        if let Volume::BindMountVolume(bind) = &self.0
            && !bind.container_path.starts_with('/')
        {
            return Err(TaskError::permanent(
                "bad_argument",
                format!(
                    "BindMountVolume.container_path is {:?}; it must be an absolute path",
                    bind.container_path
                ),
            ));
        }
        staging.volume(Some(&self.0)).map(|mounted| Some(mounted.container))
    }
}

/// A path in a volume: the container's as an argument, the host's as a result hook.
struct Path {
    spec: VolumePath,
    host: Option<std::path::PathBuf>,
}

#[async_trait]
impl Transform for Path {
    async fn stage(&mut self, _place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        let mounted = staging.volume(self.spec.volume.as_ref())?;
        self.host = Some(mounted.host.join(self.spec.filename.as_str()));
        Ok(Some(in_folder(&mounted.container, self.spec.filename.as_str())))
    }

    async fn finish(&mut self, _exit: &Exit) -> Result<Value, TaskError> {
        Ok(self.host.as_ref().map_or(Value::Null, |host| Value::String(host.display().to_string())))
    }
}
