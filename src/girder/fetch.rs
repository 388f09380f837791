//! One file from Girder into an open file of the host: pieces written and summed on a thread of their own, resumed where
//! they broke off, counted, and checked.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use bytes::Bytes;
use sha2::{Digest, Sha512};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::budget::Budget;
use super::file::{FileDocument, hex};
use super::{Client, GirderError};
use crate::error::TaskError;

/// Pieces that wait for the disk, each at most a few hundred KiB.
const WAITING: usize = 16;
/// How often a file that changes while it is fetched is begun anew.
const CHANGES: u32 = 2;

/// Is told of every byte that arrived.
pub trait Watch: Send + Sync {
    /// So many more.
    fn moved(&self, bytes: u64);
    /// So many of them were for nothing.
    fn lost(&self, bytes: u64);
}

/// Whether the content is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Only when Girder tells what it must be.
    WhenTold,
    /// Always.
    Always,
}

/// What was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// The document that the content belongs to: a later one than asked for when the file changed meanwhile.
    pub document: FileDocument,
    /// SHA-512 in hexadecimal, where it was summed.
    pub sha512: Option<String>,
    /// The bytes.
    pub size: u64,
}

/// Fetches `document` into `into`, which is empty, and checks size and, where told, sum. Dropping the future ends it;
/// what is in the file then is a part.
pub async fn fetch(
    client: &Client,
    document: FileDocument,
    into: File,
    sum: Sum,
    watch: &dyn Watch,
) -> Result<Fetched, TaskError> {
    let mut document = document;
    let mut changes = 0;
    loop {
        let wanted = sum == Sum::Always || document.sha512.is_some();
        let file = into.try_clone().map_err(|error| io_error(&error))?;
        let mut transfer =
            Transfer { client, document: &document, watch, at: 0, writer: Writer::start(file, wanted) };
        match transfer.run().await {
            Ok(()) => {
                let (size, sha512) = transfer.writer.finish().await?;
                match (&document.sha512, &sha512) {
                    (Some(told), Some(found)) if told != found => {
                        return Err(wrong(
                            client,
                            &document,
                            &format!("its SHA-512 is {found}, and not {told} as Girder says"),
                        ));
                    }
                    _ => return Ok(Fetched { document, sha512, size }),
                }
            }
            Err(Ended::Changed(now)) if changes < CHANGES => {
                watch.lost(transfer.at);
                changes += 1;
                document = now;
            }
            Err(Ended::Changed(_)) => {
                return Err(wrong(client, &document, "it changes while it is fetched, again and again"));
            }
            Err(Ended::Failed(error)) => return Err(error),
        }
    }
}

enum Ended {
    Failed(TaskError),
    /// The file has another content now.
    Changed(FileDocument),
}

struct Transfer<'a> {
    client: &'a Client,
    document: &'a FileDocument,
    watch: &'a dyn Watch,
    at: u64,
    writer: Writer,
}

impl Transfer<'_> {
    async fn run(&mut self) -> Result<(), Ended> {
        let mut budget = self.budget();
        loop {
            let before = self.at;
            let Err(error) = self.stretch().await? else { return Ok(()) };
            if self.at > before {
                // What moves may take as long as it likes.
                budget = self.budget();
            }
            if !error.is_passing() {
                return Err(Ended::Failed(error.into()));
            }
            let Some(delay) = budget.next(error.retry_after()) else {
                return Err(Ended::Failed(error.into()));
            };
            tracing::debug!(%error, at = self.at, "a download goes on where it broke off");
            sleep(delay).await;
            self.unchanged().await?;
        }
    }

    fn budget(&self) -> Budget {
        Budget::new(self.client.site().settings().retry_budget.get())
    }

    /// One connection's worth, to the end of the file if all goes well.
    async fn stretch(&mut self) -> Result<Result<(), GirderError>, Ended> {
        if self.at > 0 && Some(self.at) == self.document.size {
            return Ok(Ok(()));
        }
        let path = format!("file/{}/download", self.document.id);
        let mut download = match self.client.get_stream(&path, self.at).await {
            Ok(download) => download,
            Err(error) => return Ok(Err(error)),
        };
        if download.offset() != self.at {
            // The server gives only the whole.
            self.watch.lost(self.at);
            self.at = 0;
            self.writer.begin_anew().await.map_err(Ended::Failed)?;
        }
        loop {
            let piece = match download.piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            };
            let length = piece.len() as u64;
            if self.document.size.is_some_and(|size| self.at + length > size) {
                self.unchanged().await?;
                let text = "it is longer than Girder says";
                return Err(Ended::Failed(wrong(self.client, self.document, text)));
            }
            self.writer.write(piece).await.map_err(Ended::Failed)?;
            self.at += length;
            self.watch.moved(length);
        }
        match self.document.size {
            Some(size) if self.at < size => Ok(Err(GirderError::Broken {
                call: format!("GET {path}"),
                server: self.client.server(),
                reason: format!("the file ended after {} of {size} bytes", self.at),
            })),
            _ => Ok(Ok(())),
        }
    }

    /// Whether the content is still the one that was begun.
    async fn unchanged(&self) -> Result<(), Ended> {
        let now = FileDocument::get(self.client, &self.document.id).await;
        let now = now.map_err(|error| Ended::Failed(error.into()))?;
        if now.is_same(self.document) { Ok(()) } else { Err(Ended::Changed(now)) }
    }
}

fn wrong(client: &Client, document: &FileDocument, reason: &str) -> TaskError {
    TaskError::retryable(
        "girder_wrong_content",
        format!(
            "the file {} of {}: {reason}; check the file in Girder's assetstore",
            document.id,
            client.server()
        ),
    )
}

fn io_error(error: &std::io::Error) -> TaskError {
    TaskError::retryable(
        "workspace",
        format!("cannot write a fetched file: {error}; is there room in work_dir?"),
    )
}

/// The thread that writes and sums.
struct Writer {
    pieces: Option<mpsc::Sender<Order>>,
    thread: tokio::task::JoinHandle<std::io::Result<(u64, Option<String>)>>,
}

enum Order {
    Write(Bytes),
    BeginAnew,
}

impl Writer {
    fn start(mut file: File, sum: bool) -> Self {
        let (pieces, mut orders) = mpsc::channel(WAITING);
        let thread = tokio::task::spawn_blocking(move || {
            let begin = |file: &mut File| {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))
            };
            begin(&mut file)?;
            let (mut written, mut sha512) = (0_u64, sum.then(Sha512::new));
            while let Some(order) = orders.blocking_recv() {
                match order {
                    Order::Write(piece) => {
                        file.write_all(&piece)?;
                        written += piece.len() as u64;
                        if let Some(sha512) = &mut sha512 {
                            sha512.update(&piece);
                        }
                    }
                    Order::BeginAnew => {
                        begin(&mut file)?;
                        (written, sha512) = (0, sum.then(Sha512::new));
                    }
                }
            }
            Ok((written, sha512.map(|sha512| hex(&sha512.finalize()))))
        });
        Self { pieces: Some(pieces), thread }
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), TaskError> {
        self.order(Order::Write(piece)).await
    }

    async fn begin_anew(&mut self) -> Result<(), TaskError> {
        self.order(Order::BeginAnew).await
    }

    async fn order(&mut self, order: Order) -> Result<(), TaskError> {
        match &self.pieces {
            Some(pieces) if pieces.send(order).await.is_ok() => Ok(()),
            // The thread ended early, which only an error makes it do.
            _ => self.finish().await.map(drop),
        }
    }

    /// Waits until all is written.
    async fn finish(&mut self) -> Result<(u64, Option<String>), TaskError> {
        self.pieces = None;
        (&mut self.thread)
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| io_error(&error))
    }
}
