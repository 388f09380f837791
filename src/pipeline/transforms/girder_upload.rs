//! `GirderUploadVolumePathToItem`, `GirderUploadVolumePathToFolder` and `GirderUploadVolumePathJobArtifact`: result hooks
//! that bring what a stopped container left in a volume to Girder (`girder_worker.docker.transforms.girder`).
//!
//! # Decisions
//! - A file is opened by `outputs` just before it is sent, and read through that one descriptor.
//! - What a hook should delete goes at the very end, and only when it is in Girder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Map, Value, json};

use super::misplaced;
use crate::error::TaskError;
use crate::girder::upload::{self, Delivered, Gate, Parcel, Parent};
use crate::girder::{Call, Client, Connection};
use crate::handler::Attempt;
use crate::pipeline::outputs::{Depth, Found, Listing, Output, Outputs};
use crate::pipeline::{Exit, Place, Staging, Transform, When, media_type};
use crate::task::TransformSpec;
use crate::task::transform::{GirderAccess, UploadArtifact, UploadSource, UploadToFolder, UploadToItem};

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

/// Which of the three.
#[derive(Clone)]
enum Spec {
    Item(UploadToItem),
    Folder(UploadToFolder),
    Artifact(UploadArtifact),
}

impl Spec {
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
    fn source(&self) -> &UploadSource {
        match self {
            Self::Item(spec) => &spec.volumepath,
            Self::Folder(spec) => &spec.volumepath,
            Self::Artifact(spec) => &spec.volumepath,
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
    done: bool,
}

/// A hook that was staged.
struct Ready {
    attempt: Attempt,
    client: Client,
    root: PathBuf,
    path: String,
    parallel: usize,
    chunk: u64,
    /// The job that artifacts belong to.
    job: Option<String>,
}

#[async_trait]
impl Transform for Upload {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        let class = self.spec.class();
        if place != Place::Hook {
            return Err(misplaced(class, "it belongs among the result_hooks"));
        }
        let about = |error: TaskError| TaskError { message: format!("{class}: {}", error.message), ..error };
        let UploadSource::VolumePath(source) = self.spec.source().clone();
        let root = staging.volume(source.volume.as_ref())?.host;
        let connection = Connection::of_transform(self.spec.access(), staging.girder()).map_err(about)?;
        let site = staging.settings().girder.clone();
        let connection = site.rewritten(connection, staging.girder());
        let client = site.client(&connection, &staging.settings().judge).map_err(about)?;
        let job = staging.girder().and_then(|girder| girder.job.as_ref()).map(|job| job.url.clone());
        let job = match &self.spec {
            Spec::Artifact(UploadArtifact { job_id: Some(job), .. }) => Some(job.clone()),
            _ => job.and_then(|url| url.trim_end_matches('/').rsplit('/').next().map(str::to_owned)),
        };
        let attempt = staging.attempt().clone();
        check_token(&client, &attempt).await.map_err(about)?;
        let settings = site.settings();
        self.ready = Some(Ready {
            attempt,
            client,
            root,
            path: source.filename.as_str().to_owned(),
            parallel: settings.parallel_uploads,
            chunk: settings.upload_chunk.bytes(),
            job,
        });
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

    async fn cleanup(&mut self) {
        let Some(ready) = self.ready.take().filter(|_| self.done && self.spec.deletes()) else { return };
        let (root, path) = (ready.root.clone(), ready.path.clone());
        let removed = tokio::task::spawn_blocking(move || Outputs::below(&root)?.remove(&path)).await;
        if let Ok(Err(error)) = removed {
            ready.attempt.report().note(format!("delete_file: cannot remove {}: {error}", ready.path));
        }
    }
}

impl Upload {
    fn of(spec: Spec) -> Box<dyn Transform> {
        Box::new(Self { spec, ready: None, done: false })
    }
}

impl Ready {
    async fn to_item(&self, spec: &UploadToItem) -> Result<Value, TaskError> {
        let parent = Parent::Item(spec.item_id.clone());
        let (outputs, files) = match self.find(Depth::Flat).await? {
            (_, Found::Missing) => return Err(missing()),
            (outputs, Found::File(file)) => (outputs, vec![file]),
            (outputs, Found::Folder(listing)) => (outputs, self.listed(listing)),
        };
        let sent = files.into_iter().map(|file| (parent.clone(), file)).collect();
        self.send_all(&outputs, sent, &spec.upload_kwargs).await?;
        Ok(Value::String(spec.item_id.clone()))
    }

    async fn to_folder(&self, spec: &UploadToFolder) -> Result<Value, TaskError> {
        let (outputs, found) = self.find(Depth::Recursive).await?;
        let sent = match found {
            Found::Missing if spec.must_exist => return Err(missing()),
            Found::Missing => {
                self.attempt.report().note(format!("there is no {} to upload", self.path));
                return Ok(Value::Null);
            }
            Found::File(file) => vec![(Parent::Folder(spec.folder_id.clone()), file)],
            Found::Folder(listing) => self.placed(listing, &spec.folder_id).await?,
        };
        self.send_all(&outputs, sent, &spec.upload_kwargs).await?;
        Ok(Value::String(spec.folder_id.clone()))
    }

    /// Makes Girder's folders for those of the listing; each file with the folder it goes to.
    async fn placed(&self, listing: Listing, top: &str) -> Result<Vec<(Parent, Output)>, TaskError> {
        let base: PathBuf =
            Path::new(&self.path).components().filter(|part| part.as_os_str() != ".").collect();
        let mut made: HashMap<PathBuf, String> = HashMap::from([(base, top.to_owned())]);
        for folder in &listing.folders {
            let above =
                folder.parent().and_then(|above| made.get(above)).cloned().unwrap_or_else(|| top.to_owned());
            let (name, _) = crate::pipeline::outputs::told(folder.file_name().unwrap_or_default());
            let call = Call::post("folder")
                .query("parentType", "folder")
                .query("parentId", above)
                .query("name", name)
                .query("reuseExisting", "true")
                .repeatable();
            let answer = self.client.json(call).await?;
            let id = answer.get("_id").and_then(Value::as_str).ok_or_else(|| {
                TaskError::retryable("girder_answer", "Girder's answer to a new folder names none")
            })?;
            made.insert(folder.clone(), id.to_owned());
        }
        let place = |file: &Output| {
            let above = file.path.parent().and_then(|above| made.get(above));
            Parent::Folder(above.cloned().unwrap_or_else(|| top.to_owned()))
        };
        Ok(self.listed(listing).into_iter().map(|file| (place(&file), file)).collect())
    }

    async fn artifacts(&self, spec: &UploadArtifact) -> Result<Value, TaskError> {
        let job = self.job.as_deref().ok_or_else(|| {
            TaskError::permanent("bad_argument", "the task has no Girder job; name one in job_id")
        })?;
        let (outputs, files, name) = match self.find(Depth::Flat).await? {
            (_, Found::Missing) => return Ok(Value::Null),
            (outputs, Found::File(file)) => (outputs, vec![file], spec.name.clone()),
            (outputs, Found::Folder(listing)) => (outputs, self.listed(listing), None),
        };
        let mut names = Vec::with_capacity(files.len());
        for file in files {
            let name = name.clone().unwrap_or_else(|| self.name(&file));
            self.attach(&outputs, &file, &name, job).await?;
            names.push(Value::String(name));
        }
        Ok(json!({"artifacts": names}))
    }

    async fn attach(
        &self,
        outputs: &Arc<Outputs>,
        file: &Output,
        name: &str,
        job: &str,
    ) -> Result<(), TaskError> {
        let content = Arc::new(open(outputs, file).await?);
        self.attempt.check_fence().await?;
        let call = Call::post(format!("job/{job}/artifact"))
            .query("name", name)
            .query("size", file.size.to_string())
            .query("mimeType", media_type::of(name).unwrap_or("application/octet-stream"))
            .feed(file.size, upload::feed(content, 0, file.size));
        let refused = match self.client.done(call).await {
            Ok(()) => {
                self.note(&format!("attached {name} ({}) to the job", shown(file.size)));
                return Ok(());
            }
            Err(refused) => refused,
        };
        // Girder answers 400 without a field to a route that it does not know, others answer 404 or 405.
        let no_route = match &refused {
            crate::girder::GirderError::Status { status: 400, field, .. } => field.is_none(),
            other => matches!(other.status(), Some(404 | 405)),
        };
        if no_route {
            let server = self.client.server();
            return Err(TaskError::permanent(
                "no_artifact_route",
                format!(
                    "the Girder at {server} has no route for job artifacts (Girder 5 has none unless a plugin adds it), or not for the job {job}: {refused}"
                ),
            ));
        }
        Err(refused.into())
    }

    /// Sends every file to its parent, several at once; ends with the first failure.
    async fn send_all(
        &self,
        outputs: &Arc<Outputs>,
        files: Vec<(Parent, Output)>,
        kwargs: &Map<String, Value>,
    ) -> Result<(), TaskError> {
        let sending = files.into_iter().map(|(parent, file)| self.send(outputs, parent, file, kwargs));
        futures_util::stream::iter(sending)
            .buffer_unordered(self.parallel.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    async fn send(
        &self,
        outputs: &Arc<Outputs>,
        parent: Parent,
        file: Output,
        kwargs: &Map<String, Value>,
    ) -> Result<(), TaskError> {
        let given = |name: &str| kwargs.get(name).and_then(Value::as_str).map(str::to_owned);
        let name = self.name(&file);
        let parcel = Parcel {
            mime_type: given("mimeType").or_else(|| media_type::of(&name).map(str::to_owned)),
            reference: given("reference"),
            size: file.size,
            content: Arc::new(open(outputs, &file).await?),
            name,
        };
        let sent =
            upload::deliver(&self.client, &parent, &parcel, self.chunk, &Fenced(&self.attempt)).await?;
        self.tell(&parcel, &parent, &sent);
        Ok(())
    }

    fn tell(&self, parcel: &Parcel, parent: &Parent, sent: &Delivered) {
        let (kind, id) = match parent {
            Parent::Item(id) => ("item", id),
            Parent::Folder(id) => ("folder", id),
        };
        let size = shown(parcel.size);
        self.note(&match sent.kind {
            upload::Kind::New => format!("uploaded {} ({size}) to the {kind} {id}", parcel.name),
            upload::Kind::Replaced => format!("replaced {} ({size}) in the {kind} {id}", parcel.name),
            upload::Kind::Unchanged => {
                format!("{} is unchanged in the {kind} {id} and is not sent again", parcel.name)
            }
        });
        let document = json!({
            "name": parcel.name, "size": parcel.size, "file": sent.file, "item": sent.item, kind: id,
            "upload": sent.kind.as_str(),
        });
        self.attempt.report().describe(|details| details.uploads.push(document));
    }

    fn note(&self, text: &str) {
        self.attempt.report().note(text);
    }

    fn name(&self, file: &Output) -> String {
        let (name, changed) = file.name();
        if changed {
            self.attempt.report().warn(format!("an output's name is no plain text: it is kept as {name}"));
        }
        name
    }

    /// The files of a listing; what was left out is told.
    fn listed(&self, listing: Listing) -> Vec<Output> {
        for path in &listing.skipped {
            let (shown, _) = crate::pipeline::outputs::told(path.as_os_str());
            self.attempt.report().warn(format!(
                "{shown} is not uploaded: it is no regular file, and links are never followed"
            ));
        }
        listing.files
    }

    async fn find(&self, depth: Depth) -> Result<(Arc<Outputs>, Found), TaskError> {
        let (root, path) = (self.root.clone(), self.path.clone());
        blocking(move || {
            let outputs = Outputs::below(&root).map_err(|error| {
                TaskError::retryable(
                    "upload_unreadable",
                    format!("cannot open the volume at {}: {error}", root.display()),
                )
            })?;
            let found = outputs.find(&path, depth)?;
            Ok((Arc::new(outputs), found))
        })
        .await
    }
}

fn shown(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

fn missing() -> TaskError {
    TaskError::permanent("output_missing", "the container left nothing at this path of the volume")
}

/// Fences an upload by its attempt.
struct Fenced<'a>(&'a Attempt);

#[async_trait]
impl Gate for Fenced<'_> {
    async fn check(&self) -> Result<(), TaskError> {
        self.0.check_fence().await
    }
}

async fn open(outputs: &Arc<Outputs>, file: &Output) -> Result<std::fs::File, TaskError> {
    let (outputs, file) = (outputs.clone(), file.clone());
    blocking(move || outputs.open(&file)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(TaskError::retryable("upload_unreadable", error.to_string())))
}

/// Tells at the start that the token will not live until the uploads, or that Girder does not know it.
async fn check_token(client: &Client, attempt: &Attempt) -> Result<(), TaskError> {
    let token = match client.json(Call::get("token/current")).await {
        Ok(token) => token,
        Err(error) if error.status() == Some(401) => return Err(error.into()),
        // A Girder that is away now may be back when the container is done.
        Err(error) => {
            tracing::debug!(%error, "how long a token lives is not known");
            return Ok(());
        }
    };
    if token.is_null() {
        return Err(TaskError::permanent(
            "girder_unauthorized",
            "Girder does not know the token that the uploads need; submit the task with one that is valid",
        ));
    }
    let expires =
        token.get("expires").and_then(Value::as_str).and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let Some(expires) = expires else { return Ok(()) };
    let left = expires.duration_since(jiff::Timestamp::now());
    let needed = attempt.task().timeout.map_or(SHORT, |timeout| {
        jiff::SignedDuration::try_from(timeout.get()).unwrap_or(jiff::SignedDuration::MAX)
    });
    if left < needed {
        attempt.report().warn(format!(
            "the token for the uploads expires at {expires:.0}, which may be before the work ends; give the task one that lives longer"
        ));
    }
    Ok(())
}

/// What a task without a time limit is taken to need.
const SHORT: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
