//! Where results go: to the queue that the caller reads (`rpc://`), or into Redis (`redis://`).
//!
//! Nothing is ever declared here: a caller that went away has taken its queue along, and its result is nobody's.

use std::fmt;
use std::time::Duration;

use redis::aio::ConnectionManager;

use crate::broker::BrokerUrl;
use crate::broker::celery::{Answers, Unnamed, speaker};
use crate::task::celery::CeleryContext;

/// How long Celery keeps results in Redis: a day, its `result_expires`.
const KEPT_SECONDS: u64 = 86_400;

/// Where results go.
pub enum Backend {
    /// To the queue that each message names, on the broker it came from.
    Rpc(Box<dyn Answers>),
    /// To a key of the task's name.
    Redis(ConnectionManager),
}

/// Why a backend cannot be used, or did not take a result.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(String);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rpc(_) => "Rpc",
            Self::Redis(_) => "Redis",
        })
    }
}

impl Backend {
    /// The backend at `address`: `rpc://` for answers on `broker`, `redis://`, `rediss://` or `redis+unix://` for keys, empty for
    /// what Celery does there; none where results are switched off or the broker carries no answers.
    pub async fn open(
        address: &str,
        broker: &BrokerUrl,
        timeout: Duration,
    ) -> Result<Option<Self>, BackendError> {
        let scheme = address.split(':').next().unwrap_or_default();
        match scheme {
            "" | "rpc" | "amqp" => {
                let is_unnamed = address.is_empty();
                let speaker =
                    speaker(broker).filter(|speaker| !is_unnamed || speaker.unnamed == Unnamed::Rpc);
                let Some(speaker) = speaker else { return Ok(None) };
                let answers = (speaker.answers)(broker, timeout);
                Ok(Some(Self::Rpc(answers.map_err(|error| BackendError(error.to_string()))?)))
            }
            "redis" | "rediss" | "redis+unix" => {
                let shown = BrokerUrl::parse(address).map(|url| url.to_string()).unwrap_or_default();
                let refused = |error: redis::RedisError| {
                    BackendError(format!("celery.result_backend {shown} cannot be used: {error}"))
                };
                let client = redis::Client::open(address).map_err(refused)?;
                let connecting = ConnectionManager::new(client);
                match tokio::time::timeout(timeout, connecting).await {
                    Ok(connected) => Ok(Some(Self::Redis(connected.map_err(refused)?))),
                    Err(_) => Err(BackendError(format!(
                        "celery.result_backend {shown} does not answer within {timeout:?}"
                    ))),
                }
            }
            "disabled" => Ok(None),
            other => Err(BackendError(format!(
                "celery.result_backend begins with {other:?}: write rpc://, redis://host:6379/0 or disabled://"
            ))),
        }
    }

    /// Whether a result for that sender goes anywhere.
    pub fn reaches(&self, context: &CeleryContext) -> bool {
        match self {
            Self::Rpc(_) => context.reply_to.is_some(),
            Self::Redis(_) => !context.id.is_empty(),
        }
    }

    /// Delivers `body`, the result of the task of `context`.
    pub async fn deliver(&self, context: &CeleryContext, body: &str) -> Result<(), BackendError> {
        match self {
            Self::Rpc(answers) => {
                let Some(queue) = &context.reply_to else { return Ok(()) };
                let correlation = context.correlation_id.as_deref().unwrap_or(&context.id);
                let sent = answers.send(queue, correlation, body.as_bytes().to_vec()).await;
                sent.map_err(|error| BackendError(error.to_string()))
            }
            Self::Redis(connection) => {
                let key = format!("celery-task-meta-{}", context.id);
                let mut connection = connection.clone();
                let refused = |error: redis::RedisError| BackendError(error.to_string());
                let stored: Option<String> =
                    redis::cmd("GET").arg(&key).query_async(&mut connection).await.map_err(refused)?;
                if stored.is_some_and(|stored| is_success(&stored)) {
                    // As Celery does: what went well stays so, whatever a stale worker says later.
                    return Ok(());
                }
                redis::pipe()
                    .atomic()
                    .cmd("SETEX")
                    .arg(&key)
                    .arg(KEPT_SECONDS)
                    .arg(body)
                    .ignore()
                    .cmd("PUBLISH")
                    .arg(&key)
                    .arg(body)
                    .ignore()
                    .query_async::<()>(&mut connection)
                    .await
                    .map_err(refused)
            }
        }
    }
}

fn is_success(stored: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(stored).is_ok_and(|result| result["status"] == "SUCCESS")
}
