//! One file on its way to Girder: started, sent chunk by chunk, looked for when an answer was lost, started over.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Begun, Delivered, Document, Gate, Kind, Parcel, Parent, document, feed, no_id, same_content};
use crate::error::TaskError;
use crate::girder::{Call, Client, may_wait};

/// How often an upload may start over.
const STARTS: usize = 4;
/// How often one chunk may be sent again.
const AGAIN: usize = 8;
/// Between a broken chunk and the question what arrived of it.
const SETTLE: Duration = Duration::from_millis(500);
/// How far the clocks of Girder and of this host may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_secs(120);

/// One file under way.
pub(super) struct Sending<'a> {
    pub(super) client: &'a Client,
    pub(super) parent: &'a Parent,
    pub(super) parcel: &'a Parcel,
    pub(super) chunk: u64,
    pub(super) gate: &'a dyn Gate,
    /// The file whose content is replaced.
    pub(super) replaces: Option<String>,
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

/// Whether a chunk ends its file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IsLast {
    Perhaps,
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
    /// Goes on with what an earlier try began, as after a broken chunk. `None`: it must start over.
    pub(super) async fn go_on(&mut self, earlier: Begun) -> Result<Option<Delivered>, TaskError> {
        let Begun { upload, at, replaces, offset } = earlier;
        self.replaces = replaces;
        let found = if upload.is_empty() {
            // An empty file is made by the very call whose answer was lost.
            if self.parcel.size == 0 { self.made_since(at).await? } else { None }
        } else {
            // Whether the broken chunk was the last one is not known any more: the file may be there.
            let went = match self.after(&upload, offset, IsLast::Perhaps, at).await? {
                Broken::SendAgain => self.attempted(&upload, (offset, Surely::No), at).await?,
                Broken::Finished(document) => Went::There(document, Surely::No),
                Broken::StartOver => {
                    self.give_up(&upload).await;
                    return Ok(None);
                }
            };
            match went {
                Went::There(document, _) => Some(document),
                Went::Over(error) => {
                    tracing::debug!(%error, name = self.parcel.name, "an earlier upload cannot be gone on with");
                    None
                }
            }
        };
        let Some(document) = found else { return Ok(None) };
        if self.is_right(&document, Surely::No).await? {
            return Ok(Some(self.delivered(document)));
        }
        self.replaces = Some(document.id);
        self.deliver().await.map(Some)
    }

    async fn is_right(&self, document: &Document, surely: Surely) -> Result<bool, TaskError> {
        Ok(document.size == self.parcel.size
            && (surely == Surely::Yes || same_content(self.client, &document.id, self.parcel).await?))
    }

    fn delivered(&self, document: Document) -> Delivered {
        let kind = if self.replaces.is_some() { Kind::Replaced } else { Kind::New };
        Delivered { file: document.id, item: document.item, kind }
    }

    pub(super) async fn deliver(&mut self) -> Result<Delivered, TaskError> {
        let kind = if self.replaces.is_some() { Kind::Replaced } else { Kind::New };
        let mut last = None;
        for _ in 0..STARTS {
            match self.attempt().await? {
                Went::There(document, surely) => {
                    if self.is_right(&document, surely).await? {
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
        let begun = |upload: &str| Begun {
            upload: upload.to_owned(),
            at: began,
            replaces: self.replaces.clone(),
            offset: 0,
        };
        self.gate.began(begun(""));
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
        self.gate.began(begun(upload));
        self.attempted(upload, (0, Surely::Yes), began).await
    }

    /// Sends the chunks of `upload` from an offset on. Removes it when nobody will go on with it.
    async fn attempted(
        &self,
        upload: &str,
        from: (u64, Surely),
        began: Timestamp,
    ) -> Result<Went, TaskError> {
        let sent = self.chunks(upload, from, began).await;
        let is_over = match &sent {
            Ok(Went::There(..)) => false,
            Ok(Went::Over(_)) => true,
            Err(error) => !may_wait(error),
        };
        if is_over {
            self.give_up(upload).await;
        }
        sent
    }

    /// What is left of an upload would lie in Girder's temporary folder for ever. It may be gone already.
    async fn give_up(&self, upload: &str) {
        if let Err(error) = self.client.done(Call::delete(format!("file/upload/{upload}"))).await {
            tracing::debug!(%error, "a broken upload is left at Girder");
        }
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

    async fn chunks(
        &self,
        upload: &str,
        (mut offset, mut surely): (u64, Surely),
        began: Timestamp,
    ) -> Result<Went, TaskError> {
        let mut again = 0;
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
                    self.gate.acknowledged(offset);
                    again = 0;
                    continue;
                }
                Err(error) => error,
            };
            if !error.is_passing() && !matches!(error.status(), Some(400 | 404)) {
                return Err(error.into());
            }
            again += 1;
            let last = if is_last { IsLast::Perhaps } else { IsLast::No };
            match self.after(upload, offset, last, began).await? {
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
        last: IsLast,
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
                let found = match last {
                    IsLast::Perhaps => self.made_since(began).await?,
                    IsLast::No => None,
                };
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
