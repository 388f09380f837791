//! What a Celery worker in this one's place also says: the results of tasks that came as Celery messages, and answers to
//! remote control, and events for monitors.
//!
//! Owns the form of a result ([`result`]), where it goes ([`backend`]), the calls that follow a task ([`successors`]), what monitors
//! hear ([`event`]), and what requests mean ([`control`]). Decodes nothing (`task/celery` does) and runs
//! nothing; `worker` registers its sinks.

pub mod backend;
pub mod control;
pub mod event;
pub mod result;
pub mod successors;

pub use backend::{Backend, BackendError};
pub use control::Control;
pub use event::Events;
pub use result::Results;
pub use successors::Successors;
