//! What the suites share: real servers on free ports, throw-away images, bounded waiting. It owns the life of
//! everything it starts and leaves nothing behind; it knows nothing of the code under test.
//!
//! A server that is missing is a failure that names its remedy, never a skipped test.

pub(crate) mod authority;
pub(crate) mod celery;
pub(crate) mod docker;
pub(crate) mod example;
pub(crate) mod faulty;
pub(crate) mod girder;
pub(crate) mod image;
pub(crate) mod impatient;
pub(crate) mod longshore;
pub(crate) mod nats;
pub(crate) mod nats_cluster;
pub(crate) mod podman;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod registry;
pub(crate) mod shared;
pub(crate) mod stalling_registry;
pub(crate) mod tide;
