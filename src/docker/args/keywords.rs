//! Every keyword of docker-py 7's `containers.run` and `containers.create`, one row each.
//!
//! The rows say what a value must be and where it goes in the engine's request; `shapes` reads the values that are
//! more than a number or text.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use bollard::models::{HostConfigCgroupnsModeEnum as Cgroupns, HostConfigIsolationEnum as Isolation};

use super::error::ArgError;
use super::given::Given;
use super::options::Draft;
use super::shapes;
use crate::task::transform::nearest;

/// One keyword.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) take: Take,
}

/// What a keyword's value must be, and where it goes.
pub(super) enum Take {
    /// True or false.
    Flag(fn(&mut Draft, bool)),
    /// An integer within bounds; zero is the engine's default.
    Integer(RangeInclusive<i64>, fn(&mut Draft, i64)),
    /// Bytes, at least so many; zero is the engine's default.
    Size(i64, fn(&mut Draft, i64)),
    /// A text; an empty one is the engine's default.
    Text(fn(&mut Draft, String)),
    /// One of these texts.
    Choice(&'static [&'static str], fn(&mut Draft, String)),
    /// A list of texts.
    Texts(fn(&mut Draft, Vec<String>)),
    /// A map of plain values.
    TextMap(fn(&mut Draft, HashMap<String, String>)),
    /// A shape of its own, named for the reader of the table.
    Shaped(&'static str, fn(&mut Draft, &Given<'_>) -> Result<(), ArgError>),
    /// Accepted and without effect: the worker attaches, waits and removes by itself, as `girder_worker` does.
    Ignored,
    /// An argument of `docker_run`, which this is its name.
    Argument(&'static str),
    /// Known, and not to be had.
    Refused(&'static str),
}

impl Take {
    /// What is taken, in a few words.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Flag(_) => "true or false",
            Self::Integer(..) => "an integer",
            Self::Size(..) => "bytes or a size such as 512m",
            Self::Text(_) => "a text",
            Self::Choice(..) => "one of a few texts",
            Self::Texts(_) => "a list of texts",
            Self::TextMap(_) => "a map of texts",
            Self::Shaped(what, _) => what,
            Self::Ignored => "ignored",
            Self::Argument(_) => "an argument of docker_run itself",
            Self::Refused(_) => "refused",
        }
    }
}

/// The row of `name`.
pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The most similar keyword to `name`.
pub(super) fn nearest_to(name: &str) -> Option<String> {
    nearest(name, KEYWORDS.iter().map(|keyword| keyword.name))
}

const fn row(name: &'static str, take: Take) -> Keyword {
    Keyword { name, take }
}

const COUNT: RangeInclusive<i64> = 0..=i64::MAX;
const GONE: &str = "the engine has dropped this setting, leave it out";

/// All keywords, in alphabetical order.
pub(super) static KEYWORDS: &[Keyword] = &[
    row("auto_remove", Take::Ignored),
    row("blkio_weight", Take::Integer(10..=1000, |d, n| d.host().blkio_weight = u16::try_from(n).ok())),
    row("blkio_weight_device", Take::Shaped("devices with weights", shapes::weights)),
    row("cap_add", Take::Texts(|d, list| d.host().cap_add = Some(list))),
    row("cap_drop", Take::Texts(|d, list| d.host().cap_drop = Some(list))),
    row("cgroup_parent", Take::Text(|d, text| d.host().cgroup_parent = Some(text))),
    row(
        "cgroupns",
        Take::Choice(&["private", "host"], |d, text| {
            d.host().cgroupns_mode = Some(if text == "host" { Cgroupns::HOST } else { Cgroupns::PRIVATE });
        }),
    ),
    row("command", Take::Argument("container_args")),
    row("cpu_count", Take::Integer(COUNT, |d, n| d.host().cpu_count = Some(n))),
    row("cpu_percent", Take::Integer(0..=100, |d, n| d.host().cpu_percent = Some(n))),
    row("cpu_period", Take::Integer(COUNT, |d, n| d.host().cpu_period = Some(n))),
    row("cpu_quota", Take::Integer(-1..=i64::MAX, |d, n| d.host().cpu_quota = Some(n))),
    row("cpu_rt_period", Take::Integer(COUNT, |d, n| d.host().cpu_realtime_period = Some(n))),
    row("cpu_rt_runtime", Take::Integer(COUNT, |d, n| d.host().cpu_realtime_runtime = Some(n))),
    row("cpu_shares", Take::Integer(COUNT, |d, n| d.host().cpu_shares = Some(n))),
    row("cpuset_cpus", Take::Text(|d, text| d.host().cpuset_cpus = Some(text))),
    row("cpuset_mems", Take::Text(|d, text| d.host().cpuset_mems = Some(text))),
    row("detach", Take::Ignored),
    row("device_cgroup_rules", Take::Texts(|d, list| d.host().device_cgroup_rules = Some(list))),
    row("device_read_bps", Take::Shaped("devices with rates", shapes::read_bps)),
    row("device_read_iops", Take::Shaped("devices with rates", shapes::read_iops)),
    row("device_requests", Take::Shaped("device requests", shapes::device_requests)),
    row("device_write_bps", Take::Shaped("devices with rates", shapes::write_bps)),
    row("device_write_iops", Take::Shaped("devices with rates", shapes::write_iops)),
    row("devices", Take::Shaped("devices", shapes::devices)),
    row("dns", Take::Texts(|d, list| d.host().dns = Some(list))),
    row("dns_opt", Take::Texts(|d, list| d.host().dns_options = Some(list))),
    row("dns_search", Take::Texts(|d, list| d.host().dns_search = Some(list))),
    row("domainname", Take::Text(|d, text| d.out.body.domainname = Some(text))),
    row("entrypoint", Take::Argument("entrypoint")),
    row("environment", Take::Shaped("a map or a list of NAME=value", shapes::environment)),
    row("extra_hosts", Take::Shaped("a map of names and addresses", shapes::extra_hosts)),
    row("group_add", Take::Shaped("groups", shapes::group_add)),
    row("healthcheck", Take::Shaped("a health check", shapes::healthcheck)),
    row("hostname", Take::Text(|d, text| d.out.body.hostname = Some(text))),
    row("image", Take::Argument("image")),
    row("init", Take::Flag(|d, truth| d.host().init = Some(truth))),
    row("init_path", Take::Refused(GONE)),
    row(
        "ipc_mode",
        Take::Choice(&["none", "private", "shareable", "host", "container:"], |d, text| {
            d.host().ipc_mode = Some(text);
        }),
    ),
    row(
        "isolation",
        Take::Choice(&["default", "process", "hyperv"], |d, text| {
            d.host().isolation = Some(match text.as_str() {
                "process" => Isolation::PROCESS,
                "hyperv" => Isolation::HYPERV,
                _ => Isolation::DEFAULT,
            });
        }),
    ),
    row("kernel_memory", Take::Refused("the engine has dropped this setting, use mem_limit")),
    row("labels", Take::Shaped("a map or a list of names", shapes::labels)),
    row("links", Take::Shaped("a map of containers and aliases", shapes::links)),
    row("log_config", Take::Shaped("a log driver", shapes::log_config)),
    row("lxc_conf", Take::Refused(GONE)),
    row("mac_address", Take::Text(Draft::set_mac_address)),
    row("mem_limit", Take::Size(0, |d, n| d.host().memory = Some(n))),
    row("mem_reservation", Take::Size(0, |d, n| d.host().memory_reservation = Some(n))),
    row("mem_swappiness", Take::Shaped("0 to 100", shapes::mem_swappiness)),
    row("memswap_limit", Take::Size(-1, |d, n| d.host().memory_swap = Some(n))),
    row("mounts", Take::Shaped("mounts", shapes::mounts)),
    row("name", Take::Text(|d, text| d.out.name = Some(text))),
    row("nano_cpus", Take::Integer(COUNT, |d, n| d.host().nano_cpus = Some(n))),
    row("network", Take::Text(|d, text| d.network = Some(text))),
    row("network_disabled", Take::Flag(|d, truth| d.out.body.network_disabled = Some(truth))),
    row("network_mode", Take::Text(|d, text| d.host().network_mode = Some(text))),
    row("networking_config", Take::Shaped("networks with their endpoints", shapes::networking_config)),
    row("oom_kill_disable", Take::Flag(|d, truth| d.host().oom_kill_disable = Some(truth))),
    row("oom_score_adj", Take::Integer(-1000..=1000, |d, n| d.host().oom_score_adj = Some(n))),
    row("pid_mode", Take::Choice(&["host", "container:"], |d, text| d.host().pid_mode = Some(text))),
    row("pids_limit", Take::Integer(-1..=i64::MAX, |d, n| d.host().pids_limit = Some(n))),
    row("platform", Take::Text(|d, text| d.out.platform = Some(text))),
    row("ports", Take::Shaped("a map of container ports and host ports", shapes::ports)),
    row("privileged", Take::Flag(|d, truth| d.host().privileged = Some(truth))),
    row("publish_all_ports", Take::Flag(|d, truth| d.host().publish_all_ports = Some(truth))),
    row("read_only", Take::Flag(|d, truth| d.host().readonly_rootfs = Some(truth))),
    row("remove", Take::Ignored),
    row("restart_policy", Take::Shaped("none", shapes::restart_policy)),
    row("runtime", Take::Text(|d, text| d.host().runtime = Some(text))),
    row("security_opt", Take::Texts(|d, list| d.host().security_opt = Some(list))),
    row("shm_size", Take::Size(0, |d, n| d.host().shm_size = Some(n))),
    row("stderr", Take::Ignored),
    row("stdin_open", Take::Ignored),
    row("stdout", Take::Ignored),
    row("stop_signal", Take::Shaped("a signal's name or number", shapes::stop_signal)),
    row("storage_opt", Take::TextMap(|d, map| d.host().storage_opt = Some(map))),
    row("stream", Take::Ignored),
    row("sysctls", Take::TextMap(|d, map| d.host().sysctls = Some(map))),
    row("tmpfs", Take::Shaped("a map of paths and options", shapes::tmpfs)),
    row("tty", Take::Ignored),
    row("ulimits", Take::Shaped("limits", shapes::ulimits)),
    row("use_config_proxy", Take::Ignored),
    row("user", Take::Shaped("a user's name or number", shapes::user)),
    row("userns_mode", Take::Choice(&["host"], |d, text| d.host().userns_mode = Some(text))),
    row("uts_mode", Take::Choice(&["host"], |d, text| d.host().uts_mode = Some(text))),
    row("version", Take::Ignored),
    row("volume_driver", Take::Text(|d, text| d.host().volume_driver = Some(text))),
    row("volumes", Take::Argument("volumes")),
    row("volumes_from", Take::Shaped("containers", shapes::volumes_from)),
    row("working_dir", Take::Text(|d, text| d.out.body.working_dir = Some(text))),
];
