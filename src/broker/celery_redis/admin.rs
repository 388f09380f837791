//! Listing and steering queues. What waits in a list is read whole: kombu's messages are one text each.

use async_trait::async_trait;
use jiff::Timestamp;

use super::Client;
use super::envelope::Envelope;
use crate::broker::{Admin, BrokerError, CONTENTS_MAX, Contents, Intake, QueueInfo, Waiting, WaitingQuery};
use crate::redis::{LinkError, script, value};
use crate::task::{QueueName, RawMessage, TaskId};

script!(TALLY, "lua/common.lua", "lua/tally.lua");
script!(KEPT, "lua/common.lua", "lua/kept.lua");
script!(PURGE, "lua/common.lua", "lua/purge.lua");

/// Messages that are read at once.
const PAGE: usize = 100;

#[async_trait]
impl Admin for Client {
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        let infos = async {
            let mut infos = Vec::new();
            for queue in self.common.queue_names().await? {
                infos.push(self.info(queue).await?);
            }
            Ok(infos)
        };
        infos.await.map_err(self.cannot("list its queues"))
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        self.common.set_intake(queue, intake).await
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let mut removed = 0;
        loop {
            let answer = self.common.link.call(&self.call(&PURGE, &self.keys_of(queue)).arg(PAGE)).await;
            let step =
                answer.and_then(|answer| value::count(&answer)).map_err(self.cannot("purge a queue"))?;
            if step == 0 {
                return Ok(removed);
            }
            removed += step;
        }
    }

    async fn waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, BrokerError> {
        self.list_waiting(query).await.map_err(self.cannot("list what waits"))
    }
}

/// Where messages are looked for. Those before [`Section::Later`] could go, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Leased,
    Ready,
    Later,
}

/// A listed message and its place.
struct Listed {
    section: Section,
    /// By time, by list, by its place in it.
    place: (i64, usize, u64),
    waiting: Waiting,
}

impl Client {
    /// A queue's stem and its lists.
    fn keys_of(&self, queue: &QueueName) -> Vec<String> {
        std::iter::once(self.stem(queue)).chain(self.kombu.lists(queue.as_str())).collect()
    }

    async fn info(&self, name: QueueName) -> Result<QueueInfo, LinkError> {
        let answer = self.common.link.call(&self.call(&TALLY, &self.keys_of(&name))).await?;
        let [ready, leased, delayed, dead, paused] = value::row(answer)?;
        Ok(QueueInfo {
            name,
            ready: value::count(&ready)?,
            leased: value::count(&leased)?,
            delayed: value::count(&delayed)?,
            dead: value::count(&dead)?,
            intake: if value::int(&paused)? == 1 { Intake::Paused } else { Intake::Open },
            // kombu's messages do not say since when they wait.
            oldest: None,
        })
    }

    async fn list_waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, LinkError> {
        let most = if query.limit == 0 { 1_000 } else { query.limit };
        let queues = match &query.queue {
            Some(queue) => vec![queue.clone()],
            None => self.common.queue_names().await?,
        };
        let mut listed = Vec::new();
        for queue in queues {
            let search = Search {
                client: self,
                queue,
                task: query.task.as_ref(),
                contents: query.contents,
                most,
                room: CONTENTS_MAX,
                listed: Vec::new(),
            };
            listed.extend(search.run().await?);
        }
        listed.sort_by_key(|found| (found.section, found.place));
        listed.truncate(most);
        Ok(listed.into_iter().map(|found| found.waiting).collect())
    }
}

/// Looks through one queue.
struct Search<'a> {
    client: &'a Client,
    queue: QueueName,
    task: Option<&'a TaskId>,
    contents: Contents,
    most: usize,
    /// Bytes of messages that may still be listed.
    room: usize,
    listed: Vec<Listed>,
}

impl Search<'_> {
    async fn run(mut self) -> Result<Vec<Listed>, LinkError> {
        self.kept(Section::Leased, "leased").await?;
        let mut ahead = 0;
        for (number, list) in self.client.kombu.lists(self.queue.as_str()).into_iter().enumerate() {
            ahead = self.ready(number, &list, ahead).await?;
        }
        self.kept(Section::Later, "later").await?;
        Ok(self.listed)
    }

    fn is_enough(&self, section: Section) -> bool {
        self.listed.iter().filter(|found| found.section == section).count() >= self.most
    }

    /// Reads one list from its end, which is served first. How many stand before what comes behind it.
    async fn ready(&mut self, number: usize, list: &str, before: u64) -> Result<u64, LinkError> {
        let mut seen = 0;
        while !self.is_enough(Section::Ready) {
            let (from, to) = (seen + PAGE, seen + 1);
            let mut page = redis::cmd("LRANGE");
            page.arg(list).arg(format!("-{from}")).arg(format!("-{to}"));
            let messages = value::list(self.client.common.link.send(&page).await?)?;
            let count = messages.len();
            for message in messages.into_iter().rev() {
                let ahead = before + seen as u64;
                seen += 1;
                self.add(Section::Ready, (0, number, ahead), &value::bytes(message)?, None);
            }
            if count < PAGE {
                break;
            }
        }
        Ok(before + seen as u64)
    }

    /// Reads what is leased or waits for its time.
    async fn kept(&mut self, section: Section, set: &str) -> Result<(), LinkError> {
        let mut from = 0;
        while !self.is_enough(section) {
            let stem = [self.client.stem(&self.queue)];
            let call = self.client.call(&KEPT, &stem).arg(set).arg(self.queue.as_str());
            let call = call.arg(from).arg(from + PAGE - 1);
            let [seen, found] = value::row(self.client.common.link.call(&call).await?)?;
            for message in value::list(found)? {
                let [ms, consumer, envelope] = value::row(message)?;
                let at = Timestamp::from_millisecond(value::int(&ms)?).unwrap_or_default();
                let place = (at.as_millisecond(), 0, 0);
                self.add(section, place, &value::bytes(envelope)?, Some((at, value::text(consumer)?)));
            }
            if value::count(&seen)? < PAGE as u64 {
                break;
            }
            from += PAGE;
        }
        Ok(())
    }

    fn add(
        &mut self,
        section: Section,
        place: (i64, usize, u64),
        bytes: &[u8],
        kept: Option<(Timestamp, String)>,
    ) {
        // What is none is parked as soon as a worker takes it.
        let Ok(mut envelope) = Envelope::read(bytes) else { return };
        let Some(task) = envelope.task.take() else { return };
        if self.task.is_some_and(|wanted| *wanted != task) {
            return;
        }
        let not_before = kept.as_ref().map(|(at, _)| *at).filter(|_| section == Section::Later);
        let left = self.room.checked_sub(bytes.len());
        let is_wanted = self.contents == Contents::Given && left.is_some();
        self.room = left.unwrap_or(0);
        self.listed.push(Listed {
            section,
            place,
            waiting: Waiting {
                task,
                queue: self.queue.clone(),
                priority: envelope.priority(),
                // Celery's messages do not say it; they were sent before now.
                submitted: envelope.submitted.unwrap_or_else(Timestamp::now),
                not_before,
                lease: kept.filter(|_| section == Section::Leased),
                ahead: (section == Section::Ready).then_some(place.2),
                raw: is_wanted.then(|| RawMessage { queue: Some(self.queue.to_string()), ..envelope.raw }),
            },
        });
    }
}
