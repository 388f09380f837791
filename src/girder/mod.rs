//! Girder as the worker uses it: a client for its REST API that survives slow, failing, redirecting and lying servers.
//!
//! [`Site`] is what all clients of a worker share (settings, trusted roots, connections); [`Site::client`] makes the
//! [`Client`] of one [`Connection`], which is one server as one token sees it. Called by `pipeline` for inputs and
//! outputs and by the sink that keeps a job up to date. Knows nothing of volumes, containers or brokers.
//!
//! # Decisions
//! - A token is sent to the origin of its connection and nowhere else; redirects are followed by hand, without it once
//!   they leave that origin.
//! - A call that may not happen twice is tried again only when the server cannot have begun it.

mod budget;
pub mod cache;
pub mod call;
pub mod client;
pub mod connection;
mod download;
mod error;
pub mod fetch;
pub mod file;
pub mod job;
pub mod listing;
pub mod names;
pub mod settings;
mod site;
pub mod upload;

pub use cache::Cache;
pub use call::{Call, Payload, Repeat};
pub use client::Client;
pub use connection::{Connection, Session, same};
pub use download::Download;
pub use error::{GirderError, may_wait};
pub use file::FileDocument;
pub use listing::{Ceilings, Layout};
pub use settings::Settings;
pub use site::Site;
