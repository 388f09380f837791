//! The worker's own standard output and error, shared by all streams that go there.
//!
//! One thread writes each of them, because writing may wait for ever and such a wait must block nobody else. What it
//! is handed are whole lines where a stream has lines, so those of several tasks do not tear.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::buffers::Buffers;
use super::{Sink, Source, StreamError};

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
}

enum Message {
    Write(Bytes),
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
                stdout: Arc::new(HostStream { thread: OnceLock::new(), make: || Box::new(io::stdout()) }),
                stderr: Arc::new(HostStream { thread: OnceLock::new(), make: || Box::new(io::stderr()) }),
            })
            .clone()
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
    fn started(out: Box<dyn Write + Send>) -> Self {
        let thread = OnceLock::from(start(out));
        Self { thread, make: || Box::new(io::sink()) }
    }

    fn sender(&self) -> &mpsc::Sender<Message> {
        self.thread.get_or_init(|| start((self.make)()))
    }
}

fn start(mut out: Box<dyn Write + Send>) -> mpsc::Sender<Message> {
    let (sender, mut messages) = mpsc::channel(UNDER_WAY);
    let work = move || {
        let mut failed: Option<Arc<io::Error>> = None;
        while let Some(message) = messages.blocking_recv() {
            match message {
                Message::Write(bytes) if failed.is_none() => {
                    failed = out.write_all(&bytes).err().map(Arc::new);
                }
                Message::Write(_) => {}
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

/// A stream's way to a [`HostStream`].
pub(in crate::pipeline) struct HostSink(pub(in crate::pipeline) Arc<HostStream>);

#[async_trait]
impl Sink for HostSink {
    async fn take(&mut self, mut source: Source) -> Result<(), StreamError> {
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
    async fn send(&self, message: Message) -> Result<(), StreamError> {
        self.0.sender().send(message).await.map_err(|_| no_thread())
    }
}

fn no_thread() -> StreamError {
    io::Error::other("the thread that writes the worker's output ended").into()
}
