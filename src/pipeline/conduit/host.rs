//! The worker's own standard output and error, shared by all streams that go there.
//!
//! One thread writes each of them, because writing may wait for ever and such a wait must block nobody else. What it
//! is handed are whole lines where a stream has lines, so those of several tasks do not tear.
//!
//! # Decisions
//! - Bytes move inside the kernel (splice) only where nobody else writes to the place meanwhile: to one task alone, and one
//!   stream of it. Whole lines can be had only by looking at the bytes.
//! - A place that cannot be spliced into (a terminal, a file that is appended to) is written to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};

use super::buffers::Buffers;
use super::reader::{PipeReader, Ready};
use super::source::Kind;
use super::{Sink, Source, StreamError};
use crate::pipeline::fifo::PIPE_SIZE;

/// The places that `HostStdOut` and `HostStdErr` write to. Cheap to clone.
#[derive(Clone)]
pub struct HostStreams {
    stdout: Arc<HostStream>,
    stderr: Arc<HostStream>,
}

/// One of them.
pub struct HostStream {
    thread: OnceLock<mpsc::Sender<Message>>,
    make: fn() -> Box<dyn Write + Send>,
    /// Whether bytes may be moved there inside the kernel, past every buffer.
    direct: bool,
}

enum Message {
    Write(Bytes),
    /// Takes what is in a pipe now, and says how much it was.
    Move(Arc<OwnedFd>, oneshot::Sender<io::Result<usize>>),
    Flush(oneshot::Sender<Result<(), Arc<io::Error>>>),
}

/// Messages under way to a thread: what is not yet written of one stream is bounded by its own buffers.
const UNDER_WAY: usize = 2;

impl HostStreams {
    /// The process's own.
    pub fn process() -> Self {
        static PROCESS: OnceLock<HostStreams> = OnceLock::new();
        PROCESS
            .get_or_init(|| Self {
                stdout: Arc::new(HostStream::shared(|| Box::new(io::stdout()))),
                stderr: Arc::new(HostStream::shared(|| Box::new(io::stderr()))),
            })
            .clone()
    }

    /// The process's own, in a process that has one task only.
    pub fn of_one_task() -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::alone(stdout.into(), io::stderr().as_fd().try_clone_to_owned()?.into()))
    }

    /// Files, pipes or sockets to which nobody else writes, as far as whole lines matter.
    pub fn alone(stdout: File, stderr: File) -> Self {
        Self { stdout: Arc::new(HostStream::direct(stdout)), stderr: Arc::new(HostStream::direct(stderr)) }
    }

    /// Others, such as a terminal on which something else is drawn meanwhile.
    pub fn to(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        Self { stdout: Arc::new(HostStream::started(stdout)), stderr: Arc::new(HostStream::started(stderr)) }
    }

    /// The standard output.
    pub fn stdout(&self) -> Arc<HostStream> {
        self.stdout.clone()
    }

    /// The standard error.
    pub fn stderr(&self) -> Arc<HostStream> {
        self.stderr.clone()
    }
}

impl HostStream {
    fn shared(make: fn() -> Box<dyn Write + Send>) -> Self {
        Self { thread: OnceLock::new(), make, direct: false }
    }

    fn started(out: Box<dyn Write + Send>) -> Self {
        let thread = OnceLock::from(start(out, None));
        Self { thread, make: || Box::new(io::sink()), direct: false }
    }

    fn direct(out: File) -> Self {
        let Ok(place) = out.try_clone() else { return Self::started(Box::new(out)) };
        let thread = OnceLock::from(start(Box::new(out), Some(place.into())));
        Self { thread, make: || Box::new(io::sink()), direct: true }
    }

    fn sender(&self) -> &mpsc::Sender<Message> {
        self.thread.get_or_init(|| start((self.make)(), None))
    }
}

fn start(mut out: Box<dyn Write + Send>, place: Option<OwnedFd>) -> mpsc::Sender<Message> {
    let (sender, mut messages) = mpsc::channel(UNDER_WAY);
    let work = move || {
        let mut failed: Option<Arc<io::Error>> = None;
        while let Some(message) = messages.blocking_recv() {
            match message {
                Message::Write(bytes) if failed.is_none() => {
                    failed = out.write_all(&bytes).err().map(Arc::new);
                }
                Message::Write(_) => {}
                Message::Move(pipe, done) => {
                    let moved = match &place {
                        Some(place) => move_now(&pipe, place).map_err(io::Error::from),
                        None => Err(Errno::EINVAL.into()),
                    };
                    // Whoever asked may have been canceled meanwhile.
                    let _ = done.send(moved);
                }
                Message::Flush(done) => {
                    let result = failed.clone().map_or_else(|| out.flush().map_err(Arc::new), Err);
                    // Whoever asked may have been canceled meanwhile.
                    let _ = done.send(result);
                }
            }
        }
    };
    // A thread that cannot be started leaves a channel without a receiver: streams to it fail and say so.
    if let Err(error) = std::thread::Builder::new().name("host-output".to_owned()).spawn(work) {
        tracing::error!(%error, "no thread for the standard output");
    }
    sender
}

/// Moves what is in `pipe` to `place`, which may take for ever. 0: there was nothing.
fn move_now(pipe: &OwnedFd, place: &OwnedFd) -> nix::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(pipe, None, place, None, PIPE_SIZE.unsigned_abs() as usize, flags) {
            Err(Errno::EAGAIN) => {
                let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, PollTimeout::ZERO)? == 0 {
                    return Ok(0);
                }
                // There is something, so it is the other end that is full.
                poll(&mut [PollFd::new(place.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(Errno::EINTR) => {}
            moved => return moved,
        }
    }
}

/// A stream's way to a [`HostStream`].
pub(in crate::pipeline) struct HostSink {
    stream: Arc<HostStream>,
    /// How many streams of the task go there.
    users: Arc<AtomicUsize>,
}

#[async_trait]
impl Sink for HostSink {
    async fn take(&mut self, mut source: Source) -> Result<(), StreamError> {
        if self.stream.direct
            && self.users.load(Ordering::Relaxed) == 1
            && let Kind::Pipe(pipe) = &source.kind
        {
            self.moved(pipe, &source.counter()).await?;
        }
        // What is left, which is all where nothing could be moved.
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        let mut filled = 0;
        loop {
            let n = source.read(&mut buffer[filled..]).await?;
            // Up to the last whole line; all of it at the end, or when a line fills the buffer.
            let lines = match buffer[filled..filled + n].iter().rposition(|byte| *byte == b'\n') {
                Some(end) => filled + end + 1,
                None if n == 0 || filled + n == buffer.len() => filled + n,
                None => 0,
            };
            filled += n;
            if lines > 0 {
                let mut next = buffers.take();
                next[..filled - lines].copy_from_slice(&buffer[lines..filled]);
                let piece = buffers.lend(std::mem::replace(&mut buffer, next), lines);
                filled -= lines;
                self.send(Message::Write(piece)).await?;
            }
            if n == 0 {
                break;
            }
        }
        let (done, written) = oneshot::channel();
        self.send(Message::Flush(done)).await?;
        match written.await {
            Ok(Ok(())) => Ok(()),
            // Whoever reads our output stopped reading: that is no matter of the task.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(Err(error)) => Err(io::Error::new(error.kind(), error.to_string()).into()),
            Err(_) => Err(no_thread()),
        }
    }
}

impl HostSink {
    /// One of the streams of a task to `stream`; `users` counts them.
    pub(in crate::pipeline) fn new(stream: Arc<HostStream>, users: &Arc<AtomicUsize>) -> Self {
        users.fetch_add(1, Ordering::Relaxed);
        Self { stream, users: users.clone() }
    }

    /// Moves bytes inside the kernel until the source's end, or until that does not work any more.
    async fn moved(&self, pipe: &PipeReader, counter: &AtomicU64) -> Result<(), StreamError> {
        while pipe.ready().await? == Ready::Bytes {
            let (done, moved) = oneshot::channel();
            self.send(Message::Move(pipe.shared(), done)).await?;
            match moved.await {
                Ok(Ok(bytes)) => {
                    counter.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                // Writing does it, or fails and says why.
                Ok(Err(_)) => break,
                Err(_) => return Err(no_thread()),
            }
        }
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), StreamError> {
        self.stream.sender().send(message).await.map_err(|_| no_thread())
    }
}

fn no_thread() -> StreamError {
    io::Error::other("the thread that writes the worker's output ended").into()
}
