//! The connection to the server: opened when first needed, opened again after it broke, and what is asked of it.
//!
//! Everything here fails at once when the server is away; whoever asked tries again at his own pace.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use tokio::sync::Mutex;

use super::wire::{Original, short};
use crate::broker::BrokerError;

/// A connection that is opened again when it broke.
pub(super) struct Link {
    uri: String,
    name: String,
    client: String,
    timeout: Duration,
    open: Mutex<Option<Arc<Open>>>,
}

/// A connection while it lasts, and the channel on which it publishes.
struct Open {
    connection: Connection,
    publisher: Mutex<Option<Channel>>,
}

/// What a queue is declared with, for those that are ours.
pub(super) struct Declaration {
    pub(super) name: String,
    pub(super) arguments: Vec<(&'static str, AMQPValue)>,
}

impl Link {
    /// A link to `uri` that calls itself `client`, shown as `name`.
    pub(super) fn new(uri: String, name: String, client: String, timeout: Duration) -> Self {
        Self { uri, name, client, timeout, open: Mutex::new(None) }
    }

    /// The server, without secrets.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self) -> Result<Arc<Open>, BrokerError> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| open.connection.status().connected()) {
            return Ok(open.clone());
        }
        let properties = ConnectionProperties::default().with_connection_name(self.client.as_str().into());
        let connecting = Connection::connect(&self.uri, properties);
        let connection = match tokio::time::timeout(self.timeout, connecting).await {
            Ok(connection) => connection.map_err(|error| self.refusal("open a connection", &error))?,
            Err(_) => return Err(self.unavailable(format!("no answer within {:?}", self.timeout))),
        };
        let opened = Arc::new(Open { connection, publisher: Mutex::new(None) });
        *open = Some(opened.clone());
        Ok(opened)
    }

    /// A channel of one's own: an error closes it, and nobody else's.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let open = self.open().await?;
        self.within("open a channel", open.connection.create_channel()).await
    }

    /// Publishes durably: returns when the server has taken the message into a queue. `false`: no queue was there.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        key: &str,
        message: &Original,
    ) -> Result<bool, BrokerError> {
        let sent =
            self.send(exchange, key, message, BasicPublishOptions { mandatory: true, immediate: false });
        self.taken(sent.await?).await
    }

    /// Publishes where nobody may listen: returns when the server has taken it.
    pub(super) async fn announce(
        &self,
        exchange: &str,
        key: &str,
        message: &Original,
    ) -> Result<(), BrokerError> {
        let sent = self.send(exchange, key, message, BasicPublishOptions::default()).await?;
        self.taken(sent).await.map(|_| ())
    }

    /// Hands messages over in order and waits for the last confirmation only, which covers those before it.
    pub(super) async fn announce_all(
        &self,
        exchange: &str,
        messages: Vec<(String, Original)>,
    ) -> Result<(), BrokerError> {
        let mut confirmations = Vec::with_capacity(messages.len());
        for (key, message) in &messages {
            confirmations.push(self.send(exchange, key, message, BasicPublishOptions::default()).await?);
        }
        for confirmation in confirmations {
            self.taken(confirmation).await?;
        }
        Ok(())
    }

    pub(super) async fn send(
        &self,
        exchange: &str,
        key: &str,
        message: &Original,
        options: BasicPublishOptions,
    ) -> Result<lapin::PublisherConfirm, BrokerError> {
        let publisher = self.publisher().await?;
        let properties = message.properties.clone();
        let sent =
            publisher.basic_publish(short(exchange), short(key), options, &message.body, properties).await;
        sent.map_err(|error| self.refusal("take a message", &error))
    }

    /// Waits for the confirmation of what was sent. `false`: it was to be in a queue, and none was there.
    pub(super) async fn taken(&self, sent: lapin::PublisherConfirm) -> Result<bool, BrokerError> {
        match self.within("take a message", sent).await? {
            Confirmation::Ack(None) | Confirmation::NotRequested => Ok(true),
            Confirmation::Ack(Some(_)) => Ok(false),
            Confirmation::Nack(_) => Err(BrokerError::Refused {
                broker: self.name.clone(),
                action: "take a message",
                reason: "the server did not confirm it: a queue's bound is reached, or its disk or memory alarm is on"
                    .to_owned(),
            }),
        }
    }

    async fn publisher(&self) -> Result<Channel, BrokerError> {
        let open = self.open().await?;
        let mut publisher = open.publisher.lock().await;
        if let Some(channel) = publisher.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.within("open a channel", open.connection.create_channel()).await?;
        self.within("confirm messages", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        *publisher = Some(channel.clone());
        Ok(channel)
    }

    /// The number of messages in `queue` that nobody holds; none when there is no such queue.
    pub(super) async fn ready(&self, queue: &str) -> Result<Option<u32>, BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(short(queue), options, FieldTable::default());
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(found)) => {
                close(channel).await;
                Ok(Some(found.message_count()))
            }
            Ok(Err(error)) if is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(None),
            Ok(Err(error)) => Err(self.refusal("look at a queue", &error)),
            Err(_) => Err(self.unavailable(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// Whether there is a queue of that name, also when it is another connection's alone.
    pub(super) async fn is_there(&self, queue: &str) -> Result<bool, BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(short(queue), options, FieldTable::default());
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(_)) => {
                close(channel).await;
                Ok(true)
            }
            Ok(Err(error)) if is_soft(&error, &AMQPSoftError::RESOURCELOCKED) => Ok(true),
            Ok(Err(error)) if is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(false),
            Ok(Err(error)) => Err(self.refusal("look at a queue", &error)),
            Err(_) => Err(self.unavailable(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// Declares a durable queue of ours on a channel of its own.
    pub(super) async fn declare(&self, declaration: &Declaration) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared =
            channel.queue_declare(short(&declaration.name), options, table(&declaration.arguments));
        self.within("declare a queue", declared).await?;
        close(channel).await;
        Ok(())
    }

    /// Declares an exchange of ours.
    pub(super) async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(short(name), kind, options, FieldTable::default());
        self.within("declare an exchange", declared).await?;
        close(channel).await;
        Ok(())
    }

    /// What `asked` answers, within the time that answers may take.
    pub(super) async fn within<T>(
        &self,
        action: &'static str,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer.map_err(|error| self.refusal(action, &error)),
            Err(_) => Err(self.unavailable(format!("no answer within {:?}", self.timeout))),
        }
    }

    pub(super) fn unavailable(&self, reason: String) -> BrokerError {
        BrokerError::Unavailable { broker: self.name.clone(), reason }
    }

    /// What an error of the client means, and what to do about it.
    pub(super) fn refusal(&self, action: &'static str, error: &lapin::Error) -> BrokerError {
        let ErrorKind::ProtocolError(told) = error.kind() else {
            return self.unavailable(error.to_string());
        };
        let said = told.get_message();
        let reason = match told.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => format!(
                "{said} (406: it is there with other arguments; delete it while it is empty, or let it be made only by whoever made it)"
            ),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                format!("{said} (403: grant this user configure, write and read on the virtual host)")
            }
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => format!("{said} (404)"),
            AMQPErrorKind::Soft(_) => said.to_string(),
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                format!("{said} (530: does the virtual host exist, and may this user use it?)")
            }
            AMQPErrorKind::Hard(_) => return self.unavailable(said.to_string()),
        };
        BrokerError::Refused { broker: self.name.clone(), action, reason }
    }
}

/// Whether the server closed a channel with this error.
pub(super) fn is_soft(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(told) if matches!(told.kind(), AMQPErrorKind::Soft(found) if found == soft))
}

/// Arguments as a table.
pub(super) fn table(arguments: &[(&'static str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(ShortString::from(*name), value.clone());
    }
    table
}

/// Closes a channel that is not needed any more; what it held goes back.
pub(super) async fn close(channel: Channel) {
    // A channel that is closed already needs no closing.
    let _ = channel.close(200, "done".into()).await;
}
