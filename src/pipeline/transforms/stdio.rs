//! `HostStdOut`, `HostStdErr`, `ContainerStdOut` and `ContainerStdErr`: ends of a `Connect`.

use std::sync::Arc;

use async_trait::async_trait;

use super::misplaced;
use crate::error::TaskError;
use crate::events::LogStream;
use crate::pipeline::conduit::{HostSink, HostStream, HostStreams, Origin, Sink};
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;

/// The row's maker.
pub(in crate::pipeline) fn host_stdout(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    matches!(spec, TransformSpec::HostStdOut)
        .then(|| Box::new(Host(HostStreams::stdout, LogStream::Stdout)) as _)
}

/// The row's maker.
pub(in crate::pipeline) fn host_stderr(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    matches!(spec, TransformSpec::HostStdErr)
        .then(|| Box::new(Host(HostStreams::stderr, LogStream::Stderr)) as _)
}

/// The row's maker.
pub(in crate::pipeline) fn container_stdout(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    matches!(spec, TransformSpec::ContainerStdOut).then(|| Box::new(Container(LogStream::Stdout)) as _)
}

/// The row's maker.
pub(in crate::pipeline) fn container_stderr(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    matches!(spec, TransformSpec::ContainerStdErr).then(|| Box::new(Container(LogStream::Stderr)) as _)
}

/// One of the worker's own streams.
struct Host(fn(&HostStreams) -> Arc<HostStream>, LogStream);

#[async_trait]
impl Transform for Host {
    async fn stage(&mut self, _place: Place, _staging: &mut Staging) -> Result<Option<String>, TaskError> {
        Err(misplaced("HostStdOut or HostStdErr", "it belongs in a Connect, as its output"))
    }

    fn sink(&mut self, staging: &mut Staging) -> Result<Option<Box<dyn Sink>>, TaskError> {
        let stream = (self.0)(&staging.settings().host);
        Ok(Some(Box::new(HostSink::new(stream, staging.host_users(self.1)))))
    }
}

/// One of the container's own streams.
struct Container(LogStream);

#[async_trait]
impl Transform for Container {
    async fn stage(&mut self, _place: Place, _staging: &mut Staging) -> Result<Option<String>, TaskError> {
        Err(misplaced("ContainerStdOut or ContainerStdErr", "it belongs in a Connect, as its input"))
    }

    fn source(&mut self, staging: &mut Staging) -> Result<Option<Origin>, TaskError> {
        staging.claim_standard(self.0)?;
        Ok(Some(Origin::Standard(self.0)))
    }
}
