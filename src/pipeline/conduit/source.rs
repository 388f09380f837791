//! Where the bytes of a stream come from.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::StreamError;
use super::buffers::Buffers;
use super::reader::{Ends, PipeReader};
use crate::error::TaskError;
use crate::events::LogStream;
use crate::pipeline::fifo::{Fifo, grow};

/// Where bytes will come from, before anything is opened.
pub enum Origin {
    /// A FIFO that the container writes.
    Fifo(Fifo),
    /// The container's own output, which the engine's room passes on.
    Standard(LogStream),
    /// A file of the host, from its current position to its end.
    File(File),
    /// Anything else.
    Stream(Box<dyn ByteStream>),
}

/// Bytes that come in pieces, such as an HTTP body.
#[async_trait]
pub trait ByteStream: Send {
    /// The next piece; none at the end. Cancel-safe.
    async fn next(&mut self) -> Result<Option<Bytes>, TaskError>;
}

/// An open source. Counts what is taken from it.
pub struct Source {
    pub(super) kind: Kind,
    taken: Arc<AtomicU64>,
}

pub(super) enum Kind {
    Pipe(PipeReader),
    File(tokio::fs::File),
    Stream { stream: Box<dyn ByteStream>, rest: Bytes },
}

impl Source {
    /// Opens `origin`. Where the container's own output comes from, the other end goes to `standard`.
    pub(super) fn open(
        origin: Origin,
        ends: Ends,
        gone: CancellationToken,
        standard: &mut Vec<(LogStream, StreamInput)>,
    ) -> io::Result<Self> {
        let kind = match origin {
            Origin::Fifo(fifo) => Kind::Pipe(PipeReader::open(&fifo, ends, gone)?),
            Origin::Standard(stream) => {
                let (reader, input) = StreamInput::pair()?;
                standard.push((stream, input));
                Kind::Pipe(PipeReader::unnamed(reader)?)
            }
            Origin::File(file) => Kind::File(tokio::fs::File::from_std(file)),
            Origin::Stream(stream) => Kind::Stream { stream, rest: Bytes::new() },
        };
        Ok(Self { kind, taken: Arc::default() })
    }

    /// How many bytes were taken so far.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        self.taken.clone()
    }

    /// Set once the end was seen, for sources that a container may open again; set from the start for the others.
    pub(super) fn ended(&self) -> Arc<AtomicBool> {
        match &self.kind {
            Kind::Pipe(reader) => reader.ended(),
            Kind::File(_) | Kind::Stream { .. } => Arc::new(AtomicBool::new(true)),
        }
    }

    /// Counts bytes that were taken without passing through [`Source::read`].
    pub(super) fn count(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Reads at least one byte into `buffer`; 0 is the end.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let n = match &mut self.kind {
            Kind::Pipe(pipe) => pipe.read(buffer).await?,
            Kind::File(file) => file.read(buffer).await?,
            Kind::Stream { stream, rest } => {
                while rest.is_empty() {
                    match stream.next().await? {
                        Some(piece) => *rest = piece,
                        None => return Ok(0),
                    }
                }
                let n = rest.len().min(buffer.len());
                rest.copy_to_slice(&mut buffer[..n]);
                n
            }
        };
        self.count(n);
        Ok(n)
    }

    /// The next piece, in one of `buffers` unless it already has one of its own; none at the end.
    pub(in crate::pipeline) async fn piece(
        &mut self,
        buffers: &Buffers,
    ) -> Result<Option<Bytes>, StreamError> {
        if let Kind::Stream { stream, .. } = &mut self.kind {
            let piece = stream.next().await?;
            self.count(piece.as_ref().map_or(0, Bytes::len));
            return Ok(piece);
        }
        let mut buffer = buffers.take();
        let n = self.read(&mut buffer).await?;
        Ok((n > 0).then(|| buffers.lend(buffer, n)))
    }
}

/// Where the engine's room puts what the container prints. Dropping it is the end of the stream.
pub struct StreamInput {
    pipe: Option<pipe::Sender>,
}

impl StreamInput {
    fn pair() -> io::Result<(OwnedFd, Self)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        grow(&writer);
        Ok((reader, Self { pipe: Some(pipe::Sender::from_owned_fd(writer)?) }))
    }

    /// Passes `bytes` on; waits while the sink is slow. When the sink takes no more, bytes are dropped: that is no
    /// matter of whoever prints them. Cancel-safe in that nothing is passed on twice, but a part may have been.
    pub async fn write(&mut self, mut bytes: &[u8]) {
        while let (false, Some(pipe)) = (bytes.is_empty(), &self.pipe) {
            let result = match pipe.writable().await {
                Ok(()) => pipe.try_write(bytes),
                Err(error) => Err(error),
            };
            match result {
                Ok(n) => bytes = &bytes[n..],
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => self.pipe = None,
            }
        }
    }
}
