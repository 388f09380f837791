//! `GirderUploadVolumePathToItem`, `GirderUploadVolumePathToFolder` and `GirderUploadVolumePathJobArtifact`: result hooks
//! that bring what a stopped container left in a volume to Girder (`girder_worker.docker.transforms.girder`).
//!
//! What nobody takes is moved or copied to where [`spool`](crate::pipeline::spool) keeps it, and brought away from there
//! by the same hook.
//!
//! # Decisions
//! - What a hook should delete goes at the very end, and only when it is in Girder.

mod ready;
mod token;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::misplaced;
use crate::error::TaskError;
use crate::girder::Connection;
use crate::handler::Attempt;
use crate::pipeline::outputs::{Depth, Found, Listing, Outputs, Taking};
use crate::pipeline::sent::Sent;
use crate::pipeline::{Exit, Place, Settings, Staging, Transform, When};
use crate::task::transform::{
    GirderAccess, HostPath, UploadArtifact, UploadSource, UploadToFolder, UploadToItem, Volume, VolumePath,
};
use crate::task::{GirderContext, TransformSpec};

use ready::{Ready, blocking};

/// The row's maker.
pub(in crate::pipeline) fn item(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderUploadVolumePathToItem(spec) => Some(Upload::of(Spec::Item(spec.clone()))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn folder(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderUploadVolumePathToFolder(spec) => Some(Upload::of(Spec::Folder(spec.clone()))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn artifact(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderUploadVolumePathJobArtifact(spec) => {
            Some(Upload::of(Spec::Artifact(spec.clone())))
        }
        _ => None,
    }
}

/// Outputs of a hook that were kept.
pub(in crate::pipeline) struct Kept {
    /// The folder that stands for the volume.
    pub(in crate::pipeline) root: PathBuf,
    /// The volume, when they are to be deleted there.
    pub(in crate::pipeline) origin: Option<PathBuf>,
    pub(in crate::pipeline) sent: Sent,
    /// The hook's place among the task's hooks.
    pub(in crate::pipeline) hook: usize,
}

/// The hook of `spec`, ready to bring away what was kept.
pub(in crate::pipeline) fn go_on(
    spec: &TransformSpec,
    kept: Kept,
    (attempt, settings): (&Attempt, &Settings),
    connection: Connection,
) -> Result<Box<dyn Transform>, TaskError> {
    let spec = Spec::of(spec)?;
    let Kept { root, origin, sent, hook } = kept;
    let place = (root, sent, hook);
    let ready = spec.ready(place, (attempt, settings), (connection, attempt.task().girder.as_ref()))?;
    Ok(Box::new(Upload { spec, ready: Some(ready), origin, done: false }))
}

/// The Girder that a hook names for itself.
pub(in crate::pipeline) fn access(spec: &TransformSpec) -> Option<&GirderAccess> {
    match spec {
        TransformSpec::GirderUploadVolumePathToItem(spec) => spec.girder.as_ref(),
        TransformSpec::GirderUploadVolumePathToFolder(spec) => spec.girder.as_ref(),
        TransformSpec::GirderUploadVolumePathJobArtifact(spec) => spec.girder.as_ref(),
        _ => None,
    }
}

/// Which of the three.
#[derive(Clone)]
enum Spec {
    Item(UploadToItem),
    Folder(UploadToFolder),
    Artifact(UploadArtifact),
}

impl Spec {
    fn of(spec: &TransformSpec) -> Result<Self, TaskError> {
        match spec {
            TransformSpec::GirderUploadVolumePathToItem(spec) => Ok(Self::Item(spec.clone())),
            TransformSpec::GirderUploadVolumePathToFolder(spec) => Ok(Self::Folder(spec.clone())),
            TransformSpec::GirderUploadVolumePathJobArtifact(spec) => Ok(Self::Artifact(spec.clone())),
            other => {
                Err(TaskError::permanent("bad_argument", format!("{} brings nothing away", other.name())))
            }
        }
    }
    fn class(&self) -> &'static str {
        match self {
            Self::Item(_) => "GirderUploadVolumePathToItem",
            Self::Folder(_) => "GirderUploadVolumePathToFolder",
            Self::Artifact(_) => "GirderUploadVolumePathJobArtifact",
        }
    }
    fn access(&self) -> Option<&GirderAccess> {
        match self {
            Self::Item(spec) => spec.girder.as_ref(),
            Self::Folder(spec) => spec.girder.as_ref(),
            Self::Artifact(spec) => spec.girder.as_ref(),
        }
    }
    /// Where its outputs are. Files of the worker's own machine are no task's outputs, whoever names them.
    fn source(&self) -> Result<&VolumePath, TaskError> {
        let source = match self {
            Self::Item(spec) => &spec.volumepath,
            Self::Folder(spec) => &spec.volumepath,
            Self::Artifact(spec) => &spec.volumepath,
        };
        match source {
            UploadSource::VolumePath(path) => Ok(path),
            UploadSource::HostPath(HostPath { path }) => Err(TaskError::permanent(
                "bad_argument",
                format!(
                    "{path:?} is a path of the worker's host, and hooks bring only what lies in volumes: use a VolumePath, with a BindMountVolume for a folder of the host"
                ),
            )),
        }
    }
    /// How its outputs are looked for.
    fn depth(&self) -> Depth {
        match self {
            Self::Folder(_) => Depth::Recursive,
            Self::Item(_) | Self::Artifact(_) => Depth::Flat,
        }
    }
    fn deletes(&self) -> bool {
        match self {
            Self::Item(spec) => spec.delete_file,
            Self::Folder(spec) => spec.delete_file,
            Self::Artifact(_) => false,
        }
    }
}

/// One upload hook.
struct Upload {
    spec: Spec,
    ready: Option<Ready>,
    /// Where else its outputs are to be deleted.
    origin: Option<PathBuf>,
    done: bool,
}

#[async_trait]
impl Transform for Upload {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        let class = self.spec.class();
        if place != Place::Hook {
            return Err(misplaced(class, "it belongs among the result_hooks"));
        }
        let about = |error: TaskError| TaskError { message: format!("{class}: {}", error.message), ..error };
        let source = self.spec.source().map_err(about)?.clone();
        let root = staging.volume(source.volume.as_ref())?.host;
        let connection = Connection::of_transform(self.spec.access(), staging.girder()).map_err(about)?;
        let is_new = staging.is_new(&connection.api_url);
        let place = (root, staging.sent.clone(), staging.hook);
        let around = (staging.attempt(), staging.settings());
        let ready = self.spec.ready(place, around, (connection, staging.girder())).map_err(about)?;
        if is_new {
            token::check(&ready.client, &ready.attempt).await;
        }
        self.ready = Some(ready);
        Ok(None)
    }

    fn when(&self) -> When {
        match &self.spec {
            Spec::Artifact(spec) if spec.upload_on_exception => When::Always,
            Spec::Item(_) | Spec::Folder(_) | Spec::Artifact(_) => When::OnSuccess,
        }
    }

    async fn finish(&mut self, _exit: &Exit) -> Result<Value, TaskError> {
        let Some(ready) = &self.ready else { return Ok(Value::Null) };
        let class = self.spec.class();
        let about = |error: TaskError| TaskError {
            message: format!("{class} of {}: {}", ready.path, error.message),
            ..error
        };
        let value = match &self.spec {
            Spec::Item(spec) => ready.to_item(spec).await.map_err(about)?,
            Spec::Folder(spec) => ready.to_folder(spec).await.map_err(about)?,
            // What is attached for people to look at is no result: its failure is told and changes nothing.
            Spec::Artifact(spec) => match ready.artifacts(spec).await.map_err(about) {
                Ok(value) => value,
                Err(error) if error.code == "lease_lost" => return Err(error),
                Err(error) => {
                    ready.attempt.report().warn(error.message.clone());
                    json!({"artifact": ready.path, "error": error.message})
                }
            },
        };
        self.done = true;
        Ok(value)
    }

    async fn keep(&mut self, place: &Path, how: Taking) -> Result<Option<PathBuf>, TaskError> {
        let Some(ready) = &self.ready else { return Ok(None) };
        let source = self.spec.source()?;
        // What the task mounts is seen by others, who may change it.
        let is_shared = matches!(source.volume, Some(Volume::BindMountVolume(_)));
        let how = if is_shared { Taking::Copy } else { how };
        let (outputs, found) = ready.find(self.spec.depth()).await?;
        let (mut listing, folder) = match found {
            Found::Missing => (Listing::default(), None),
            Found::File(file) => (Listing { files: vec![file], ..Listing::default() }, None),
            Found::Folder(listing) => (listing, Some(PathBuf::from(&ready.path))),
        };
        listing.files.retain(|file| ready.sent.item(ready.hook, &file.path).done().is_none());
        let place = place.to_owned();
        blocking(move || outputs.take_all(&listing, folder.as_deref(), (&place, how))).await?;
        Ok((is_shared && self.spec.deletes()).then(|| ready.root.clone()))
    }

    async fn cleanup(&mut self) {
        let Some(ready) = self.ready.take().filter(|_| self.done && self.spec.deletes()) else { return };
        let root = self.origin.take().unwrap_or_else(|| ready.root.clone());
        let path = ready.path.clone();
        let removed = tokio::task::spawn_blocking(move || Outputs::below(&root)?.remove(&path)).await;
        if let Ok(Err(error)) = removed {
            ready.attempt.report().note(format!("delete_file: cannot remove {}: {error}", ready.path));
        }
    }
}

impl Upload {
    fn of(spec: Spec) -> Box<dyn Transform> {
        Box::new(Self { spec, ready: None, origin: None, done: false })
    }
}

impl Spec {
    /// A hook whose volume lies at `root`.
    fn ready(
        &self,
        (root, sent, hook): (PathBuf, Sent, usize),
        (attempt, settings): (&Attempt, &Settings),
        (connection, girder): (Connection, Option<&GirderContext>),
    ) -> Result<Ready, TaskError> {
        let site = &settings.girder;
        let client = site.client(&site.rewritten(connection, girder), &settings.judge)?;
        let job = match self {
            Self::Artifact(UploadArtifact { job_id: Some(job), .. }) => Some(job.clone()),
            Self::Item(_) | Self::Folder(_) | Self::Artifact(_) => girder
                .and_then(|girder| girder.job.as_ref())
                .and_then(|job| job.url.trim_end_matches('/').rsplit('/').next().map(str::to_owned)),
        };
        let source = self.source()?;
        Ok(Ready {
            attempt: attempt.clone(),
            client,
            root,
            path: source.filename.as_str().to_owned(),
            parallel: site.settings().parallel_uploads,
            chunk: site.settings().upload_chunk.bytes(),
            job,
            sent,
            hook,
        })
    }
}
