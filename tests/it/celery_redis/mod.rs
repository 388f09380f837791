//! Celery's queues in Redis: what kombu must find there, what kombu leaves there, and what nobody should put there.

mod corpus;
pub(crate) mod dock;
mod fleet;
mod hostile;
mod kombu;
mod peer;
