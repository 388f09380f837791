//! What a user of the server must be allowed to do in each role, in the words of the server's own settings.
//!
//! The roles reckon with `longshore broker init` having been run by somebody who may all, and with `manage=no` in the
//! address; [`Role::Worker`] may also make what is missing, so that it works without.

use clap::ValueEnum;
use serde::Serialize;

use super::names::{Names, Wait, bucket_stream};
use crate::broker::{BrokerError, BrokerUrl};
use crate::nats::Place;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Submits and cancels tasks.
    Producer,
    /// Takes tasks, tells of them and records them.
    Worker,
    /// Looks at tasks, queues, workers and events.
    Viewer,
}

/// The subjects that a user may publish to and subscribe to.
#[derive(Clone, Debug, Serialize)]
pub struct Permissions {
    /// Publish to these.
    pub publish: Vec<String>,
    /// Subscribe to these.
    pub subscribe: Vec<String>,
    /// Whether answers to questions may be sent wherever the question says.
    pub allow_responses: bool,
}

impl Permissions {
    /// What `role` needs at the broker with this address.
    pub fn of(url: &BrokerUrl, role: Role) -> Result<Self, BrokerError> {
        let place = Place::parse(&url.expose(), &url.to_string())
            .map_err(|error| super::refusal(&url.to_string(), "read its address", error))?;
        let needs = Needs::new(&place);
        Ok(match role {
            Role::Producer => needs.producer(),
            Role::Worker => needs.worker(),
            Role::Viewer => needs.viewer(),
        })
    }

    /// As the server's settings write them.
    pub fn as_settings(&self) -> String {
        let list = |subjects: &[String]| {
            let lines: Vec<String> = subjects.iter().map(|subject| format!("    {subject:?}")).collect();
            lines.join("\n")
        };
        let responses = if self.allow_responses { "  allow_responses: true\n" } else { "" };
        format!(
            "permissions: {{\n  publish: [\n{}\n  ]\n  subscribe: [\n{}\n  ]\n{responses}}}\n",
            list(&self.publish),
            list(&self.subscribe)
        )
    }
}

struct Needs {
    names: Names,
    api: String,
    inboxes: String,
    control: String,
    workers: String,
    records: String,
}

impl Needs {
    fn new(place: &Place) -> Self {
        let names = Names::new(&place.prefix);
        Self {
            control: names.control_bucket(),
            workers: names.workers_bucket(),
            records: format!("{}_records", place.prefix),
            names,
            api: place.api().to_owned(),
            inboxes: format!("{}.>", place.inbox_prefix()),
        }
    }

    fn streams(&self) -> Vec<String> {
        let [status, chatter] = self.names.event_streams();
        vec![
            self.names.work_stream(),
            self.names.dead_stream(),
            status,
            chatter,
            bucket_stream(&self.control),
            bucket_stream(&self.workers),
            bucket_stream(&self.records),
        ]
    }

    fn api(&self, request: &str) -> String {
        format!("{}.{request}", self.api)
    }

    /// What every client asks at its start.
    fn open(&self) -> Vec<String> {
        let infos = self.streams().into_iter().map(|stream| self.api(&format!("STREAM.INFO.{stream}")));
        std::iter::once(self.api("INFO")).chain(infos).collect()
    }

    /// To see what waits, how far its consumers have come, and who holds what.
    fn see_work(&self) -> Vec<String> {
        let work = self.names.work_stream();
        vec![
            self.api(&format!("CONSUMER.LIST.{work}")),
            self.api(&format!("DIRECT.GET.{work}")),
            self.api(&format!("DIRECT.GET.{work}.>")),
            self.names.roll_call(),
        ]
    }

    fn producer(&self) -> Permissions {
        let mut publish = self.open();
        publish.extend(self.names.all_places());
        publish.push(self.names.events_of(crate::events::EventKind::Queued));
        publish.push(format!("$KV.{}.cancel.*", self.control));
        publish.push(self.names.commands());
        // Whether a record of that id is there already.
        publish.push(self.api(&format!("DIRECT.GET.{}.>", bucket_stream(&self.records))));
        publish.push(self.api(&format!("STREAM.MSG.GET.{}", bucket_stream(&self.records))));
        publish.push(self.api(&format!("STREAM.PURGE.{}", bucket_stream(&self.control))));
        // Where a task is that is to be canceled or submitted again.
        publish.extend(self.see_work());
        Permissions { publish, subscribe: vec![self.inboxes.clone()], allow_responses: false }
    }

    fn viewer(&self) -> Permissions {
        let mut publish = self.open();
        publish.extend(self.see_work());
        for stream in self.streams() {
            if stream != self.names.work_stream() {
                publish.push(self.api(&format!("DIRECT.GET.{stream}")));
                publish.push(self.api(&format!("DIRECT.GET.{stream}.>")));
                publish.push(self.api(&format!("STREAM.MSG.GET.{stream}")));
                // Reading a stream takes a consumer that is forgotten afterwards.
                publish.push(self.api(&format!("CONSUMER.CREATE.{stream}")));
                publish.push(self.api(&format!("CONSUMER.MSG.NEXT.{stream}.*")));
                publish.push(self.api(&format!("CONSUMER.DELETE.{stream}.*")));
            }
        }
        let events = format!("{}.v1.event.>", self.names.prefix());
        Permissions { publish, subscribe: vec![self.inboxes.clone(), events], allow_responses: false }
    }

    fn worker(&self) -> Permissions {
        let Permissions { mut publish, mut subscribe, .. } = self.viewer();
        let work = self.names.work_stream();
        for stream in self.streams() {
            publish.push(self.api(&format!("STREAM.CREATE.{stream}")));
            publish.push(self.api(&format!("STREAM.UPDATE.{stream}")));
        }
        for request in ["CONSUMER.INFO", "CONSUMER.DURABLE.CREATE", "CONSUMER.MSG.NEXT"] {
            publish.push(self.api(&format!("{request}.{work}.*")));
        }
        for stream in [&self.control, &self.workers] {
            publish.push(self.api(&format!("STREAM.PURGE.{}", bucket_stream(stream))));
        }
        for stream in [&work, &bucket_stream(&self.records)] {
            publish.push(self.api(&format!("STREAM.MSG.DELETE.{stream}")));
        }
        publish.push(format!("$JS.ACK.{work}.>"));
        publish.extend([Wait::Turn, Wait::Time].map(|wait| self.names.places(wait)));
        publish.push(self.names.all_dead());
        publish.push(format!("{}.v1.event.>", self.names.prefix()));
        publish.push(self.names.commands());
        for bucket in [&self.control, &self.workers, &self.records] {
            publish.push(format!("$KV.{bucket}.>"));
        }
        for what in ["pause", "cancel"] {
            subscribe.push(format!("$KV.{}.{what}.*", self.control));
        }
        subscribe.push(self.names.commands());
        subscribe.push(self.names.roll_call());
        Permissions { publish, subscribe, allow_responses: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_is_written_as_the_server_reads_it() {
        let url = BrokerUrl::parse("nats://h?prefix=lab&domain=edge").unwrap();
        let all = [Role::Producer, Role::Worker, Role::Viewer]
            .map(|role| format!("# {role:?}\n{}", Permissions::of(&url, role).unwrap().as_settings()));
        insta::assert_snapshot!(all.join("\n"));
    }
}
