//! The map of the rooms; `docs/design.md` says who may know whom.

pub mod broker;
pub mod cancel;
pub mod celery;
pub mod cli;
pub mod config;
pub mod crew;
pub mod docker;
pub mod error;
pub mod events;
pub mod executor;
pub mod girder;
pub mod handler;
pub mod http;
pub mod ledger;
pub mod lifecycle;
pub mod nats;
pub mod ping;
pub mod pipeline;
pub mod policy;
pub mod redis;
pub mod retry;
pub mod sqlite;
pub mod store;
pub mod task;
pub mod units;
pub mod worker;
