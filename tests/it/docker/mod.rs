//! `docker_run` against the real engine: each test drives the handler as the executor does.

pub(crate) mod adopt;
pub(crate) mod bench;
mod endings;
mod housed;
mod images;
mod output;
mod pipes;
mod podman;
mod requests;
mod streams;
