//! Brings one file to Girder: in chunks, beneath an item or a folder, once.
//!
//! Girder has no key that makes an upload idempotent, and a chunk that broke may lie half in its store: so an upload goes on
//! only at an offset that Girder acknowledged, and otherwise starts over; when the answer to the last chunk is lost, the
//! file is looked for before anything is sent again. Called by the transforms that upload; knows nothing of volumes.
//!
//! # Decisions
//! - `GET file/offset` changes the upload (`Upload().save`), and after it Girder's own checksum may be wrong: it is asked
//!   only to see that nothing of a broken chunk arrived. Any other answer starts over.
//! - Chunks are 64 MiB unless the settings say otherwise (`girder_client.GirderClient.MAX_CHUNK_SIZE`).
//! - A file of the same name and length in the item is compared, not believed: `girder_client` would keep the old one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Call, Client, GirderError};
use crate::error::TaskError;

/// Bytes read from the file at a time.
const PIECE: u64 = 1 << 20;
/// How often an upload may start over.
const STARTS: usize = 4;
/// How often one chunk may be sent again.
const AGAIN: usize = 8;
/// Between a broken chunk and the question what arrived of it.
const SETTLE: Duration = Duration::from_millis(500);
/// How far the clocks of Girder and of this host may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_secs(120);

/// Where a file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Into an item, where it replaces one of its name.
    Item(String),
    /// Into a new item of its name in a folder.
    Folder(String),
}

/// A file to bring.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Its name in Girder.
    pub name: String,
    /// Its type; Girder's `application/octet-stream` when none is known.
    pub mime_type: Option<String>,
    /// Passed on to Girder's `data.process` event.
    pub reference: Option<String>,
    /// Its length.
    pub size: u64,
    /// Its content.
    pub content: Arc<File>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The file's id.
    pub file: String,
    /// The item's id, where Girder tells it.
    pub item: Option<String>,
    /// Whether anything was sent.
    pub kind: Kind,
}

/// How a file came to be where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    New,
    /// It took the place of another content.
    Replaced,
    /// It was there already.
    Unchanged,
}

impl Kind {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Asked before an upload is finalised: whether it may still happen.
#[async_trait]
pub trait Gate: Send + Sync {
    /// An error when it may not.
    async fn check(&self) -> Result<(), TaskError>;
}

/// Brings `parcel` to `parent`. Dropping the future leaves at most an upload that was never finalised.
pub async fn deliver(
    client: &Client,
    parent: &Parent,
    parcel: &Parcel,
    chunk: u64,
    gate: &dyn Gate,
) -> Result<Delivered, TaskError> {
    let existing = match parent {
        Parent::Item(item) => existing(client, item, &parcel.name).await?,
        Parent::Folder(_) => None,
    };
    if let Some(existing) = &existing
        && existing.size == parcel.size
        && same_content(client, &existing.id, parcel).await?
    {
        return Ok(Delivered {
            file: existing.id.clone(),
            item: existing.item.clone(),
            kind: Kind::Unchanged,
        });
    }
    let mut sending = Sending { client, parent, parcel, chunk: chunk.max(1), gate, replaces: None };
    sending.replaces = existing.map(|existing| existing.id);
    sending.deliver().await
}

/// A file as Girder describes it.
#[derive(Clone, Debug)]
struct Document {
    id: String,
    item: Option<String>,
    size: u64,
}

impl Document {
    fn read(value: &Value) -> Option<Self> {
        Some(Self {
            id: value.get("_id")?.as_str()?.to_owned(),
            item: value.get("itemId").and_then(Value::as_str).map(str::to_owned),
            size: value.get("size")?.as_u64()?,
        })
    }
}

/// The file called `name` in an item.
async fn existing(client: &Client, item: &str, name: &str) -> Result<Option<Document>, GirderError> {
    let files = client.get_json(&format!("item/{item}/files"), &[("limit", "0")]).await?;
    let named = files.as_array().into_iter().flatten().find(|file| file["name"] == name);
    Ok(named.and_then(Document::read))
}

/// Whether Girder's file holds what `parcel` does. Stops at the first difference.
async fn same_content(client: &Client, file: &str, parcel: &Parcel) -> Result<bool, TaskError> {
    if parcel.size == 0 {
        return Ok(true);
    }
    let mut download = client.get_stream(&format!("file/{file}/download"), 0).await?;
    let mut offset = 0;
    while let Some(piece) = download.piece().await? {
        let length = piece.len() as u64;
        if offset + length > parcel.size {
            return Ok(false);
        }
        let own = read_at(parcel.content.clone(), offset, piece.len())
            .await
            .map_err(|error| unreadable(parcel, &error))?;
        if own != piece {
            return Ok(false);
        }
        offset += length;
    }
    Ok(offset == parcel.size)
}

/// One file under way.
struct Sending<'a> {
    client: &'a Client,
    parent: &'a Parent,
    parcel: &'a Parcel,
    chunk: u64,
    gate: &'a dyn Gate,
    /// The file whose content is replaced.
    replaces: Option<String>,
}

/// How one start of an upload ended.
enum Went {
    /// The file is there. `surely`: nothing was sent twice on the way.
    There(Document, Surely),
    /// It must start over.
    Over(TaskError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Surely {
    Yes,
    No,
}

/// What became of a broken chunk.
enum Broken {
    /// Nothing of it arrived.
    SendAgain,
    /// The upload is over and the file is there.
    Finished(Document),
    StartOver,
}

impl Sending<'_> {
    async fn deliver(&mut self) -> Result<Delivered, TaskError> {
        let kind = if self.replaces.is_some() { Kind::Replaced } else { Kind::New };
        let mut last = None;
        for _ in 0..STARTS {
            match self.attempt().await? {
                Went::There(document, surely) => {
                    let right = document.size == self.parcel.size
                        && (surely == Surely::Yes
                            || same_content(self.client, &document.id, self.parcel).await?);
                    if right {
                        return Ok(Delivered { file: document.id, item: document.item, kind });
                    }
                    tracing::warn!(
                        file = document.id,
                        "Girder keeps another content than was sent: it is sent again"
                    );
                    last = Some(TaskError::retryable(
                        "girder_upload",
                        format!(
                            "Girder keeps {} bytes of {} where {} were sent",
                            document.size, self.parcel.name, self.parcel.size
                        ),
                    ));
                    // Its place is kept, so that no second file appears beside it.
                    self.replaces = Some(document.id);
                }
                Went::Over(error) => {
                    tracing::debug!(%error, name = self.parcel.name, "an upload starts over");
                    last = Some(error);
                }
            }
        }
        let cause = last.map_or_else(String::new, |error| format!(": {}", error.message));
        Err(TaskError::retryable(
            "girder_upload",
            format!("{} was not taken in {STARTS} tries{cause}", self.parcel.name),
        ))
    }

    async fn attempt(&self) -> Result<Went, TaskError> {
        let began = Timestamp::now();
        if self.parcel.size == 0 {
            self.gate.check().await?;
        }
        let answer = match self.client.json(self.begin()).await {
            Ok(answer) => answer,
            Err(error) if error.is_passing() && !error.is_not_begun() => {
                // An empty file is made by this very call.
                if self.parcel.size == 0
                    && let Some(found) = self.made_since(began).await?
                {
                    return Ok(Went::There(found, Surely::Yes));
                }
                return Ok(Went::Over(error.into()));
            }
            Err(error) => return Err(error.into()),
        };
        if self.parcel.size == 0 {
            return document(&answer).map(|document| Went::There(document, Surely::Yes));
        }
        let Some(upload) = answer.get("_id").and_then(Value::as_str) else {
            return Err(no_id("the start of an upload"));
        };
        let sent = self.chunks(upload, began).await;
        if matches!(sent, Err(_) | Ok(Went::Over(_))) {
            // What is left of it would lie in Girder's temporary folder for ever. It may be gone already.
            if let Err(error) = self.client.done(Call::delete(format!("file/upload/{upload}"))).await {
                tracing::debug!(%error, "a broken upload is left at Girder");
            }
        }
        sent
    }

    fn begin(&self) -> Call {
        let parcel = self.parcel;
        let call = match (&self.replaces, self.parent) {
            (Some(file), _) => Call::put(format!("file/{file}/contents")),
            (None, Parent::Item(id)) => named(Call::post("file"), "item", id, parcel),
            (None, Parent::Folder(id)) => named(Call::post("file"), "folder", id, parcel),
        };
        let call = call.query("size", parcel.size.to_string());
        match &parcel.reference {
            Some(reference) => call.query("reference", reference),
            None => call,
        }
    }

    async fn chunks(&self, upload: &str, began: Timestamp) -> Result<Went, TaskError> {
        let (mut offset, mut again, mut surely) = (0, 0, Surely::Yes);
        loop {
            let length = self.chunk.min(self.parcel.size - offset);
            let is_last = offset + length == self.parcel.size;
            if is_last {
                self.gate.check().await?;
            }
            let call = Call::post("file/chunk")
                .query("offset", offset.to_string())
                .query("uploadId", upload)
                .feed(length, feed(self.parcel.content.clone(), offset, length));
            let error = match self.client.json(call).await {
                Ok(answer) if is_last => {
                    return document(&answer).map(|document| Went::There(document, surely));
                }
                Ok(answer) => {
                    offset += length;
                    let received = answer.get("received").and_then(Value::as_u64);
                    if received.is_some_and(|received| received != offset) {
                        let text = format!(
                            "Girder has {received:?} bytes of {} after {offset} were sent",
                            self.parcel.name
                        );
                        return Ok(Went::Over(TaskError::retryable("girder_upload", text)));
                    }
                    again = 0;
                    continue;
                }
                Err(error) => error,
            };
            if !error.is_passing() && !matches!(error.status(), Some(400 | 404)) {
                return Err(error.into());
            }
            again += 1;
            match self.after(upload, offset, is_last, began).await? {
                // It is not the offset that Girder refuses: the same again would be refused alike.
                Broken::SendAgain if !error.is_passing() => return Err(error.into()),
                Broken::SendAgain if again <= AGAIN => surely = Surely::No,
                Broken::Finished(document) => return Ok(Went::There(document, Surely::No)),
                Broken::SendAgain | Broken::StartOver => return Ok(Went::Over(error.into())),
            }
        }
    }

    /// What became of the chunk at `offset`, which broke.
    async fn after(
        &self,
        upload: &str,
        offset: u64,
        is_last: bool,
        began: Timestamp,
    ) -> Result<Broken, TaskError> {
        tokio::time::sleep(SETTLE).await;
        match self.client.get_json("file/offset", &[("uploadId", upload)]).await {
            Ok(answer) if answer.get("offset").and_then(Value::as_u64) == Some(offset) => {
                Ok(Broken::SendAgain)
            }
            Ok(_) => Ok(Broken::StartOver),
            Err(error) if matches!(error.status(), Some(400 | 404)) => {
                // The upload is gone: it may have become the file.
                let found = if is_last { self.made_since(began).await? } else { None };
                Ok(found.map_or(Broken::StartOver, Broken::Finished))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The file that this upload made, when its answer was lost.
    async fn made_since(&self, began: Timestamp) -> Result<Option<Document>, TaskError> {
        let recent = |value: &Value| {
            let at = value.get("created").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
            at.is_some_and(|at| at >= began - CLOCKS)
        };
        let fits = |value: &Value| {
            let found = Document::read(value)?;
            (value["name"] == self.parcel.name && found.size == self.parcel.size && recent(value))
                .then_some(found)
        };
        if let Some(file) = &self.replaces {
            // Girder sets `created` when it replaces a content (`Upload.finalizeUpload`).
            return Ok(fits(&self.client.get_json(&format!("file/{file}"), &[]).await?));
        }
        let files = |item: String| async move {
            self.client.get_json(&format!("item/{item}/files"), &[("limit", "0")]).await
        };
        match self.parent {
            Parent::Item(item) => {
                Ok(files(item.clone()).await?.as_array().into_iter().flatten().find_map(fits))
            }
            Parent::Folder(folder) => {
                let newest =
                    [("folderId", folder.as_str()), ("sort", "created"), ("sortdir", "-1"), ("limit", "50")];
                let items = self.client.get_json("item", &newest).await?;
                for item in items.as_array().into_iter().flatten().filter(|item| recent(item)) {
                    let Some(id) = item.get("_id").and_then(Value::as_str) else { continue };
                    if let Some(found) =
                        files(id.to_owned()).await?.as_array().into_iter().flatten().find_map(fits)
                    {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
        }
    }
}

fn named(call: Call, parent: &str, id: &str, parcel: &Parcel) -> Call {
    let call = call.query("parentType", parent).query("parentId", id).query("name", &parcel.name);
    match &parcel.mime_type {
        Some(mime_type) => call.query("mimeType", mime_type),
        None => call,
    }
}

fn document(answer: &Value) -> Result<Document, TaskError> {
    Document::read(answer).ok_or_else(|| no_id("the end of an upload"))
}

fn no_id(what: &str) -> TaskError {
    TaskError::retryable(
        "girder_answer",
        format!("Girder's answer to {what} names no file; is the API address right?"),
    )
}

fn unreadable(parcel: &Parcel, error: &io::Error) -> TaskError {
    TaskError::retryable("upload_unreadable", format!("cannot read {}: {error}", parcel.name))
}

type Pieces = futures_util::stream::BoxStream<'static, io::Result<Bytes>>;

/// The `length` bytes of `content` from `offset` on, made anew for each try.
pub fn feed(content: Arc<File>, offset: u64, length: u64) -> impl Fn() -> Pieces + Send + Sync + 'static {
    move || {
        let content = content.clone();
        futures_util::stream::unfold((content, 0), move |(content, done)| async move {
            if done >= length {
                return None;
            }
            let wanted = usize::try_from(PIECE.min(length - done)).unwrap_or(usize::MAX);
            let piece = read_at(content.clone(), offset + done, wanted).await;
            let next = piece.as_ref().map_or(length, |piece| done + piece.len() as u64);
            Some((piece, (content, next)))
        })
        .boxed()
    }
}

/// Exactly `length` bytes; a file that became shorter is an error.
async fn read_at(content: Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; length];
        content.read_exact_at(&mut buffer, offset)?;
        Ok(Bytes::from(buffer))
    })
    .await
    .map_err(io::Error::other)?
}
