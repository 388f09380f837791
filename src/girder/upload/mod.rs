//! Brings one file to Girder: in chunks, beneath an item or a folder, once.
//!
//! Girder has no key that makes an upload idempotent, and a chunk that broke may lie half in its store: so an upload goes on
//! only at an offset that Girder acknowledged, and otherwise starts over; when the answer to the last chunk is lost, the
//! file is looked for before anything is sent again. Who calls writes down how far each upload came ([`Gate`]), so that a
//! later process goes on by the same rules. Called by the transforms that upload; knows nothing of volumes.
//!
//! # Decisions
//! - `GET file/offset` changes the upload (`Upload().save`), and after it Girder's own checksum may be wrong: it is asked
//!   only to see that nothing of a broken chunk arrived. Any other answer starts over.
//! - Chunks are 64 MiB unless the settings say otherwise (`girder_client.GirderClient.MAX_CHUNK_SIZE`).
//! - A file of the same name and length in the item is compared, not believed: `girder_client` would keep the old one.

mod sending;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Client, GirderError};
use crate::error::TaskError;

use sending::Sending;

/// Bytes read from the file at a time.
const PIECE: u64 = 1 << 20;

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

/// An upload that was begun, as far as Girder acknowledged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Girder's id of it; empty while its answer is awaited.
    pub upload: String,
    /// When it began.
    pub at: Timestamp,
    /// The file whose content it replaces.
    pub replaces: Option<String>,
    /// Bytes that Girder acknowledged.
    pub offset: u64,
}

/// Watches over one upload: whether it may be finalised, and how far it came.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Asked before it is finalised; an error when it may not.
    async fn check(&self) -> Result<(), TaskError>;
    /// How far an earlier try came that is to be gone on with.
    fn earlier(&self) -> Option<Begun> {
        None
    }
    /// It begins, or began: told before Girder is asked and again with its answer.
    fn began(&self, _begun: Begun) {}
    /// Girder has everything before this offset.
    fn acknowledged(&self, _offset: u64) {}
}

/// Brings `parcel` to `parent`. Dropping the future leaves at most an upload that was never finalised.
pub async fn deliver(
    client: &Client,
    parent: &Parent,
    parcel: &Parcel,
    chunk: u64,
    gate: &dyn Gate,
) -> Result<Delivered, TaskError> {
    let mut sending = Sending { client, parent, parcel, chunk: chunk.max(1), gate, replaces: None };
    if let Some(earlier) = gate.earlier()
        && let Some(delivered) = sending.go_on(earlier).await?
    {
        return Ok(delivered);
    }
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
