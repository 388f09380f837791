//! A FIFO that the container reads, as a sink. Bytes move inside the kernel where the source allows it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
use super::reader::{Ends, PipeReader, Ready};
use super::source::Kind;
use super::writer::{PipeWriter, Room, end_every_reader};
use super::{Sink, Source, StreamError};
use crate::pipeline::fifo::{Fifo, PIPE_SIZE};

/// The most that one call moves.
const PIECE: usize = PIPE_SIZE.unsigned_abs() as usize;

/// A FIFO that the container reads.
pub struct FifoSink {
    fifo: Fifo,
    linger: Duration,
    writer: Option<PipeWriter>,
}

impl FifoSink {
    /// A sink that is the container's end of `fifo`; its source ends `linger` after its last writer.
    pub fn new(fifo: Fifo, linger: Duration) -> Self {
        Self { fifo, linger, writer: None }
    }
}

#[async_trait]
impl Sink for FifoSink {
    fn ends(&self) -> Ends {
        Ends::AfterLastWriter(self.linger)
    }

    fn open(&mut self, gone: &CancellationToken) -> io::Result<()> {
        self.writer = Some(PipeWriter::open(&self.fifo, gone.clone())?);
        Ok(())
    }

    async fn take(&mut self, source: Source) -> Result<(), StreamError> {
        let Some(writer) = &mut self.writer else {
            return Err(io::Error::other("the pipe was not opened").into());
        };
        let counter = source.counter();
        match source.kind {
            Kind::Pipe(reader) => from_pipe(reader, writer, &counter).await?,
            Kind::File(file) => from_file(file, writer, &counter).await?,
            Kind::Stream { .. } => from_stream(source, writer).await?,
        }
        // Only now: after an error the container must not take what it got for the whole.
        self.writer = None;
        Ok(())
    }

    async fn afterwards(&mut self, gone: &CancellationToken) -> Result<(), StreamError> {
        Ok(end_every_reader(&self.fifo, gone).await?)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

async fn from_pipe(reader: PipeReader, writer: &mut PipeWriter, counter: &AtomicU64) -> io::Result<()> {
    let pipe = writer.fd();
    loop {
        if writer.room().await? == Room::Closed || reader.ready().await? == Ready::End {
            return Ok(());
        }
        match splice(reader.fd(), None, &*pipe, None, PIECE, flags()) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EINTR | Errno::EPIPE) => {}
            Ok(n) => {
                writer.started();
                counter.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn from_stream(mut source: Source, writer: &mut PipeWriter) -> Result<(), StreamError> {
    let buffers = Buffers::default();
    // The source is asked for more only when there is somebody to give it to.
    while writer.room().await? == Room::Some {
        match source.piece(&buffers).await? {
            Some(piece) if writer.write_all(&piece).await? == Room::Some => {}
            _ => break,
        }
    }
    Ok(())
}

async fn from_file(file: tokio::fs::File, writer: &mut PipeWriter, counter: &AtomicU64) -> io::Result<()> {
    let file = Arc::new(file.into_std().await);
    while writer.room().await? == Room::Some {
        // Reading a file may wait for its disk, so it happens on a thread for that; the pipe itself never waits.
        let (pipe, file) = (writer.fd(), file.clone());
        let moved =
            tokio::task::spawn_blocking(move || fill(&file, &pipe)).await.map_err(io::Error::other)??;
        let Some(moved) = moved else { break };
        counter.fetch_add(moved, Ordering::Relaxed);
        if moved > 0 {
            writer.started();
        }
    }
    Ok(())
}

/// Moves bytes until the pipe is full; none at the file's end.
fn fill(file: &std::fs::File, pipe: &std::os::fd::OwnedFd) -> io::Result<Option<u64>> {
    let mut moved = 0;
    // Bounded, so that a fast reader does not keep the thread from seeing a cancellation.
    while moved < 64 * PIECE as u64 {
        match splice(file, None, pipe, None, PIECE, flags()) {
            Ok(0) => return Ok((moved > 0).then_some(moved)),
            Ok(n) => moved += n as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EPIPE) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(moved))
}
