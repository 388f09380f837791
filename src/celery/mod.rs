//! What a Celery worker in this one's place also says: the results of tasks that came as Celery messages.
//!
//! Owns the form of a result ([`result`]) and where it goes ([`backend`]). Decodes nothing (`task/celery` does) and runs
//! nothing; `worker` registers its sink.

pub mod backend;
pub mod result;

pub use backend::{Backend, BackendError};
pub use result::Results;
