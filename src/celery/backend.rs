//! Where results go: to the queue that the caller reads (`rpc://`), or into Redis (`redis://`).
//!
//! Nothing is ever declared here: a caller that went away has taken its queue along, and its result is nobody's.

use std::fmt;
use std::time::Duration;

use crate::broker::BrokerUrl;
use crate::broker::celery::{Answers, Unnamed, speaker};
use crate::redis::{Link, LinkError, Place, value};
use crate::task::celery::CeleryContext;

/// How long Celery keeps results in Redis: a day, its `result_expires`.
const KEPT_SECONDS: u64 = 86_400;

/// Where results go.
pub enum Backend {
    /// To the queue that each message names, on the broker it came from.
    Rpc(Box<dyn Answers>),
    /// To a key of the task's name.
    Redis(Link),
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
                let refused = |error: LinkError| {
                    BackendError(format!("celery.result_backend {shown} cannot be used: {error}"))
                };
                let place = Place::parse(&of_the_server(address), &shown).map_err(refused)?;
                Ok(Some(Self::Redis(Link::open(&place, timeout, |_| {}).await.map_err(refused)?)))
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
            Self::Redis(link) => {
                store(link, &context.id, body).await.map_err(|error| BackendError(error.to_string()))
            }
        }
    }
}

/// Options of Celery's addresses that say how its own client behaves; those of TLS are read.
const OF_ITS_CLIENT: &[&str] = &[
    "health_check_interval",
    "max_connections",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "visibility_timeout",
];

/// The address without what is for Celery's client alone.
fn of_the_server(address: &str) -> String {
    let Some((base, query)) = address.split_once('?') else { return address.to_owned() };
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        !OF_ITS_CLIENT.contains(&name)
    };
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) }
}

/// As Celery does: what went well stays so, whatever a stale worker says later.
async fn store(link: &Link, id: &str, body: &str) -> Result<(), LinkError> {
    let key = format!("celery-task-meta-{id}");
    let stored = value::text_if_any(link.send(redis::cmd("GET").arg(&key)).await?)?;
    if stored.is_some_and(|stored| is_success(&stored)) {
        return Ok(());
    }
    let mut both = redis::pipe();
    both.atomic().cmd("SETEX").arg(&key).arg(KEPT_SECONDS).arg(body).cmd("PUBLISH").arg(&key).arg(body);
    link.send_all(&both, 4).await.map(drop)
}

fn is_success(stored: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(stored).is_ok_and(|result| result["status"] == "SUCCESS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_celerys_own_client_is_left_out_of_an_address() {
        assert_eq!(
            of_the_server("rediss://h/1?socket_timeout=3&ssl_cert_reqs=required&max_connections=9"),
            "rediss://h/1?ssl_cert_reqs=required"
        );
        assert_eq!(of_the_server("redis://h/1?socket_timeout=3"), "redis://h/1");
    }
}
