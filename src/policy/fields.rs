//! Every field of the engine's request, and which rule speaks for it.
//!
//! The final request is walked as JSON, so that a field that this table does not know, because the engine's model grew,
//! is denied until `policy.fields` names it, rather than let through unseen.

use serde_json::{Map, Value};

use super::Judging;

/// Who judges a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    /// Nobody: it cannot reach beyond the container.
    Free,
    /// A rule of its own, by its key.
    Key(&'static str),
    /// `policy.fields`, which must name it.
    Named,
}

use Voice::{Free, Key, Named};

/// Fields of `HostConfig`.
pub(super) const HOST: &[(&str, Voice)] = &[
    ("Annotations", Named), // runtimes act on them
    ("AutoRemove", Named),  // the exit code would be lost
    ("Binds", Key("binds")),
    ("BlkioDeviceReadBps", Free),
    ("BlkioDeviceReadIOps", Free),
    ("BlkioDeviceWriteBps", Free),
    ("BlkioDeviceWriteIOps", Free),
    ("BlkioWeight", Free),
    ("BlkioWeightDevice", Free),
    ("CapAdd", Key("cap_add")),
    ("CapDrop", Free),
    ("Cgroup", Key("namespaces")),
    ("CgroupParent", Key("cgroup_parent")),
    ("CgroupnsMode", Key("namespaces")),
    ("ConsoleSize", Free),
    ("ContainerIDFile", Named),
    ("CpuCount", Free),
    ("CpuPercent", Free),
    ("CpuPeriod", Key("cpus_max")),
    ("CpuQuota", Key("cpus_max")),
    ("CpuRealtimePeriod", Named), // starves the host
    ("CpuRealtimeRuntime", Named),
    ("CpuShares", Free),
    ("CpusetCpus", Free),
    ("CpusetMems", Free),
    ("DeviceCgroupRules", Key("devices")),
    ("DeviceRequests", Key("gpus")),
    ("Devices", Key("devices")),
    ("Dns", Free),
    ("DnsOptions", Free),
    ("DnsSearch", Free),
    ("ExtraHosts", Free),
    ("GroupAdd", Key("group_add")),
    ("IOMaximumBandwidth", Free),
    ("IOMaximumIOps", Free),
    ("Init", Free),
    ("IpcMode", Key("namespaces")),
    ("Isolation", Free),
    ("Links", Named), // shows another container's environment
    ("LogConfig", Key("log_drivers")),
    ("MaskedPaths", Named),
    ("Memory", Key("memory_max")),
    ("MemoryReservation", Free),
    ("MemorySwap", Key("memory_max")),
    ("MemorySwappiness", Free),
    ("Mounts", Key("binds")),
    ("NanoCpus", Key("cpus_max")),
    ("NetworkMode", Key("network_modes")),
    ("OomKillDisable", Named), // hangs the host's memory
    ("OomScoreAdj", Free),     // a negative one is judged below
    ("PidMode", Key("namespaces")),
    ("PidsLimit", Key("pids_max")),
    ("PortBindings", Key("ports")),
    ("Privileged", Key("privileged")),
    ("PublishAllPorts", Key("ports")),
    ("ReadonlyPaths", Named),
    ("ReadonlyRootfs", Free),
    ("RestartPolicy", Named), // the worker decides when a task runs again
    ("Runtime", Key("runtimes")),
    ("SecurityOpt", Key("security_opt")),
    ("ShmSize", Free), // counts as the container's memory
    ("StorageOpt", Free),
    ("Sysctls", Free), // the engine takes those of the container's own namespaces only
    ("Tmpfs", Free),   // counts as the container's memory
    ("UTSMode", Key("namespaces")),
    ("Ulimits", Free),
    ("UsernsMode", Key("namespaces")),
    ("VolumeDriver", Key("volume_drivers")),
    ("VolumesFrom", Key("volumes_from")),
];

/// Fields beside `HostConfig`.
pub(super) const BODY: &[(&str, Voice)] = &[
    ("ArgsEscaped", Free),
    ("AttachStderr", Free),
    ("AttachStdin", Free),
    ("AttachStdout", Free),
    ("Cmd", Free),
    ("Domainname", Free),
    ("Entrypoint", Free),
    ("Env", Free),
    ("ExposedPorts", Free),
    ("Healthcheck", Free),
    ("HostConfig", Key("fields")),
    ("Hostname", Free),
    ("Image", Key("images")),
    ("Labels", Free),
    ("NetworkDisabled", Free),
    ("NetworkingConfig", Key("network_modes")),
    ("OnBuild", Free),
    ("OpenStdin", Free),
    ("Shell", Free),
    ("StdinOnce", Free),
    ("StopSignal", Free),
    ("StopTimeout", Free),
    ("Tty", Free),
    ("User", Key("user")),
    ("Volumes", Free),
    ("WorkingDir", Free),
];

/// Judges the fields that no other rule speaks for. `body` is the request as it would be sent.
pub(super) fn judge(judging: &mut Judging<'_>, body: &Value) {
    let empty = Map::new();
    let body = body.as_object().unwrap_or(&empty);
    let host = body.get("HostConfig").and_then(Value::as_object).unwrap_or(&empty);
    for (prefix, fields, table) in [("", body, BODY), ("HostConfig.", host, HOST)] {
        for (name, value) in fields.iter().filter(|(name, value)| is_set(name, value)) {
            let voice = table.iter().find(|(known, _)| known == name).map_or(Named, |(_, voice)| *voice);
            let negative = name == "OomScoreAdj" && value.as_i64().is_some_and(|n| n < 0);
            if (voice == Named || negative) && !judging.rules().fields.matches(name) {
                judging.deny("fields", format!("{prefix}{name}"));
            }
        }
    }
}

/// Whether a value says anything: the engine reads these as "not given".
fn is_set(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) if name == "RestartPolicy" => {
            !matches!(map.get("Name").and_then(Value::as_str), None | Some("" | "no"))
        }
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    }
}
