//! `docker_run` against the real engine: each test drives the handler as the executor does.

mod adopt;
pub(crate) mod bench;
mod endings;
mod images;
mod output;
mod pipes;
mod requests;
mod streams;
