//! Which namespaces a container may share, and which networks it may join.

use bollard::models::{HostConfig, HostConfigCgroupnsModeEnum as Cgroupns};

use super::Judging;
use super::denied::quoted;
use super::terms::Namespace;

/// With whom a mode shares a namespace.
enum Sharing<'a> {
    Own,
    Host,
    Container,
    Named(&'a str),
}

/// Judges the namespaces and networks of a container.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let Some(host) = judging.host else { return };
    for (namespace, keyword, mode) in modes(host) {
        // What is neither one's own nor another container's is the host's or leads there, as Podman's `ns:` paths do.
        match sharing(namespace, mode) {
            Sharing::Own => {}
            Sharing::Named(network) => judge_network(judging, network),
            Sharing::Host => share(judging, namespace, "namespaces.host", keyword, mode),
            Sharing::Container => share(judging, namespace, "namespaces.container", keyword, mode),
        }
    }
    let endpoints = judging.networking.and_then(|config| config.endpoints_config.as_ref());
    let own = host.network_mode.as_deref().unwrap_or_default();
    let mut others: Vec<&str> = endpoints
        .into_iter()
        .flat_map(|map| map.keys())
        .map(String::as_str)
        .filter(|name| *name != own)
        .collect();
    others.sort_unstable();
    for network in others {
        judge_network(judging, network);
    }
}

fn modes(host: &HostConfig) -> [(Namespace, &'static str, &str); 7] {
    let cgroupns = match host.cgroupns_mode {
        Some(Cgroupns::HOST) => "host",
        Some(Cgroupns::EMPTY | Cgroupns::PRIVATE) | None => "",
    };
    [
        (Namespace::Pid, "pid_mode", host.pid_mode.as_deref()),
        (Namespace::Ipc, "ipc_mode", host.ipc_mode.as_deref()),
        (Namespace::Uts, "uts_mode", host.uts_mode.as_deref()),
        (Namespace::Userns, "userns_mode", host.userns_mode.as_deref()),
        (Namespace::Cgroup, "cgroupns", Some(cgroupns)),
        (Namespace::Cgroup, "cgroup", host.cgroup.as_deref()),
        (Namespace::Network, "network_mode", host.network_mode.as_deref()),
    ]
    .map(|(namespace, keyword, mode)| (namespace, keyword, mode.unwrap_or_default()))
}

fn sharing(namespace: Namespace, mode: &str) -> Sharing<'_> {
    if mode.starts_with("container:") {
        return Sharing::Container;
    }
    match namespace {
        Namespace::Network => match mode {
            "" | "default" => Sharing::Named("bridge"),
            "host" => Sharing::Host,
            path if path.starts_with("ns:") => Sharing::Host,
            name => Sharing::Named(name),
        },
        Namespace::Ipc if matches!(mode, "" | "none" | "private" | "shareable") => Sharing::Own,
        _ if matches!(mode, "" | "private") => Sharing::Own,
        _ => Sharing::Host,
    }
}

fn share(judging: &mut Judging<'_>, namespace: Namespace, key: &'static str, keyword: &str, mode: &str) {
    let rules = &judging.rules().namespaces;
    let allowed = if key == "namespaces.host" { &rules.host } else { &rules.container };
    if !allowed.contains(&namespace) {
        judging.deny(key, format!("{keyword}={}", quoted(mode)));
    }
}

fn judge_network(judging: &mut Judging<'_>, network: &str) {
    let own = judging.request.worker_network == Some(network);
    if !own && !judging.rules().network_modes.matches(network) {
        judging.deny("network_modes", format!("network {}", quoted(network)));
    }
}
