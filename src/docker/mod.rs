//! The `docker_run` task kind: from a task's arguments to a container on a Docker Engine.
//!
//! [`DockerRun`] is the handler. [`args`] turns arguments into a typed request and is pure; [`engine`] is what the room
//! needs of an engine, [`api`] the Docker API behind it. Nothing outside this room talks to the engine.

pub mod address;
mod adopt;
pub mod api;
pub mod args;
pub mod attach;
mod book;
pub mod cleaner;
mod container;
mod credentials;
mod drive;
mod ending;
pub mod engine;
mod error;
#[cfg(test)]
mod faults;
pub mod gpu;
mod image;
mod judge;
pub mod labels;
mod lines;
mod loopback;
pub mod reaper;
mod reference;
mod request;
mod run;
mod selfhost;
pub mod settings;
mod slicer;
mod spool;
mod trial;
mod usage;

pub use address::Address;
pub use api::DockerApi;
pub use judge::{TaskJudge, laxest};
pub use run::{DockerRun, Parts};
pub use settings::Settings;
pub use trial::trial;
