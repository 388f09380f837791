//! What a Celery worker in this one's place also says: the results of tasks that came as Celery messages, and answers to
//! remote control.
//!
//! Owns the form of a result ([`result`]), where it goes ([`backend`]), and what requests mean ([`control`]). Decodes nothing (`task/celery` does) and runs
//! nothing; `worker` registers its sink.

pub mod backend;
pub mod control;
pub mod result;

pub use backend::{Backend, BackendError};
pub use control::Control;
pub use result::Results;
