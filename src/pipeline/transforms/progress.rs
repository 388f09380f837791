//! `ProgressPipe`: a FIFO on which the container writes one JSON object per line.

use async_trait::async_trait;

use super::misplaced;
use crate::error::TaskError;
use crate::events::Progress;
use crate::events::reporter::Reporter;
use crate::pipeline::conduit::{Origin, Sink, Source, StreamError};
use crate::pipeline::lines::{Known, Lines, merge};
use crate::pipeline::staging::Direction;
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::{NamedPipe, ProgressPipe};

/// The row's maker.
pub(in crate::pipeline) fn pipe(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::ProgressPipe(ProgressPipe { name, volume }) => Some(Box::new(Pipe {
            spec: NamedPipe {
                name: name.clone(),
                volume: volume.clone(),
                container_path: None,
                host_path: None,
            },
        })),
        _ => None,
    }
}

struct Pipe {
    spec: NamedPipe,
}

#[async_trait]
impl Transform for Pipe {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        match place {
            Place::Argument | Place::Connector => {}
            Place::Volume | Place::Hook => {
                return Err(misplaced(
                    "ProgressPipe",
                    "it belongs among the arguments or the stream_connectors",
                ));
            }
        }
        let pipe = staging.pipe(&self.spec, Direction::Output)?;
        // Mentioned twice it is still one pipe with one reader.
        if !staging.is_connected(&pipe.container) {
            staging.claim(&pipe.container)?;
            let name = format!("ProgressPipe {}", self.spec.name);
            let sink = ProgressSink {
                name: name.clone(),
                report: staging.attempt().report().clone(),
                lines: Lines::new(staging.settings().progress_line_max),
            };
            staging.connect(name, Origin::Fifo(pipe.fifo), Box::new(sink));
        }
        Ok(Some(pipe.container))
    }
}

/// Tells each line as progress.
struct ProgressSink {
    name: String,
    report: Reporter,
    lines: Lines,
}

#[async_trait]
impl Sink for ProgressSink {
    async fn take(&mut self, mut source: Source) -> Result<(), StreamError> {
        let mut buffer = vec![0; 64 << 10];
        let mut progress = Progress::default();
        loop {
            let n = source.read(&mut buffer).await?;
            let mut tell = |line: &[u8]| {
                let known = merge(&mut progress, line);
                if known == Known::Progress {
                    self.report.progress(progress.clone());
                }
                known
            };
            if n == 0 {
                self.lines.end(&mut tell);
                break;
            }
            self.lines.feed(&buffer[..n], &mut tell);
        }
        if let Some(text) = self.lines.complaint(&self.name) {
            self.report.warn(text);
        }
        Ok(())
    }
}
