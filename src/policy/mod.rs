//! What a task may ask for.
//!
//! Owns the rules of `[policy]`, their profiles, and the judgement of a finished request: [`Policy::judge`] sees the
//! body that would be sent to the engine, so that nothing which became part of it on another way goes unseen. It tells
//! all violations at once, each with its setting. Decides and fills only; never talks to the engine, and touches the
//! file system only to see where links lead. Called by the stager, by handlers before they create a container, by the
//! streams before they connect, and by `longshore policy test`.
//!
//! # Decisions
//! - Rules are data: a profile's values, overlaid by what `[policy]` says, overlaid by what the queue's section says. A
//!   queue that names a profile of its own begins from that one alone.
//! - [`Policy::apply`] changes nothing in audit mode, because the task is to run as it asked.

pub mod image;
pub mod mount;
pub mod profile;
pub mod rules;
pub mod terms;

mod ceiling;
mod denied;
mod fields;
mod http;
mod namespace;
mod path;
mod privilege;
mod section;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard::models::{ContainerCreateBody, HostConfig, NetworkingConfig};
use serde_json::Value;

pub use denied::{Denied, Refusal};
pub use http::HttpPolicy;
pub use image::Pull;
pub use mount::{MountIdentity, MountSwapped};
pub use path::HostFiles;
pub use profile::Profile;
pub use rules::{Mode, PolicySettings, Rules};
pub use section::PolicyError;

use self::section::Section;
use crate::task::{QueueName, TaskId};
use crate::units::{Size, Span};

/// The rules of a worker.
#[derive(Clone, Debug)]
pub struct Policy {
    base: Section,
    queues: BTreeMap<QueueName, Section>,
    surroundings: Surroundings,
}

/// What the rules are measured against.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// This host.
    pub machine: Machine,
    /// Whether paths of the engine's host can be followed.
    pub files: HostFiles,
    /// Docker's socket and the worker's own state and settings: never mounted where `binds.protect_worker` holds.
    pub protected: Vec<PathBuf>,
    /// The file that denials tell an administrator to change.
    pub settings_file: PathBuf,
}

/// What a host has; unknown where it cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Machine {
    /// Processors.
    pub cpus: Option<f64>,
    /// Memory.
    pub memory: Option<Size>,
}

/// A finished request, as it is about to be carried out.
#[derive(Clone, Copy, Debug)]
pub struct FinalRequest<'a> {
    /// Who asks.
    pub task: &'a TaskId,
    /// The queue it came from, whose section of the rules holds.
    pub queue: &'a QueueName,
    /// The image as the task named it.
    pub image: &'a str,
    /// When it is pulled.
    pub pull: Pull,
    /// The engine's request, after [`Policy::apply`].
    pub body: &'a ContainerCreateBody,
    /// Host paths of mounts that the worker made for this task itself.
    pub made: &'a [PathBuf],
    /// Host folders that the task names for the worker to write in: a volume's `host_dir`, a pipe's `host_path`.
    pub written: &'a [PathBuf],
    /// The network that the worker's settings put the task on, if the task named none.
    pub worker_network: Option<&'a str>,
    /// URLs that the worker itself connects to for the task.
    pub streams: &'a [String],
    /// The address of the task's Girder API.
    pub girder: Option<&'a str>,
    /// Whether the task wants Girder's certificate to be taken unseen.
    pub insecure_girder: bool,
    /// GPUs declared to the scheduler.
    pub gpus: u32,
    /// The time limit that the task asked for.
    pub timeout: Option<Span>,
}

/// What the rules say to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// Whether violations refuse it.
    pub mode: Mode,
    /// All of them.
    pub denied: Vec<Denied>,
    /// What each mounted host path is now; the started container must show the same.
    pub mounts: Vec<MountIdentity>,
}

/// A request that may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What would have been refused, were the rules enforced.
    pub audited: Vec<Denied>,
    /// See [`Verdict::mounts`].
    pub mounts: Vec<MountIdentity>,
}

impl Verdict {
    /// Whether the task may go on.
    pub fn into_result(self) -> Result<Granted, Refusal> {
        match self.mode {
            Mode::Enforce if !self.denied.is_empty() => Err(Refusal(self.denied)),
            Mode::Enforce | Mode::Audit => Ok(Granted { audited: self.denied, mounts: self.mounts }),
        }
    }
}

impl Policy {
    /// The rules that `settings` describe.
    pub fn new(settings: &PolicySettings, surroundings: Surroundings) -> Result<Self, PolicyError> {
        let base = Section::base(settings)?;
        let queues = settings
            .queue
            .iter()
            .map(|(queue, own)| Ok((queue.clone(), Section::of_queue(settings, queue, own)?)))
            .collect::<Result<_, PolicyError>>()?;
        Ok(Self { base, queues, surroundings })
    }

    /// The rules that hold for tasks of `queue`.
    pub fn rules(&self, queue: &QueueName) -> &Rules {
        &self.section(queue).rules
    }

    /// Gives `body` what the rules demand of every container and bounds what the task left open.
    pub fn apply(&self, queue: &QueueName, body: &mut ContainerCreateBody) {
        let section = self.section(queue);
        match section.mode {
            Mode::Enforce => self.fill(section, body),
            Mode::Audit => {}
        }
    }

    /// The time after which a task of `queue` is stopped, given what it asked for.
    pub fn timeout(&self, queue: &QueueName, asked: Option<Span>) -> Option<Span> {
        let section = self.section(queue);
        match section.mode {
            Mode::Enforce => ceiling::timeout(&section.rules, asked),
            Mode::Audit => asked,
        }
    }

    /// Judges a finished request. Reads the file system to follow links, without waiting on the network.
    pub fn judge(&self, request: &FinalRequest<'_>) -> Verdict {
        let section = self.section(request.queue);
        let mut body = request.body.clone();
        if section.mode == Mode::Audit {
            // What `apply` would have given is not the task's fault.
            self.fill(section, &mut body);
        }
        let json = serde_json::to_value(&body).unwrap_or(Value::Null);
        let mut judging = Judging {
            policy: self,
            section,
            request,
            body: &body,
            host: body.host_config.as_ref(),
            networking: body.networking_config.as_ref(),
            machine: &self.surroundings.machine,
            files: self.surroundings.files,
            protected: &self.surroundings.protected,
            denied: Vec::new(),
            mounts: Vec::new(),
        };
        image::judge(&mut judging);
        privilege::judge(&mut judging);
        namespace::judge(&mut judging);
        mount::judge(&mut judging);
        ceiling::judge(&mut judging);
        http::judge(&mut judging);
        fields::judge(&mut judging, &json);
        Verdict { mode: section.mode, denied: judging.denied, mounts: judging.mounts }
    }

    /// The rules for the worker's own requests for a task; `girder` is the address of its Girder API.
    pub fn http<'a>(&'a self, queue: &QueueName, task: &'a TaskId, girder: Option<&str>) -> HttpPolicy<'a> {
        HttpPolicy::new(self, queue, task, girder)
    }

    /// What should be said loudly at every start, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let queues = self.queues.iter().map(|(queue, section)| (format!("queue {queue}"), section));
        std::iter::once(("this worker".to_owned(), &self.base))
            .chain(queues)
            .flat_map(|(who, section)| section.warnings(&who))
            .collect()
    }

    fn fill(&self, section: &Section, body: &mut ContainerCreateBody) {
        privilege::apply(&section.rules, body);
        ceiling::apply(&section.rules, &self.surroundings.machine, body);
    }

    fn section(&self, queue: &QueueName) -> &Section {
        self.queues.get(queue).unwrap_or(&self.base)
    }

    fn denied(&self, section: &Section, task: &TaskId, key: &str, asked: String) -> Denied {
        Denied {
            setting: section.setting(key),
            asked,
            value: section.value(key),
            task: task.clone(),
            file: self.surroundings.settings_file.clone(),
        }
    }
}

/// A judgement under way.
struct Judging<'a> {
    policy: &'a Policy,
    section: &'a Section,
    request: &'a FinalRequest<'a>,
    body: &'a ContainerCreateBody,
    host: Option<&'a HostConfig>,
    networking: Option<&'a NetworkingConfig>,
    machine: &'a Machine,
    files: HostFiles,
    protected: &'a [PathBuf],
    denied: Vec<Denied>,
    mounts: Vec<MountIdentity>,
}

impl<'a> Judging<'a> {
    fn rules(&self) -> &'a Rules {
        &self.section.rules
    }
    /// The value of a key as it may stand in the settings.
    fn value(&self, key: &str) -> String {
        self.section.value(key)
    }
    fn deny(&mut self, key: &str, asked: String) {
        let denied = self.policy.denied(self.section, self.request.task, key, asked);
        self.denied.push(denied);
    }
    /// Like [`Judging::deny`], with the part of the value that matters.
    fn deny_with(&mut self, key: &str, asked: String, value: String) {
        let denied = self.policy.denied(self.section, self.request.task, key, asked);
        self.denied.push(Denied { value, ..denied });
    }
}
