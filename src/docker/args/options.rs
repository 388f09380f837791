//! From docker-py's keywords to the engine's request: [`ContainerOptions`].
//!
//! The keywords themselves are rows of [`super::keywords::KEYWORDS`]; what concerns several of them at once is here,
//! in docker-py's order (`ContainerCollection.run`, `_create_container_args`).

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, EndpointSettings, HostConfig, NetworkingConfig};

use super::error::ArgError;
use super::given::{Given, host};
use super::keywords::{self, Take};
use crate::task::{Arg, ArgMap, Resources};

/// What the options of a task ask of its container, in the engine's words.
///
/// Image, command, entrypoint and volumes are arguments of `docker_run` itself and are not set here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerOptions {
    /// The engine's request so far; its `host_config` is always set.
    pub body: ContainerCreateBody,
    /// The name that the task wishes for. The worker names containers itself; this becomes a label.
    pub name: Option<String>,
    /// `os[/arch[/variant]]` to pull and to create for.
    pub platform: Option<String>,
    /// For the endpoint on the container's first network; see [`ContainerOptions::into_body`].
    mac_address: Option<String>,
}

/// Options while they are being read: what several keywords decide together waits here.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) out: ContainerOptions,
    pub(super) network: Option<String>,
    pub(super) endpoints: Option<HashMap<String, EndpointSettings>>,
}

impl Draft {
    pub(super) fn host(&mut self) -> &mut HostConfig {
        host(&mut self.out.body)
    }
    pub(super) fn set_mac_address(&mut self, address: String) {
        self.out.mac_address = Some(address);
    }
}

impl ContainerOptions {
    /// Reads `options`, whose transforms the pipeline has already replaced by texts.
    pub fn read(options: &ArgMap) -> Result<Self, ArgError> {
        let mut draft = Draft::default();
        draft.host();
        for (name, value) in options {
            let given = Given::new(format!("args.options.{name}"), value);
            let keyword = keywords::find(name).ok_or_else(|| ArgError::UnknownKeyword {
                path: given.path.clone(),
                nearest: keywords::nearest_to(name),
            })?;
            take(&keyword.take, &mut draft, &given)?;
        }
        join(draft)
    }

    /// Fills what the options leave open from what the task declared to the scheduler.
    pub fn fill(&mut self, resources: &Resources) {
        let host = host(&mut self.body);
        // The engine refuses NanoCPUs beside a period or quota.
        let cpu_asked =
            [host.nano_cpus, host.cpu_quota, host.cpu_period, host.cpu_count].iter().any(Option::is_some);
        if let Some(cpus) = resources.cpus.filter(|cpus| *cpus > 0.0 && !cpu_asked) {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "saturates: more processors than any host has"
            )]
            let nano = (cpus * 1e9).round() as i64;
            host.nano_cpus = Some(nano.max(1));
        }
        if let Some(memory) = resources.memory.filter(|size| size.bytes() > 0 && host.memory.is_none()) {
            host.memory = Some(i64::try_from(memory.bytes()).unwrap_or(i64::MAX));
        }
        if self.platform.is_none() {
            self.platform.clone_from(&resources.platform);
        }
    }

    /// The network that the options name, if they name one.
    pub fn network(&self) -> Option<&str> {
        self.body.host_config.as_ref()?.network_mode.as_deref()
    }

    /// The finished body; `default_network` is joined when the options name none.
    ///
    /// A MAC address goes to the endpoint, where engines look for it since API 1.44; older ones ignore it there and
    /// have no other place that still exists today.
    pub fn into_body(mut self, default_network: Option<&str>) -> ContainerCreateBody {
        let host = host(&mut self.body);
        if host.network_mode.is_none() {
            host.network_mode = default_network.map(str::to_owned);
        }
        if let Some(address) = self.mac_address {
            let network = host.network_mode.get_or_insert_with(|| "bridge".to_owned()).clone();
            self.body
                .networking_config
                .get_or_insert_default()
                .endpoints_config
                .get_or_insert_default()
                .entry(network)
                .or_default()
                .mac_address
                .get_or_insert(address);
        }
        self.body
    }
}

/// Reads one keyword's value. Null means "not given" everywhere in docker-py.
fn take(take: &Take, draft: &mut Draft, given: &Given<'_>) -> Result<(), ArgError> {
    let refuse = |reason: String| Err(ArgError::Refused { path: given.path.clone(), reason });
    match take {
        Take::Argument(argument) => {
            return refuse(format!("it is an argument of docker_run itself, write args.{argument}"));
        }
        Take::Ignored => return Ok(()),
        _ if given.is_null() => return Ok(()),
        Take::Refused(reason) => return refuse((*reason).to_owned()),
        Take::Flag(set) => set(draft, given.flag()?),
        Take::Integer(range, set) => {
            // docker-py leaves a zero out: it means the engine's default.
            let number = if let Ok(0) = given.integer(&(0..=0)) { 0 } else { given.integer(range)? };
            if number != 0 {
                set(draft, number);
            }
        }
        Take::Size(least, set) => {
            let bytes = given.size(*least)?;
            if bytes != 0 {
                set(draft, bytes);
            }
        }
        Take::Text(set) => {
            let text = given.text()?;
            if !text.is_empty() {
                set(draft, text);
            }
        }
        Take::Choice(choices, set) => {
            if given.arg != &Arg::Text(String::new()) {
                set(draft, given.choice(choices)?);
            }
        }
        Take::Texts(set) => set(draft, given.texts()?),
        Take::TextMap(set) => set(draft, given.text_map()?),
        Take::Shaped(_, read) => read(draft, given)?,
    }
    Ok(())
}

/// What docker-py checks across keywords once all are read.
fn join(draft: Draft) -> Result<ContainerOptions, ArgError> {
    let Draft { mut out, network, endpoints } = draft;
    let refuse = |path: &str, reason: &str| {
        Err(ArgError::Refused { path: format!("args.options.{path}"), reason: reason.to_owned() })
    };
    match network {
        Some(_) if out.network().is_some() => {
            return refuse("network", "it says the same as network_mode, give only one of them");
        }
        Some(network) => {
            // docker-py drops endpoints when they do not name the network that is joined.
            if let Some(endpoints) = endpoints.filter(|map| map.contains_key(&network)) {
                out.body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoints) });
            }
            host(&mut out.body).network_mode = Some(network);
        }
        None if endpoints.is_some() => {
            return refuse("networking_config", "it needs network, which names the network to join");
        }
        None => {}
    }
    let host = host(&mut out.body);
    let ports = host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    if ports && host.network_mode.as_deref() == Some("host") {
        return refuse(
            "ports",
            "a container on the host's network has no ports of its own, leave one of them out",
        );
    }
    Ok(out)
}

/// Whether two keywords decide the same thing, so that one given by the task sets aside the other one's default.
pub(super) fn same_matter(a: &str, b: &str) -> bool {
    const MATTERS: &[&[&str]] = &[&["network", "network_mode"], &["nano_cpus", "cpu_quota", "cpu_period"]];
    a == b || MATTERS.iter().any(|matter| matter.contains(&a) && matter.contains(&b))
}
