//! RabbitMQ nodes that close the channel of whoever holds a message for long, each shared by the tests of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::process::free_port;
use super::shared::Shared;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A node with a `consumer_timeout`. Tests tell themselves apart by their queues.
#[derive(Deserialize, Serialize)]
pub(crate) struct Impatient {
    port: u16,
}

impl Impatient {
    /// The run's node that waits so long for an acknowledgement, and looks so often.
    pub(crate) async fn with(consumer_timeout: Duration, looks_every: Duration) -> Impatient {
        let shared = Shared::claim(&format!("impatient-{}", consumer_timeout.as_millis()));
        if let Some(node) = shared.noted() {
            return node;
        }
        let settings = format!(
            "[{{rabbit, [{{consumer_timeout, {}}}, {{channel_tick_interval, {}}}]}}].\n",
            consumer_timeout.as_millis(),
            looks_every.as_millis()
        );
        std::fs::write(shared.folder().join("rabbitmq.config"), settings).expect("the folder can be written");
        let (port, dist_port, epmd_port) = (free_port(), free_port(), free_port());
        shared.start("it/support/rabbitmq-node", &[port, dist_port, epmd_port], READY_WITHIN).await;
        let node = Impatient { port };
        shared.note(&node);
        node
    }

    /// Where to connect.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }
}
