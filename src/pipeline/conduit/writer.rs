//! The write end of a FIFO that a container reads.
//!
//! # Decisions
//! - A container's opening for reading waits for a writer, so ours is open from the start. Nothing is written before a
//!   reader is there; then it sees our end, and we see when it stops reading. That a reader came is told by inotify:
//!   the kernel wakes no writer for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nix::unistd::write;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::watch::{self, State, Watch};
use crate::pipeline::fifo::Fifo;

/// The write end of a FIFO. Never waits in the kernel.
pub(super) struct PipeWriter {
    pipe: Arc<OwnedFd>,
    watch: Watch,
    openings: AsyncFd<Openings>,
    gone: CancellationToken,
    started: bool,
}

/// What [`PipeWriter::room`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is some.
    Some,
    /// The reader is gone, or the container is.
    Closed,
}

impl PipeWriter {
    /// Opens `fifo`, before the container is started; `gone` ends when the container is gone.
    pub(super) fn open(fifo: &Fifo, gone: CancellationToken) -> io::Result<Self> {
        // Opening for writing fails without a reader, so there is one for a moment.
        let reader = fifo.reader()?;
        let pipe = fifo.writer()?;
        drop(reader);
        let watch = Watch::writing(&pipe)?;
        let openings = watch::readable(Openings(fifo.watch()?))?;
        Ok(Self { pipe: Arc::new(pipe), watch, openings, gone, started: false })
    }

    /// The write end itself, for moving bytes inside the kernel.
    pub(super) fn fd(&self) -> Arc<OwnedFd> {
        self.pipe.clone()
    }

    /// From now on the reader's closing is its end. Until then it may have looked only.
    pub(super) fn started(&mut self) {
        self.started = true;
    }

    /// Waits until a reader is there and the pipe has room, or until there will never be. Cancel-safe.
    pub(super) async fn room(&mut self) -> io::Result<Room> {
        loop {
            let gone = self.gone.is_cancelled();
            match watch::writing(&*self.pipe)? {
                State::Closed if self.started => return Ok(Room::Closed),
                _ if gone => return Ok(Room::Closed),
                State::Ready => return Ok(Room::Some),
                State::Closed => tokio::select! {
                    opened = next(&mut self.openings, AddWatchFlags::IN_OPEN) => opened?,
                    () = self.gone.cancelled() => {}
                },
                State::Idle => tokio::select! {
                    changed = self.watch.changed() => changed?,
                    () = self.gone.cancelled() => {}
                },
            }
        }
    }

    /// Writes all of `bytes`, however little the pipe takes at a time.
    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<Room> {
        while !bytes.is_empty() {
            if self.room().await? == Room::Closed {
                return Ok(Room::Closed);
            }
            match write(&*self.pipe, bytes) {
                Ok(n) => {
                    self.started = true;
                    bytes = &bytes[n..];
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::EPIPE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Room::Some)
    }
}

/// Gives everybody who opens `fifo` for reading an end at once, until the container is gone: without a writer their
/// opening would wait for ever. Whoever reads now is left alone.
pub(super) async fn end_every_reader(fifo: &Fifo, gone: &CancellationToken) -> io::Result<()> {
    let mut closings = watch::readable(Openings(fifo.watch()?))?;
    while !gone.is_cancelled() {
        // Only a look: closed again at once, or whoever reads would take it for a writer that stays.
        match fifo.writer().map(drop) {
            Ok(()) => tokio::select! {
                closed = next(&mut closings, AddWatchFlags::IN_CLOSE_NOWRITE) => closed?,
                () = gone.cancelled() => {}
            },
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                PipeWriter::open(fifo, gone.clone())?.room().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tells who opens and closes a FIFO.
struct Openings(Inotify);

impl AsRawFd for Openings {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits for somebody to do `what` with the FIFO. Cancel-safe.
async fn next(openings: &mut AsyncFd<Openings>, what: AddWatchFlags) -> io::Result<()> {
    loop {
        let mut guard = openings.readable().await?;
        match guard.get_inner().0.read_events() {
            Ok(events) if events.iter().any(|event| event.mask.contains(what)) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}
