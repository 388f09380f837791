//! A running byte stream: a [`Source`], a [`Sink`], and nothing of theirs in memory beyond a bound.
//!
//! A sink drives its stream: it asks for bytes when it can take them, so a slow sink slows its source and nobody else.
//! Every conduit is one task of the runtime that never waits in the kernel; what must (files, the worker's own output)
//! does so on threads of its own. Dropping a conduit ends it at once.

mod buffers;
mod fifo_sink;
mod host;
mod reader;
mod source;
mod watch;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) use buffers::Buffers;
pub use fifo_sink::FifoSink;
pub(super) use host::HostSink;
pub use host::{HostStream, HostStreams};
pub use reader::Ends;
use reader::{PipeReader, Ready};
pub use source::{ByteStream, Origin, Source, StreamInput};

use super::fifo::Fifo;
use crate::error::TaskError;
use crate::events::LogStream;
use crate::events::reporter::Reporter;
use crate::store::StreamBytes;

/// Where bytes go.
#[async_trait]
pub trait Sink: Send {
    /// When a pipe that feeds it is over.
    fn ends(&self) -> Ends {
        Ends::WithContainer
    }
    /// Opens what must be open before the container starts. `gone` ends when the container is gone.
    fn open(&mut self, _gone: &CancellationToken) -> io::Result<()> {
        Ok(())
    }
    /// Takes everything up to the source's end and returns when it is where it belongs. A reader that stops early is
    /// no error. After an error the sink is kept until the container is gone. Dropping the future ends the stream.
    async fn take(&mut self, source: Source) -> Result<(), StreamError>;
    /// What there is to do after a good end, until the container is gone.
    async fn afterwards(&mut self, _gone: &CancellationToken) -> Result<(), StreamError> {
        Ok(())
    }
    /// SHA-256 of what was taken, where it cost nothing extra to know.
    fn sha256(&self) -> Option<String> {
        None
    }
}

/// Why a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A pipe or file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Whatever the source or sink knows better.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// What a container's own output is passed on to, where a `Connect` names it.
#[derive(Default)]
pub struct StandardStreams {
    /// For its standard output.
    pub stdout: Option<StreamInput>,
    /// For its standard error.
    pub stderr: Option<StreamInput>,
}

/// A stream that is prepared but not open.
pub struct Prepared {
    /// As people read it, such as `NamedOutputPipe out → HostStdOut`.
    pub name: String,
    /// Where its bytes will come from.
    pub origin: Origin,
    /// Where they will go.
    pub sink: Box<dyn Sink>,
}

/// What all streams of one attempt share.
#[derive(Clone)]
pub struct Surroundings {
    /// Ends when the container is gone.
    pub gone: CancellationToken,
    /// Takes the errors.
    pub failures: mpsc::UnboundedSender<TaskError>,
    /// Is told how many bytes each carried.
    pub report: Reporter,
}

/// An open stream.
pub struct Conduit {
    name: String,
    source: Source,
    sink: Box<dyn Sink>,
    taken: Arc<AtomicU64>,
    /// The FIFO of a source that may end before its container, to see that nothing comes after.
    late: Option<Fifo>,
    around: Surroundings,
}

impl Conduit {
    /// Opens both ends, so that nothing that the container writes is lost and nothing that it reads is missed. What a
    /// container's own output is to be passed on to is added to `standard`.
    pub fn open(
        prepared: Prepared,
        around: Surroundings,
        standard: &mut Vec<(LogStream, StreamInput)>,
    ) -> Result<Self, TaskError> {
        let Prepared { name, origin, mut sink } = prepared;
        let late = match (&origin, sink.ends()) {
            (Origin::Fifo(fifo), Ends::AfterLastWriter(_)) => Some(fifo.clone()),
            _ => None,
        };
        let ends = sink.ends();
        let source = sink
            .open(&around.gone)
            .and_then(|()| Source::open(origin, ends, around.gone.clone(), standard))
            .map_err(|error| explain(&name, error.into()))?;
        let taken = source.counter();
        Ok(Self { name, source, sink, taken, late, around })
    }

    /// Carries everything, then tells how much it was. An error goes to the surroundings' failures. Ends when the
    /// container is gone at the latest; dropping the future ends it at once.
    pub async fn run(self) {
        let Self { name, source, mut sink, taken, late, around } = self;
        let ended = source.ended();
        let mut result = sink.take(source).await.map_err(|error| explain(&name, error));
        let bytes = taken.load(Ordering::Relaxed);
        let told = StreamBytes { stream: name.clone(), bytes, sha256: sink.sha256() };
        around.report.describe(|details| details.streams.push(told));
        if result.is_ok() {
            let ending = async { sink.afterwards(&around.gone).await.map_err(|error| explain(&name, error)) };
            // When whoever reads stopped in the middle, whoever writes finds its pipe broken, as in a shell.
            let late = late.filter(|_| bytes == 0 || ended.load(Ordering::Relaxed));
            let following = nothing_follows(&name, late.as_ref(), &around.gone);
            result = tokio::try_join!(following, ending).map(|_| ());
        }
        if let Err(error) = result {
            // Nobody listens any more only when the attempt is over.
            let _ = around.failures.send(error);
            // A container that reads must not take what came so far for the whole.
            around.gone.cancelled().await;
        }
    }
}

/// Watches a pipe whose sink was ended. Without a reader a container that opened it again would wait for ever; what it
/// writes then has nowhere to go.
async fn nothing_follows(name: &str, fifo: Option<&Fifo>, gone: &CancellationToken) -> Result<(), TaskError> {
    let Some(fifo) = fifo else { return Ok(()) };
    let watched = async {
        let late = PipeReader::open(fifo, Ends::WithContainer, gone.clone())?;
        late.ready().await
    };
    match watched.await.map_err(|error| explain(name, error.into()))? {
        Ready::End => Ok(()),
        Ready::Bytes => Err(TaskError::permanent(
            "stream_reopened",
            format!(
                "the container opened the pipe of {name} again after its stream had ended; \
                 let it keep the pipe open, or raise the linger of streams"
            ),
        )),
    }
}

fn explain(name: &str, error: StreamError) -> TaskError {
    match error {
        StreamError::Io(error) => {
            TaskError::retryable("stream", format!("the stream {name} failed: {error}"))
        }
        StreamError::Task(error) => {
            let message = format!("the stream {name} failed: {}", error.message);
            TaskError { message, ..error }
        }
    }
}

/// Takes everything and keeps nothing: for a pipe that nobody is connected to, so that its writer is not stuck.
pub(super) struct Discard;

#[async_trait]
impl Sink for Discard {
    async fn take(&mut self, mut source: Source) -> Result<(), StreamError> {
        let mut buffer = vec![0; 64 << 10];
        while source.read(&mut buffer).await? > 0 {}
        Ok(())
    }
}

/// No bytes at all: for an input pipe that nobody is connected to, so that its reader is not stuck.
pub(super) struct Nothing;

#[async_trait]
impl ByteStream for Nothing {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, TaskError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
