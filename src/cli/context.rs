//! What every command works with: the settings in force, the output, and the broker and store they name.

use std::sync::Arc;

use crate::broker::{self, Broker, BrokerUrl, OpenOptions};
use crate::config::{Address, Loaded, Settings};
use crate::store::{self, ResultStore};
use crate::task::{Limits, QueueName};

use super::error::CliError;
use super::output::Output;

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The settings in force and where they came from.
    pub(crate) loaded: Loaded,
    /// Where results go.
    pub(crate) output: Output,
}

impl Context {
    /// The settings in force.
    pub(crate) fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    /// Opens the first broker.
    pub(crate) async fn broker(&self) -> Result<Broker, CliError> {
        self.broker_at(&self.settings().brokers[0], Vec::new()).await
    }

    /// Opens the broker at `address`, to fetch from `queues`.
    pub(crate) async fn broker_at(
        &self,
        address: &Address,
        queues: Vec<QueueName>,
    ) -> Result<Broker, CliError> {
        let url = url(address)?;
        self.make_state_dir()?;
        Ok(broker::open(&url, &OpenOptions { queues, ..self.open_options() }).await?)
    }

    /// Opens the store.
    pub(crate) async fn store(&self) -> Result<Arc<dyn ResultStore>, CliError> {
        self.store_at(&self.settings().store).await
    }

    /// Opens the store at `address`.
    pub(crate) async fn store_at(&self, address: &Address) -> Result<Arc<dyn ResultStore>, CliError> {
        let url = url(address)?;
        self.make_state_dir()?;
        Ok(store::open(&url, &self.open_options()).await?)
    }

    /// What one message may hold.
    pub(crate) fn limits(&self) -> Limits {
        let message = &self.settings().message;
        Limits {
            max_bytes: usize::try_from(message.max_bytes.bytes()).unwrap_or(usize::MAX),
            max_depth: message.max_depth,
            max_nodes: message.max_nodes,
        }
    }

    /// How a client of the command line opens a broker or store.
    pub(crate) fn open_options(&self) -> OpenOptions {
        let settings = self.settings();
        OpenOptions {
            queues: Vec::new(),
            worker: "cli".to_owned(),
            incarnation: uuid::Uuid::now_v7().to_string(),
            lease: settings.worker.lease.get(),
            connect_timeout: settings.connect_timeout.get(),
            event_age: settings.events.age.get(),
            event_count: settings.events.count,
        }
    }

    /// The state folder holds messages and with them tokens: it is its owner's alone.
    pub(crate) fn make_state_dir(&self) -> Result<(), CliError> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = &self.settings().state_dir;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            CliError::Infrastructure(format!(
                "the state folder {} cannot be made: {error}; choose another with state_dir or LONGSHORE_STATE_DIR",
                folder.display()
            ))
        })
    }
}

/// Reads the address of a broker or store.
pub(crate) fn url(address: &Address) -> Result<BrokerUrl, CliError> {
    Ok(BrokerUrl::parse(address.expose())?)
}
