//! `CommaJoinedVolumes`, `GirderApiUrl` and `GirderToken`: what slicer_cli_web adds to the arguments of a command line module
//! (`slicer_cli_web.girder_worker_plugin.direct_docker_run`).
//!
//! # Decisions
//! - A container gets its token because its producer asked for that; nobody else does: it is redacted wherever the
//!   arguments are told.

use async_trait::async_trait;

use super::misplaced;
use crate::error::TaskError;
use crate::girder::Connection;
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::{CommaJoined, GirderValue};

/// The row's maker.
pub(in crate::pipeline) fn joined(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::CommaJoinedVolumes(joined) => Some(Box::new(Joined(joined.clone()))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn api_url(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderApiUrl(value) => Some(Box::new(ApiUrl(value.clone()))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn token(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderToken(value) => Some(Box::new(Token(value.clone()))),
        _ => None,
    }
}

/// One argument out of several paths.
struct Joined(CommaJoined);

#[async_trait]
impl Transform for Joined {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        among_arguments("CommaJoinedVolumes", place)?;
        let mut paths = Vec::with_capacity(self.0.volumes.len());
        for (n, volume) in self.0.volumes.iter().enumerate() {
            // Each is cleaned up as if it stood alone.
            let Some(path) = staging.stage(volume, Place::Argument).await? else {
                let text = format!(
                    "CommaJoinedVolumes.volumes[{n}] is a {}, which has no path; give a volume or a file in one",
                    volume.name()
                );
                return Err(TaskError::permanent("bad_argument", text));
            };
            paths.push(path);
        }
        Ok(Some(paths.join(",")))
    }
}

/// The API's address.
struct ApiUrl(GirderValue);

#[async_trait]
impl Transform for ApiUrl {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        among_arguments("GirderApiUrl", place)?;
        let connection = connection(&self.0, staging)?;
        let connection = staging.settings().girder.rewritten(connection, staging.girder());
        // `girder_client` has a slash at the end, and so have those who add a route to it.
        Ok(Some(format!("{}/", connection.api_url.trim_end_matches('/'))))
    }
}

/// The token with which the container itself calls Girder.
struct Token(GirderValue);

#[async_trait]
impl Transform for Token {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        among_arguments("GirderToken", place)?;
        let Some(token) = connection(&self.0, staging)?.token else {
            let text = "GirderToken names no token and neither does the task; give its `girder` a token";
            return Err(TaskError::permanent("bad_argument", text));
        };
        staging.attempt().report().redact(&token);
        Ok(Some(token.expose().to_owned()))
    }
}

fn connection(value: &GirderValue, staging: &Staging) -> Result<Connection, TaskError> {
    Connection::of_transform(value.girder.as_ref(), staging.girder())
}

fn among_arguments(class: &str, place: Place) -> Result<(), TaskError> {
    match place {
        Place::Argument => Ok(()),
        Place::Volume | Place::Connector | Place::Hook => {
            Err(misplaced(class, "it belongs among the arguments"))
        }
    }
}
