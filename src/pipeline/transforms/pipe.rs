//! `NamedInputPipe`, `NamedOutputPipe` and `Connect`.

use async_trait::async_trait;

use super::misplaced;
use crate::error::TaskError;
use crate::pipeline::conduit::{FifoSink, Origin, Sink};
use crate::pipeline::staging::{Direction, PipeHandle};
use crate::pipeline::{Place, Staging, Transform, transform_of};
use crate::task::TransformSpec;
use crate::task::transform::{self as spec, NamedPipe};

/// The row's maker.
pub(in crate::pipeline) fn input(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::NamedInputPipe(pipe) => {
            Some(Box::new(Pipe { spec: pipe.clone(), direction: Direction::Input }))
        }
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn output(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::NamedOutputPipe(pipe) => {
            Some(Box::new(Pipe { spec: pipe.clone(), direction: Direction::Output }))
        }
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn connect(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::Connect(connect) => Some(Box::new(Connect { spec: connect.clone() })),
        _ => None,
    }
}

/// A named pipe. Its text is its container path.
struct Pipe {
    spec: NamedPipe,
    direction: Direction,
}

impl Pipe {
    fn claimed(&self, staging: &mut Staging) -> Result<PipeHandle, TaskError> {
        let pipe = staging.pipe(&self.spec, self.direction)?;
        staging.claim(&pipe.container)?;
        Ok(pipe)
    }
}

#[async_trait]
impl Transform for Pipe {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        match place {
            Place::Argument | Place::Connector => {
                Ok(Some(staging.pipe(&self.spec, self.direction)?.container))
            }
            Place::Volume | Place::Hook => {
                Err(misplaced("a named pipe", "it belongs among the arguments or in a Connect"))
            }
        }
    }

    fn source(&mut self, staging: &mut Staging) -> Result<Option<Origin>, TaskError> {
        match self.direction {
            Direction::Input => Ok(None),
            Direction::Output => Ok(Some(Origin::Fifo(self.claimed(staging)?.fifo))),
        }
    }

    fn sink(&mut self, staging: &mut Staging) -> Result<Option<Box<dyn Sink>>, TaskError> {
        match self.direction {
            Direction::Input => {
                let fifo = self.claimed(staging)?.fifo;
                Ok(Some(Box::new(FifoSink::new(fifo, staging.settings().linger))))
            }
            Direction::Output => Ok(None),
        }
    }
}

/// A stream from one end to another. Its text is the container path of the pipe in it.
struct Connect {
    spec: spec::Connect,
}

#[async_trait]
impl Transform for Connect {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        match place {
            Place::Argument | Place::Connector => {}
            Place::Volume | Place::Hook => {
                return Err(misplaced("Connect", "it belongs among the arguments or the stream_connectors"));
            }
        }
        let spec::Connect { input, output } = &self.spec;
        let mut source = transform_of(input)?;
        source.prepare(staging).await?;
        let origin = source.source(staging)?.ok_or_else(|| {
            TaskError::permanent(
                "bad_argument",
                format!("{} cannot be the input of a Connect: it gives no bytes", input.name()),
            )
        })?;
        let sink = transform_of(output)?.sink(staging)?.ok_or_else(|| {
            TaskError::permanent(
                "bad_argument",
                format!("{} cannot be the output of a Connect: it takes no bytes", output.name()),
            )
        })?;
        staging.connect(format!("{} → {}", told(input), told(output)), origin, sink);
        let text = match (&**input, &**output) {
            (_, TransformSpec::NamedInputPipe(pipe)) => Some(staging.pipe(pipe, Direction::Input)?.container),
            (TransformSpec::NamedOutputPipe(pipe), _) => {
                Some(staging.pipe(pipe, Direction::Output)?.container)
            }
            _ => None,
        };
        Ok(text)
    }
}

/// An end of a stream as people read it, without anything secret.
fn told(end: &TransformSpec) -> String {
    match end {
        TransformSpec::NamedInputPipe(pipe) | TransformSpec::NamedOutputPipe(pipe) => {
            format!("{} {}", end.name(), pipe.name)
        }
        TransformSpec::ChunkedTransferEncodingStream(stream) => {
            format!("{} {}", end.name(), crate::http::without_secrets(&stream.url))
        }
        other => other.name().to_owned(),
    }
}
