//! The `docker_run` task kind: from a task's arguments to a container on a Docker Engine.
//!
//! [`args`] turns arguments into a typed request and is pure. Nothing outside this room talks to the engine.

pub mod args;
