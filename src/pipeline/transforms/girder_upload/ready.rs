//! What an upload hook does once the container ended: finds its outputs, makes Girder's folders, sends file after file.
//!
//! # Decisions
//! - A file is opened by `outputs` just before it is sent, and read through that one descriptor.
//! - What was sent is written down ([`Sent`]) and not sent again, however often the hook is tried.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Map, Value, json};

use crate::error::TaskError;
use crate::girder::upload::{self, Begun, Delivered, Gate, Parcel, Parent};
use crate::girder::{Call, Client};
use crate::handler::Attempt;
use crate::pipeline::media_type;
use crate::pipeline::outputs::{Depth, Found, Listing, Output, Outputs};
use crate::pipeline::sent::{Item, Sent};
use crate::task::transform::{UploadArtifact, UploadToFolder, UploadToItem};

/// A hook that was staged, or whose outputs were kept.
pub(super) struct Ready {
    pub(super) attempt: Attempt,
    pub(super) client: Client,
    pub(super) root: PathBuf,
    pub(super) path: String,
    pub(super) parallel: usize,
    pub(super) chunk: u64,
    /// The job that artifacts belong to.
    pub(super) job: Option<String>,
    pub(super) sent: Sent,
    /// Its place among the task's hooks.
    pub(super) hook: usize,
}

impl Ready {
    pub(super) async fn to_item(&self, spec: &UploadToItem) -> Result<Value, TaskError> {
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

    pub(super) async fn to_folder(&self, spec: &UploadToFolder) -> Result<Value, TaskError> {
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

    pub(super) async fn artifacts(&self, spec: &UploadArtifact) -> Result<Value, TaskError> {
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
            let item = self.sent.item(self.hook, &file.path);
            if item.done().is_none() {
                self.attach(&outputs, &file, &name, job).await?;
                item.note_done(json!({"artifact": name}));
            }
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
        let item = self.sent.item(self.hook, &file.path);
        if item.done().is_some() {
            return Ok(());
        }
        let given = |name: &str| kwargs.get(name).and_then(Value::as_str).map(str::to_owned);
        let name = self.name(&file);
        let parcel = Parcel {
            mime_type: given("mimeType").or_else(|| media_type::of(&name).map(str::to_owned)),
            reference: given("reference"),
            size: file.size,
            content: Arc::new(open(outputs, &file).await?),
            name,
        };
        let watch = Watch { attempt: &self.attempt, item: &item };
        let sent = upload::deliver(&self.client, &parent, &parcel, self.chunk, &watch).await?;
        item.note_done(self.tell(&parcel, &parent, &sent));
        Ok(())
    }

    fn tell(&self, parcel: &Parcel, parent: &Parent, sent: &Delivered) -> Value {
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
        let told = document.clone();
        self.attempt.report().describe(|details| details.uploads.push(told));
        document
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

    pub(super) async fn find(&self, depth: Depth) -> Result<(Arc<Outputs>, Found), TaskError> {
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

/// Fences an upload by its attempt, and writes down how far it came.
struct Watch<'a> {
    attempt: &'a Attempt,
    item: &'a Item,
}

#[async_trait]
impl Gate for Watch<'_> {
    async fn check(&self) -> Result<(), TaskError> {
        self.attempt.check_fence().await
    }
    fn earlier(&self) -> Option<Begun> {
        self.item.begun()
    }
    fn began(&self, begun: Begun) {
        self.item.note_begun(begun);
    }
    fn acknowledged(&self, offset: u64) {
        self.item.note_acknowledged(offset);
    }
}

async fn open(outputs: &Arc<Outputs>, file: &Output) -> Result<std::fs::File, TaskError> {
    let (outputs, file) = (outputs.clone(), file.clone());
    blocking(move || outputs.open(&file)).await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(TaskError::retryable("upload_unreadable", error.to_string())))
}
