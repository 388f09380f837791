//! The read end of a pipe that a container writes, and when such a stream is over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::read;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::watch::{self, State, Watch};
use crate::pipeline::fifo::Fifo;

/// When a stream from a container is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// When the container is gone, however often the pipe is closed and opened until then.
    WithContainer,
    /// When the last writer closed the pipe and none opened it for so long; or when the container is gone.
    AfterLastWriter(Duration),
    /// When the writer closes it: an unnamed pipe, which nobody can open again.
    WithWriter,
}

/// The read end of a pipe. Never waits in the kernel.
pub(super) struct PipeReader {
    pipe: Arc<OwnedFd>,
    watch: Watch,
    ends: Ends,
    gone: CancellationToken,
    /// Set once the end was seen.
    ended: Arc<AtomicBool>,
    /// A write end of our own, so that nobody's closing is an end.
    _hold: Option<OwnedFd>,
}

/// What [`PipeReader::ready`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// There are bytes.
    Bytes,
    /// There are none and never will be.
    End,
}

impl PipeReader {
    /// Opens `fifo`; `gone` ends when the container is gone.
    pub(super) fn open(fifo: &Fifo, ends: Ends, gone: CancellationToken) -> io::Result<Self> {
        let pipe = fifo.reader()?;
        let hold = matches!(ends, Ends::WithContainer).then(|| fifo.hold()).transpose()?;
        Self::new(pipe, ends, gone, hold)
    }

    /// Takes the read end of an unnamed pipe, which must not block.
    pub(super) fn unnamed(pipe: OwnedFd) -> io::Result<Self> {
        Self::new(pipe, Ends::WithWriter, CancellationToken::new(), None)
    }

    fn new(pipe: OwnedFd, ends: Ends, gone: CancellationToken, hold: Option<OwnedFd>) -> io::Result<Self> {
        let watch = Watch::reading(&pipe)?;
        Ok(Self { pipe: Arc::new(pipe), watch, ends, gone, ended: Arc::default(), _hold: hold })
    }

    /// The read end itself, for moving bytes inside the kernel.
    pub(super) fn fd(&self) -> impl AsFd + '_ {
        &self.pipe
    }

    /// The same for another thread.
    pub(super) fn shared(&self) -> Arc<OwnedFd> {
        self.pipe.clone()
    }

    /// Set once the end was seen: whoever took bytes until then took all.
    pub(super) fn ended(&self) -> Arc<AtomicBool> {
        self.ended.clone()
    }

    /// Waits for bytes or the end. Cancel-safe.
    pub(super) async fn ready(&self) -> io::Result<Ready> {
        let found = self.bytes_or_end().await?;
        if found == Ready::End {
            self.ended.store(true, Ordering::Relaxed);
        }
        Ok(found)
    }

    async fn bytes_or_end(&self) -> io::Result<Ready> {
        let mut lingers_until = None;
        loop {
            // Asked first: what the container wrote before it went is in the pipe by then.
            let gone = self.gone.is_cancelled();
            match (watch::reading(&self.pipe)?, self.ends) {
                (State::Ready, _) => return Ok(Ready::Bytes),
                (State::Closed, Ends::WithWriter) => return Ok(Ready::End),
                (State::Idle | State::Closed, _) if gone => return Ok(Ready::End),
                (State::Closed, Ends::AfterLastWriter(linger)) => {
                    let until = *lingers_until.get_or_insert_with(|| Instant::now() + linger);
                    if until <= Instant::now() {
                        return Ok(Ready::End);
                    }
                    tokio::select! {
                        changed = self.watch.changed() => changed?,
                        () = self.gone.cancelled() => {}
                        () = sleep_until(until) => {}
                    }
                }
                (State::Idle | State::Closed, _) => {
                    lingers_until = None;
                    tokio::select! {
                        changed = self.watch.changed() => changed?,
                        () = self.gone.cancelled() => {}
                    }
                }
            }
        }
    }

    /// Reads what there is, at least one byte; 0 is the end. Cancel-safe.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match read(&self.pipe, buffer) {
                Ok(n) if n > 0 => return Ok(n),
                Ok(_) | Err(Errno::EAGAIN) => match self.ready().await? {
                    Ready::Bytes => {}
                    Ready::End => return Ok(0),
                },
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
