//! What holds for every request that the default rules grant, stated without the code that grants it.

use std::sync::LazyLock;

use bollard::models::{DeviceMapping, Mount, MountType};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

static STANDARD: LazyLock<Policy> = LazyLock::new(|| policy(json!({})));
static STRICT: LazyLock<Policy> =
    LazyLock::new(|| policy(json!({ "profile": "strict", "images": { "allowed": ["*"] } })));

/// Many requests must be harmless but for one thing, or a gap in one rule hides behind the denials of others.
const RARE: f64 = 0.1;
const OFTEN: f64 = 0.3;

fn words(pool: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<String>>> {
    weighted(RARE, vec(select(pool).prop_map(str::to_owned), 0..3))
}

fn word(pool: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    weighted(OFTEN, select(pool).prop_map(str::to_owned))
}

const MODES: &[&str] =
    &["", "host", "private", "container:x", "shareable", "none", "bridge", "lab", "ns:/proc/1/ns/net"];
const SOURCES: &[&str] = &[
    "/data",
    "/data/x",
    "/",
    "/etc",
    "/etc/ssl",
    "/var",
    "/var/run/docker.sock",
    "/run",
    "/home/u",
    "/data/../etc",
    "/proc/self/root",
    "/var/lib/longshore",
    "cache",
];

prop_compose! {
    fn host()(
        privileged in weighted(RARE, any::<bool>()),
        cap_add in words(&["SYS_ADMIN", "cap_net_raw", "ALL"]),
        pid_mode in word(MODES),
        ipc_mode in word(MODES),
        uts_mode in word(MODES),
        userns_mode in word(MODES),
        network_mode in word(MODES),
        sources in vec(select(SOURCES), 0..3),
        mounted in of(select(SOURCES)),
        device in weighted(RARE, select(&["/dev/null", "/dev/sda"][..])),
        masked_paths in words(&["/proc/kcore"]),
        volumes_from in words(&["x"]),
    ) -> HostConfig {
        HostConfig {
            privileged,
            cap_add,
            pid_mode,
            ipc_mode,
            uts_mode,
            userns_mode,
            network_mode,
            binds: Some(sources.iter().map(|source| format!("{source}:/x:ro")).collect()),
            mounts: mounted.map(|source| vec![Mount {
                typ: Some(MountType::BIND),
                source: Some(source.to_owned()),
                ..Mount::default()
            }]),
            devices: device.map(|path| vec![DeviceMapping { path_on_host: Some(path.to_owned()), ..DeviceMapping::default() }]),
            masked_paths,
            volumes_from,
            ..HostConfig::default()
        }
    }
}

fn harmless_source(source: &str) -> bool {
    ["/data", "/data/x", "/home/u", "cache"].contains(&source)
}

/// The law itself.
fn harmless(host: &HostConfig) -> bool {
    let none = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    let own = |mode: &Option<String>, also: &[&str]| {
        mode.as_deref().is_none_or(|mode| mode.is_empty() || mode == "private" || also.contains(&mode))
    };
    let network = host.network_mode.as_deref().unwrap_or_default();
    host.privileged != Some(true)
        && none(&host.cap_add)
        && none(&host.masked_paths)
        && none(&host.volumes_from)
        && host.devices.as_ref().is_none_or(Vec::is_empty)
        && own(&host.pid_mode, &[])
        && own(&host.ipc_mode, &["none", "shareable"])
        && own(&host.uts_mode, &[])
        && own(&host.userns_mode, &[])
        && network != "host"
        && !network.contains(':')
        && host.binds.iter().flatten().all(|bind| harmless_source(bind.split(':').next().unwrap()))
        && host.mounts.iter().flatten().all(|mount| {
            let source = mount.source.as_deref().unwrap_or_default();
            source != "cache" && harmless_source(source)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_default_grants_what_is_harmless_and_nothing_else(host in host()) {
        let policy = &*STANDARD;
        let mut asked = Asked::default();
        asked.body.host_config = Some(host.clone());
        policy.apply(&asked.queue, &mut asked.body);
        let verdict = policy.judge(&asked.request());
        prop_assert_eq!(verdict.denied.is_empty(), harmless(&host), "{:?}", verdict.denied);
    }

    /// What is applied never makes a request larger than what was judged without it.
    #[test]
    fn what_strict_rules_grant_is_bounded(host in host(), memory in of(0..1_i64 << 40), nano in of(0..1_i64 << 40), pids in of(-1..9_999_i64)) {
        let policy = &*STRICT;
        let mut asked = Asked::default();
        asked.body.host_config = Some(HostConfig { memory, nano_cpus: nano, pids_limit: pids, ..host });
        policy.apply(&asked.queue, &mut asked.body);
        if policy.judge(&asked.request()).denied.is_empty() {
            let host = asked.body.host_config.unwrap();
            prop_assert!((1..=4 << 30).contains(&host.memory.unwrap_or(0)));
            prop_assert!((1..=4 << 30).contains(&host.memory_swap.unwrap_or(0)));
            prop_assert!((1..=2_000_000_000).contains(&host.nano_cpus.unwrap_or(0)));
            prop_assert!((1..=256).contains(&host.pids_limit.unwrap_or(0)));
            prop_assert_eq!(asked.body.user.as_deref(), Some("65534:65534"));
            prop_assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
            prop_assert!(host.binds.unwrap_or_default().is_empty());
        }
    }
}
