//! `docker_run` against the real engine: each test drives the handler as the executor does.

mod bench;
mod endings;
mod images;
mod output;
mod pipes;
mod requests;
mod streams;
