//! Listing and steering queues. Bodies stay at the server: a script leaves them out.

use async_trait::async_trait;
use jiff::Timestamp;
use redis::Value;

use super::Client;
use super::keys::usual_priority;
use super::message::{Entry, of_millis};
use crate::broker::{Admin, BrokerError, CONTENTS_MAX, Contents, Intake, QueueInfo, Waiting, WaitingQuery};
use crate::redis::{LinkError, script, value};
use crate::task::{PriorityClass as Class, QueueName, TaskId};

script!(TALLY, "lua/common.lua", "lua/tally.lua");
script!(WAITING, "lua/common.lua", "lua/waiting.lua");
script!(CONTENTS, "lua/common.lua", "lua/contents.lua");
script!(PURGE, "lua/common.lua", "lua/purge.lua");

/// Messages that one script looks at.
const PAGE: usize = 1_000;
/// Bodies that one script returns.
const BODIES: usize = 16;

#[async_trait]
impl Admin for Client {
    async fn queues(&self) -> Result<Vec<QueueInfo>, BrokerError> {
        let infos = async {
            let mut infos = Vec::new();
            for queue in self.queue_names().await? {
                infos.push(self.info(queue).await?);
            }
            Ok(infos)
        };
        infos.await.map_err(self.cannot("list its queues"))
    }

    async fn set_intake(&self, queue: &QueueName, intake: Intake) -> Result<(), BrokerError> {
        let paused = format!("{}:paused", self.keys.stem(queue));
        let mut steps = redis::pipe();
        steps.cmd("SADD").arg(self.keys.queues()).arg(queue.as_str());
        match intake {
            Intake::Open => steps.cmd("DEL").arg(paused),
            Intake::Paused => steps.cmd("SET").arg(paused).arg(1),
        };
        steps.cmd("PUBLISH").arg(self.keys.bell()).arg(0);
        self.link.send_all(&steps, 3).await.map(drop).map_err(self.cannot("pause or resume a queue"))
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let mut removed = 0;
        loop {
            let answer = self.link.call(&PURGE.on(&[self.keys.stem(queue)]).arg(PAGE)).await;
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
    /// Among those of the same section: by class and order, or by time.
    place: (i64, usize, u64),
    class: Class,
    id: String,
    waiting: Waiting,
}

impl Client {
    /// Every queue that anybody named, by name.
    pub(in crate::broker) async fn queue_names(&self) -> Result<Vec<QueueName>, LinkError> {
        let names = value::list(self.link.send(redis::cmd("SMEMBERS").arg(self.keys.queues())).await?)?;
        let names = names.into_iter().map(value::text).collect::<Result<Vec<_>, _>>()?;
        // Anybody may have written there.
        let mut names: Vec<QueueName> =
            names.into_iter().filter_map(|name| QueueName::new(name).ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn info(&self, name: QueueName) -> Result<QueueInfo, LinkError> {
        let answer = self.link.call(&TALLY.on(&[self.keys.stem(&name)])).await?;
        let [ready, leased, delayed, dead, paused, oldest] = value::row(answer)?;
        Ok(QueueInfo {
            name,
            ready: value::count(&ready)?,
            leased: value::count(&leased)?,
            delayed: value::count(&delayed)?,
            dead: value::count(&dead)?,
            intake: if value::int(&paused)? == 1 { Intake::Paused } else { Intake::Open },
            oldest: u64::try_from(value::int(&oldest)?).ok().and_then(of_millis),
        })
    }

    async fn list_waiting(&self, query: &WaitingQuery) -> Result<Vec<Waiting>, LinkError> {
        let most = if query.limit == 0 { 1_000 } else { query.limit };
        let queues = match &query.queue {
            Some(queue) => vec![queue.clone()],
            None => self.queue_names().await?,
        };
        let mut listed = Vec::new();
        for queue in queues {
            let search =
                Search { client: self, queue, task: query.task.as_ref(), most, seen: 0, listed: Vec::new() };
            listed.extend(search.run().await?);
        }
        listed.sort_by_key(|found| (found.section, found.place));
        listed.truncate(most);
        match query.contents {
            Contents::Left => {}
            Contents::Given => self.add_contents(&mut listed).await?,
        }
        Ok(listed.into_iter().map(|found| found.waiting).collect())
    }
}

impl Client {
    /// Reads the messages themselves, as far as [`CONTENTS_MAX`] goes.
    async fn add_contents(&self, listed: &mut [Listed]) -> Result<(), LinkError> {
        let mut room = CONTENTS_MAX;
        for same in listed.chunk_by_mut(|one, other| one.waiting.queue == other.waiting.queue) {
            for some in same.chunks_mut(BODIES) {
                let mut call = CONTENTS.on(&[self.keys.stem(&some[0].waiting.queue)]);
                for Listed { class, id, .. } in some.iter() {
                    call.push(class.as_str());
                    call.push(id);
                }
                let found = value::list(self.link.call(&call).await?)?;
                for (Listed { waiting, .. }, fields) in some.iter_mut().zip(found) {
                    let entry = Entry::read(fields)?;
                    let Some(left) = room.checked_sub(entry.body.len().max(1)) else { return Ok(()) };
                    room = left;
                    waiting.raw = Some(entry.raw(&waiting.queue));
                }
            }
        }
        Ok(())
    }
}

/// Looks through one queue.
struct Search<'a> {
    client: &'a Client,
    queue: QueueName,
    task: Option<&'a TaskId>,
    most: usize,
    /// Ready ones so far, whether they match or not.
    seen: u64,
    listed: Vec<Listed>,
}

impl Search<'_> {
    async fn run(mut self) -> Result<Vec<Listed>, LinkError> {
        for class in Class::ALL {
            self.section(Section::Leased, "leased", class).await?;
        }
        for class in Class::ALL {
            for name in ["lapsed", "again", "new"] {
                self.section(Section::Ready, name, class).await?;
            }
        }
        for class in Class::ALL {
            for name in ["returned", "held"] {
                self.section(Section::Later, name, class).await?;
            }
        }
        Ok(self.listed)
    }

    async fn section(&mut self, section: Section, name: &str, class: Class) -> Result<(), LinkError> {
        let mut cursor = String::new();
        let enough = self.listed.iter().filter(|found| found.section == section).count() + self.most;
        loop {
            let call = WAITING.on(&[self.client.keys.stem(&self.queue)]).arg(name).arg(class.as_str());
            let task = self.task.map_or("", TaskId::as_str);
            let call = call.arg(&cursor).arg(PAGE.min(self.page())).arg(task);
            let [next, seen, found] = value::row(self.client.link.call(&call).await?)?;
            for message in value::list(found)? {
                self.add(section, class, message)?;
            }
            if section == Section::Ready {
                self.seen += value::count(&seen)?;
            }
            cursor = value::text(next)?;
            let count = self.listed.iter().filter(|found| found.section == section).count();
            if cursor.is_empty() || count >= enough {
                return Ok(());
            }
        }
    }

    /// When all match, no more than wanted need be looked at.
    fn page(&self) -> usize {
        if self.task.is_some() { PAGE } else { self.most }
    }

    fn add(&mut self, section: Section, class: Class, message: Value) -> Result<(), LinkError> {
        let [place, id, due, consumer, fields] = value::row(message)?;
        let (place, id) = (value::count(&place)?, value::text(id)?);
        let due = u64::try_from(value::int(&due)?).ok().and_then(of_millis);
        let entry = Entry::read(fields)?;
        let ahead = match section {
            Section::Leased => 0,
            Section::Ready | Section::Later => self.seen + place,
        };
        let lease = match (section, due) {
            (Section::Leased, Some(until)) => Some((until, value::text(consumer)?)),
            _ => None,
        };
        let class_place = Class::ALL.iter().position(|other| *other == class).unwrap_or_default();
        let time = match section {
            Section::Leased | Section::Ready => 0,
            Section::Later => due.map_or(0, Timestamp::as_millisecond),
        };
        self.listed.push(Listed {
            section,
            place: (time, class_place, ahead),
            class,
            waiting: Waiting {
                task: task_of(&entry, &id),
                queue: self.queue.clone(),
                priority: entry.priority.unwrap_or_else(|| usual_priority(class)),
                submitted: entry.submitted(&id).unwrap_or_default(),
                not_before: due.filter(|_| section == Section::Later),
                lease,
                ahead: Some(ahead),
                raw: None,
            },
            id,
        });
        Ok(())
    }
}

/// A message that no task id can be read from is shown by its own.
fn task_of(entry: &Entry, id: &str) -> TaskId {
    let named = entry.task.clone().and_then(|task| TaskId::new(task).ok());
    named.or_else(|| TaskId::new(id).ok()).unwrap_or_else(TaskId::fresh)
}
