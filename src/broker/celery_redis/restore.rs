//! What goes back to its queue by itself: leases that lapsed, and what kombu channels took and left behind when they died.

use bytes::Bytes;
use uuid::Uuid;

use super::{Client, envelope, kombu};
use crate::redis::{LinkError, script, value};
use crate::task::Limits;
use crate::task::json::{self, Json};

script!(PUT_BACK, "lua/common.lua", "lua/put_back.lua");
script!(STALE, "lua/common.lua", "lua/stale.lua");
script!(RESTORE, "lua/common.lua", "lua/restore.lua");
script!(UNLOCK, "lua/unlock.lua");

/// How long kombu's lock stands when its holder dies, in milliseconds.
const MUTEX_MILLIS: u32 = 300_000;

impl Client {
    /// Puts messages of lapsed leases back where they came from; they run next.
    pub(super) async fn put_back<'a>(
        &self,
        stem: &[String],
        lapsed: impl Iterator<Item = (&'a str, &'a Bytes)>,
    ) -> Result<(), LinkError> {
        let mut call = self.call(&PUT_BACK, stem);
        for (tag, envelope) in lapsed {
            call.push(tag);
            call.push(&envelope::redelivered(envelope)[..]);
        }
        let moved = value::int(&self.common.link.call(&call).await?)?;
        tracing::debug!(moved, "leases lapsed: their messages are handed over again");
        Ok(())
    }

    /// Restores what nobody acknowledged within the visibility timeout, as kombu does and under its lock.
    pub(super) async fn restore_stale(&self) -> Result<(), LinkError> {
        let (link, mutex, token) = (&self.common.link, self.kombu.mutex(), Uuid::now_v7().to_string());
        let timeout = self.visibility_timeout.as_secs_f64();
        if value::list(link.call(&self.call(&STALE, &[]).arg(timeout)).await?)?.is_empty() {
            return Ok(());
        }
        let mut lock = redis::cmd("SET");
        lock.arg(&mutex).arg(&token).arg("NX").arg("PX").arg(MUTEX_MILLIS);
        if value::text_if_any(link.send(&lock).await?)?.is_none() {
            return Ok(());
        }
        let restored = self.restore_locked(timeout).await;
        link.call(&UNLOCK.on(&[mutex]).arg(token)).await?;
        let moved = restored?;
        if moved > 0 {
            tracing::info!(
                moved,
                "messages were taken by Celery workers that died; they are handed over again"
            );
        }
        Ok(())
    }

    async fn restore_locked(&self, timeout: f64) -> Result<i64, LinkError> {
        let stale = value::list(self.common.link.call(&self.call(&STALE, &[]).arg(timeout)).await?)?;
        let mut moved = 0;
        for one in stale {
            let [tag, kept] = value::row(one)?;
            let (tag, kept) = (value::text(tag)?, value::bytes(kept)?);
            let Some((envelope, exchange, routing_key)) = unpacked(&kept) else {
                tracing::error!(
                    tag,
                    "an unacknowledged message of a Celery worker is unreadable and stays where it is"
                );
                continue;
            };
            let queues = self.queues_of(&exchange, &routing_key).await?;
            let priority = envelope::kombu_priority(&envelope);
            let flagged = envelope::redelivered(&envelope);
            // To each queue that the exchange leads to; nearly always one.
            let Some((last, others)) = queues.split_last() else { continue };
            let mut call = self.call(&RESTORE, &[]);
            call.push(&tag);
            call.push(&kept);
            call.push(self.kombu.list(last, priority));
            call.push(&flagged[..]);
            if value::int(&self.common.link.call(&call).await?)? == 0 {
                continue;
            }
            moved += 1;
            for queue in others {
                let mut copy = redis::cmd("RPUSH");
                copy.arg(self.kombu.list(queue, priority)).arg(&flagged[..]);
                self.common.link.send(&copy).await?;
            }
        }
        Ok(moved)
    }

    /// Where kombu would route to.
    async fn queues_of(&self, exchange: &str, routing_key: &str) -> Result<Vec<String>, LinkError> {
        let [table, _] = self.kombu.bindings(exchange);
        let members = match exchange {
            "" => Vec::new(),
            _ => value::list(self.common.link.send(redis::cmd("SMEMBERS").arg(table)).await?)?,
        };
        let mut queues = Vec::new();
        for member in members {
            let member = value::text(member)?;
            if let Some((key, queue)) = kombu::bound(&member)
                && key == routing_key
            {
                queues.push(queue.to_owned());
            }
        }
        if queues.is_empty() && !routing_key.is_empty() {
            queues.push(routing_key.to_owned());
        }
        Ok(queues)
    }
}

/// Message, exchange and routing key of what stands in `unacked`.
fn unpacked(kept: &[u8]) -> Option<(Bytes, String, String)> {
    let limits = Limits { max_bytes: usize::MAX, ..Limits::default() };
    let Ok(Json::List(items)) = json::parse(kept, &limits) else { return None };
    let [envelope, exchange, routing_key] = items.try_into().ok()?;
    let text = |value: Json| match value {
        Json::Text(text) => Some(text),
        Json::Null => Some(String::new()),
        _ => None,
    };
    Some((envelope.to_string().into(), text(exchange)?, text(routing_key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kombu_keeps_is_unpacked() {
        let (envelope, exchange, key) = unpacked(br#"[{"body": "", "l": []}, "", "celery"]"#).unwrap();
        assert_eq!(
            (&envelope[..], exchange.as_str(), key.as_str()),
            (&br#"{"body": "", "l": []}"#[..], "", "celery")
        );
        for odd in ["", "[]", "[{}, 1, 2]", "{}"] {
            assert!(unpacked(odd.as_bytes()).is_none(), "{odd}");
        }
    }
}
