//! One Redis server as queue and store see it: its address, connections that come back by themselves, scripts, errors.
//!
//! Knows nothing of queues or records; `broker/redis` and `store/redis` say what is kept there. Works with Redis 7.0
//! and later and with Valkey.
//!
//! # Decisions
//! - The protocol is RESP3, so that messages of channels arrive on the connection that also carries the commands.
//! - A command whose answer is lost is told as [`LinkError::Unavailable`] and never sent again from here: only whoever
//!   asked knows whether it may be.

mod address;
mod health;
mod script;
pub mod value;

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, PushInfo, RedisError, ServerErrorKind, Value};

pub use address::Place;
pub use health::{Health, Wants};
pub(crate) use script::script;
pub use script::{Call, Script};

/// Commands that may wait for the socket at once; whoever comes after waits for room.
const IN_FLIGHT: usize = 4_096;
/// How long an answer may take before the server counts as away.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries to connect again before whoever waits for it is told.
const CONNECT_TRIES: usize = 2;
/// A script that was forgotten is loaded again at most so often for one call.
const LOADS: usize = 3;

/// Why a server could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The address names nothing that can be opened.
    #[error("{0}")]
    Address(String),
    /// It cannot be reached, broke off, or is not ready; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// It answered what no server should.
    #[error("{0}")]
    Unreadable(String),
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        let text = error.to_string();
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Refused(format!(
                "{text}; check user and password of the address, such as redis://user:password@host"
            )),
            ErrorKind::InvalidClientConfig => Self::Address(text),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Unreadable(text),
            ErrorKind::Server(kind) => Self::of_server(kind, text),
            ErrorKind::Extension => match error.code() {
                Some("OOM") => Self::Refused(format!("{text}; give it more memory (maxmemory)")),
                Some("NOAUTH" | "WRONGPASS") => Self::Refused(format!(
                    "{text}; put user and password into the address: redis://user:password@host"
                )),
                // The disk is full, replicas are missing, a script runs too long: it may pass.
                _ => Self::Unavailable(text),
            },
            _ => Self::Unavailable(text),
        }
    }
}

impl LinkError {
    fn of_server(kind: ServerErrorKind, text: String) -> Self {
        match kind {
            ServerErrorKind::NoPerm => {
                Self::Refused(format!("{text}; give the user that right (ACL SETUSER)"))
            }
            ServerErrorKind::CrossSlot | ServerErrorKind::Moved | ServerErrorKind::Ask => {
                Self::Refused(format!("{text}; a Redis Cluster is not supported yet: name a single server"))
            }
            ServerErrorKind::ResponseError if text.contains("OOM ") => {
                Self::Refused(format!("{text}; give it more memory (maxmemory)"))
            }
            ServerErrorKind::ResponseError => Self::Refused(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// Connections to one server that come back by themselves. Cheap to clone; clones share one connection, and what they
/// send at the same time travels together.
#[derive(Clone)]
pub struct Link {
    manager: ConnectionManager,
}

impl Link {
    /// Connects to `place` within `patience`. `heard` is told of every message of the channels that are subscribed to, and of
    /// broken connections.
    pub async fn open(
        place: &Place,
        patience: Duration,
        heard: impl Fn(Push) + Send + Sync + 'static,
    ) -> Result<Self, LinkError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(CONNECT_TRIES)
            .set_max_delay(Duration::from_millis(500))
            .set_pipeline_buffer_size(IN_FLIGHT)
            .set_push_sender(move |info| {
                if let Some(push) = Push::of(info) {
                    heard(push);
                }
                Ok::<(), SendError>(())
            })
            .set_automatic_resubscription();
        let connecting = ConnectionManager::new_with_config(place.client()?, config);
        let manager = within(patience, connecting).await??;
        Ok(Self { manager })
    }

    /// Sends `command`.
    pub async fn send(&self, command: &Cmd) -> Result<Value, LinkError> {
        let mut manager = self.manager.clone();
        // Its own patience is for the answer alone; to connect again may take long.
        Ok(within(PATIENCE * 2, manager.send_packed_command(command)).await??.extract_error()?)
    }

    /// Sends all commands of `pipeline` together; their answers in order. Nothing is sent when there are none.
    pub async fn send_all(&self, pipeline: &Pipeline, answers: usize) -> Result<Vec<Value>, LinkError> {
        if answers == 0 {
            return Ok(Vec::new());
        }
        let mut manager = self.manager.clone();
        let values = within(PATIENCE * 2, manager.send_packed_commands(pipeline, 0, answers)).await??;
        // An error comes as a value here.
        values.into_iter().map(|value| Ok(value.extract_error()?)).collect()
    }

    /// Calls a script, which the server may have forgotten: `SCRIPT FLUSH`, a restart, another server after a failover.
    pub async fn call(&self, call: &script::Call) -> Result<Value, LinkError> {
        let mut manager = self.manager.clone();
        for _ in 0..LOADS {
            let answer = within(PATIENCE * 2, manager.send_packed_command(call.command())).await?;
            match answer.and_then(Value::extract_error) {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    self.send(&call.script().load()).await?;
                }
                answer => return Ok(answer?),
            }
        }
        Err(LinkError::Unavailable("it forgets scripts as fast as they are loaded".to_owned()))
    }

    /// Hears `channel` from now on, also after the connection broke and came back.
    pub async fn subscribe(&self, channel: &str) -> Result<(), LinkError> {
        let mut manager = self.manager.clone();
        Ok(within(PATIENCE * 2, manager.subscribe(channel)).await??)
    }
}

/// A connection of its own, for commands that block. Does not come back by itself.
pub struct Blocking {
    /// To be cloned by nobody: commands on it wait for one another at the server.
    pub connection: MultiplexedConnection,
    /// What `CLIENT UNBLOCK` knows it by.
    pub id: i64,
}

impl Blocking {
    /// Connects within `patience`. Answers may take `longest`.
    pub async fn open(place: &Place, patience: Duration, longest: Duration) -> Result<Self, LinkError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(longest));
        let client = place.client()?;
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = within(patience, opening).await??;
        let id = connection.send_packed_command(redis::cmd("CLIENT").arg("ID")).await?;
        Ok(Self { connection, id: value::int(&id)? })
    }
}

/// What a connection says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// A message on a channel.
    Message {
        /// Which channel.
        channel: String,
        /// What was said.
        payload: Vec<u8>,
    },
    /// The connection broke: messages may have been missed.
    Disconnected,
}

impl Push {
    fn of(info: PushInfo) -> Option<Self> {
        if info.kind == redis::PushKind::Disconnection {
            return Some(Self::Disconnected);
        }
        let message = redis::Msg::from_push_info(info)?;
        let channel = message.get_channel_name().to_owned();
        Some(Self::Message { channel, payload: message.get_payload_bytes().to_vec() })
    }
}

async fn within<T>(patience: Duration, doing: impl Future<Output = T>) -> Result<T, LinkError> {
    let late = |_| LinkError::Unavailable(format!("no answer within {patience:?}"));
    tokio::time::timeout(patience, doing).await.map_err(late)
}
