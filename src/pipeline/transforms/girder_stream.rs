//! `GirderFileIdToStream`: a Girder file straight into a stream, never on disk.

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use sha2::{Digest, Sha512};

use super::misplaced;
use crate::error::TaskError;
use crate::girder::{Client, Download, FileDocument, GirderError, file};
use crate::pipeline::conduit::{ByteStream, Origin};
use crate::pipeline::workspace::hex;
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::GirderFileStream;

/// Breaks in a row, without any byte between them, after which a stream is given up. Each of them was already tried
/// for as long as `girder.retry_budget` says.
const BREAKS: u32 = 3;

/// The row's maker.
pub(in crate::pipeline) fn stream(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderFileIdToStream(stream) => {
            Some(Box::new(Stream { spec: stream.clone(), ready: None }))
        }
        _ => None,
    }
}

struct Stream {
    spec: GirderFileStream,
    ready: Option<(Client, FileDocument)>,
}

#[async_trait]
impl Transform for Stream {
    async fn stage(&mut self, _place: Place, _staging: &mut Staging) -> Result<Option<String>, TaskError> {
        Err(misplaced("GirderFileIdToStream", "it belongs in a Connect, as its input"))
    }

    /// Asks for the file's document, so that a wrong id or token is known before any container runs.
    async fn prepare(&mut self, staging: &mut Staging) -> Result<(), TaskError> {
        let id = &self.spec.file_id;
        if !file::is_id(id) {
            let text = format!(
                "GirderFileIdToStream.file_id is {id:?}; it must be an id of Girder, 24 hexadecimal digits"
            );
            return Err(TaskError::permanent("bad_argument", text));
        }
        let about = |error: TaskError| TaskError {
            message: format!("GirderFileIdToStream.file_id = {id:?}: {}", error.message),
            ..error
        };
        let client = staging.girder_client(self.spec.girder.as_ref()).map_err(about)?;
        let document = FileDocument::get(&client, id).await.map_err(|error| about(error.into()))?;
        staging.fetches().within.take(&document).map_err(about)?;
        self.ready = Some((client, document));
        Ok(())
    }

    fn source(&mut self, _staging: &mut Staging) -> Result<Option<Origin>, TaskError> {
        Ok(self.ready.take().map(|(client, document)| {
            let sum = document.sha512.is_some().then(Sha512::new);
            Origin::Stream(Box::new(Content {
                client,
                document,
                download: None,
                skip: 0,
                at: 0,
                breaks: 0,
                sum,
                is_over: false,
            }))
        }))
    }
}

/// The bytes of a file, resumed where they broke off.
struct Content {
    client: Client,
    document: FileDocument,
    download: Option<Download>,
    /// Bytes of the download that were given already.
    skip: u64,
    at: u64,
    breaks: u32,
    sum: Option<Sha512>,
    is_over: bool,
}

#[async_trait]
impl ByteStream for Content {
    async fn next(&mut self) -> Result<Option<Bytes>, TaskError> {
        while !self.is_over {
            match self.piece().await {
                Ok(Some(piece)) => return self.given(piece).map(Some),
                Ok(None) if self.document.size.is_none_or(|size| self.at == size) => self.is_over = true,
                Ok(None) => self.broken(self.cut())?,
                Err(error) => self.broken(error)?,
            }
        }
        self.checked()?;
        Ok(None)
    }
}

impl Content {
    /// What comes next; opens the download where it has to go on. Cancel-safe.
    async fn piece(&mut self) -> Result<Option<Bytes>, GirderError> {
        loop {
            let Some(download) = &mut self.download else {
                if self.at > 0 {
                    self.unchanged().await?;
                }
                let path = format!("file/{}/download", self.document.id);
                let download = self.client.get_stream(&path, self.at).await?;
                self.skip = self.at - download.offset();
                self.download = Some(download);
                continue;
            };
            let Some(mut piece) = download.piece().await? else { return Ok(None) };
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            piece.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    fn given(&mut self, piece: Bytes) -> Result<Bytes, TaskError> {
        self.at += piece.len() as u64;
        self.breaks = 0;
        if self.document.size.is_some_and(|size| self.at > size) {
            return Err(self.wrong("it is longer than Girder says"));
        }
        if let Some(sum) = &mut self.sum {
            sum.update(&piece);
        }
        Ok(piece)
    }

    /// What was given cannot be taken back, so a file that changed meanwhile ends the stream.
    async fn unchanged(&self) -> Result<(), GirderError> {
        let now = FileDocument::get(&self.client, &self.document.id).await?;
        if now.is_same(&self.document) {
            return Ok(());
        }
        Err(GirderError::Refused(self.wrong("it was changed while it was streamed")))
    }

    fn broken(&mut self, error: GirderError) -> Result<(), TaskError> {
        self.download = None;
        self.breaks += 1;
        if !error.is_passing() || matches!(error, GirderError::Refused(_)) || self.breaks > BREAKS {
            return Err(error.into());
        }
        tracing::debug!(%error, at = self.at, "a stream goes on where it broke off");
        Ok(())
    }

    fn cut(&self) -> GirderError {
        GirderError::Broken {
            call: format!("GET file/{}/download", self.document.id),
            server: self.client.server(),
            reason: format!("the file ended after {} of {} bytes", self.at, self.document.size.unwrap_or(0)),
        }
    }

    fn checked(&mut self) -> Result<(), TaskError> {
        let found = self.sum.take().map(|sum| hex(&sum.finalize()));
        match (&self.document.sha512, found) {
            (Some(told), Some(found)) if *told != found => {
                Err(self.wrong(&format!("its SHA-512 is {found}, and not {told} as Girder says")))
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, what: &str) -> TaskError {
        TaskError::retryable(
            "girder_wrong_content",
            format!(
                "the file {} of {}: {what}; check the file in Girder's assetstore",
                self.document.id,
                self.client.server()
            ),
        )
    }
}
