//! A container that has no network but its loopback, made past the engine's network stack.
//!
//! # Decisions
//! - For `network_mode: none` an engine moves a sandbox of its own into each container by a hook that executes the whole
//!   engine once more, which takes about as long as everything else that a short container costs. Told `NetworkDisabled`
//!   it leaves the namespace to the OCI runtime, which makes an empty one with a loopback: the same isolation, 1.8 times
//!   the containers (Docker 20.10; `bench containers` shows it).
//! - What only a sandbox gets from the engine is the file `/etc/hosts`, by which programs know `localhost`. It is ours
//!   then, one for each container, since its root may write there. `/etc/resolv.conf` stays empty: nobody can be asked.
//! - Where a task says anything else of names, networks or runtimes, or mounts over that file, the engine's own way is kept.

use bollard::models::{ContainerCreateBody, HostConfig};

use crate::pipeline::WorkerFile;

/// Where programs look for the names of hosts.
const HOSTS: &str = "/etc/hosts";
/// What Docker writes there for a container without network.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    ff00::0\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// The file that a container of `body` needs to be made this way; none where it is not to be.
pub(super) fn hosts(body: &ContainerCreateBody) -> Option<WorkerFile> {
    let host = body.host_config.as_ref()?;
    let alone = host.network_mode.as_deref() == Some("none");
    (alone && says_no_more(body, host) && !covers_hosts(body, host)).then_some(WorkerFile {
        name: "hosts",
        target: HOSTS,
        content: LOCALHOST,
    })
}

/// Whether nothing is said that the engine's network stack would have to see to.
fn says_no_more(body: &ContainerCreateBody, host: &HostConfig) -> bool {
    fn none<T>(list: Option<&Vec<T>>) -> bool {
        list.is_none_or(Vec::is_empty)
    }
    body.network_disabled.is_none()
        && body.networking_config.is_none()
        && body.domainname.as_ref().is_none_or(String::is_empty)
        && none(body.exposed_ports.as_ref())
        && host.port_bindings.as_ref().is_none_or(std::collections::HashMap::is_empty)
        && host.publish_all_ports != Some(true)
        && host.runtime.as_ref().is_none_or(String::is_empty)
        && [&host.dns, &host.dns_options, &host.dns_search, &host.extra_hosts, &host.links]
            .into_iter()
            .all(|list| none(list.as_ref()))
}

/// Whether something of the task's own is mounted there.
fn covers_hosts(body: &ContainerCreateBody, host: &HostConfig) -> bool {
    let covers = |target: &str| matches!(target.trim_end_matches('/'), "" | "/etc" | HOSTS);
    let binds = host.binds.iter().flatten().flat_map(|bind| bind.split(':'));
    let mounts = host.mounts.iter().flatten().filter_map(|mount| mount.target.as_deref());
    let tmpfs = host.tmpfs.iter().flat_map(|map| map.keys()).map(String::as_str);
    let volumes = body.volumes.iter().flatten().map(String::as_str);
    binds.chain(mounts).chain(tmpfs).chain(volumes).any(covers)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn suits(body: Value) -> bool {
        hosts(&serde_json::from_value(body).unwrap()).is_some()
    }

    #[test]
    fn a_container_without_network_is_made_past_the_engines_stack() {
        assert!(suits(json!({"HostConfig": {"NetworkMode": "none"}})));
        let mounts = json!({"NetworkMode": "none", "Binds": ["/srv/etc:/data:ro"], "Dns": [], "Sysctls": {"net.core.somaxconn": "1"}});
        assert!(suits(json!({"Hostname": "h", "HostConfig": mounts})));
    }

    #[test]
    fn what_says_more_of_names_or_networks_is_left_to_the_engine() {
        for other in ["bridge", "host", "container:x", "mine", ""] {
            assert!(!suits(json!({"HostConfig": {"NetworkMode": other}})), "{other}");
        }
        assert!(!suits(json!({"HostConfig": {}})));
        for (key, value) in [
            ("Dns", json!(["9.9.9.9"])),
            ("ExtraHosts", json!(["a:127.0.0.2"])),
            ("Runtime", json!("runsc")),
            ("Binds", json!(["/srv/hosts:/etc/hosts:ro"])),
            ("Binds", json!(["/srv/etc:/etc/"])),
            ("Mounts", json!([{"Target": "/etc/hosts", "Source": "/h", "Type": "bind"}])),
            ("Tmpfs", json!({"/etc": ""})),
            ("PublishAllPorts", json!(true)),
        ] {
            let mut host = json!({"NetworkMode": "none"});
            host[key] = value;
            assert!(!suits(json!({"HostConfig": host})), "{key}");
        }
        for (key, value) in [("NetworkDisabled", json!(false)), ("Domainname", json!("d"))] {
            let mut body = json!({"HostConfig": {"NetworkMode": "none"}});
            body[key] = value;
            assert!(!suits(body), "{key}");
        }
    }
}
