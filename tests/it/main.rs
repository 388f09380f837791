//! The one test binary: what needs a real engine, server, process or file system. Each module is a suite and stands in
//! `.ci/suites`; `support` holds what they share.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that tests share")]

mod amqp;
mod amqp_queues;
mod brokers_start;
mod canvas;
mod celery;
mod celery_ends;
mod celery_redis;
mod chaos;
mod cli;
mod compose;
mod contract;
mod corpus;
mod docker;
mod examples;
mod executor;
mod girder;
mod girder_starts;
mod golden;
mod heartbeats;
mod interop;
mod kills;
mod layering;
mod moving;
mod nats;
mod patience;
mod pipeline;
mod redis;
mod sources;
mod sqlite;
mod support;
mod support_works;
mod traffic;
