//! One snapshot per setting: what a person reads when it refuses something.

use bollard::models::{
    DeviceMapping, DeviceRequest, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions, MountVolumeOptionsDriverConfig,
};

use super::*;

/// The settings that a denial below names.
const JUDGED: &[&str] = &[
    "images.allowed",
    "images.pull_policies",
    "images.require_digest",
    "binds.roots",
    "binds.denied",
    "binds.protect_worker",
    "privileged",
    "devices",
    "cap_add",
    "security_opt",
    "cgroup_parent",
    "namespaces.host",
    "namespaces.container",
    "network_modes",
    "ports",
    "runtimes",
    "gpus",
    "user",
    "group_add",
    "named_volumes",
    "volume_drivers",
    "volumes_from",
    "log_drivers",
    "fields",
    "memory_max",
    "cpus_max",
    "pids_max",
    "task_timeout",
    "http.allowed_hosts",
    "http.denied_networks",
    "girder.allow_insecure_tls",
    "capabilities",
    "no_new_privileges",
];

/// The settings that give something rather than judge, and those that another room applies.
const NOT_JUDGED: &[&str] = &[
    "memory_default",
    "pids_default",
    "log_max",
    "progress_line_max",
    "volume_max",
    "pull_timeout",
    "http.redirects",
    "upload_links",
    "download.max_files",
    "download.max_bytes",
];

#[test]
fn every_setting_is_judged_below_or_applied_elsewhere() {
    fn keys(value: &Value, prefix: &str, out: &mut Vec<String>) {
        for (key, value) in value.as_object().unwrap() {
            match value {
                Value::Object(_) => keys(value, &format!("{prefix}{key}."), out),
                _ => out.push(format!("{prefix}{key}")),
            }
        }
    }
    let mut all = Vec::new();
    keys(&serde_json::to_value(Profile::Standard.rules()).unwrap(), "", &mut all);
    all.sort();
    let mut known: Vec<&str> = JUDGED.iter().chain(NOT_JUDGED).copied().collect();
    known.sort_unstable();
    assert_eq!(all, known);
    let source = include_str!("denials.rs");
    for key in JUDGED {
        assert!(source.contains(&format!("=> {key:?}")), "no denial names {key}");
    }
}

/// A denial: its setting, the worker's settings, what a task asks, what a person reads.
macro_rules! denial {
    ($name:ident => $key:literal, $settings:tt, $ask:expr) => {
        #[test]
        fn $name() {
            let told = denials(json!($settings), $ask);
            assert!(told.contains(&format!("this worker sets policy.{}=", $key)), "{told}");
            insta::assert_snapshot!(told);
        }
    };
}

#[expect(clippy::unnecessary_wraps, reason = "the model's fields are optional")]
fn list(items: &[&str]) -> Option<Vec<String>> {
    Some(items.iter().map(|item| (*item).to_owned()).collect())
}

denial!(an_image_that_no_pattern_allows => "images.allowed", { "images": { "allowed": ["busybox", "girder/*"] } },
    |asked| asked.image = "ok.evil/busybox".to_owned());
denial!(a_pull_that_is_not_listed => "images.pull_policies", { "images": { "pull_policies": ["missing", "never"] } },
    |asked| asked.pull = Pull::Always);
denial!(an_image_without_its_digest => "images.require_digest", { "images": { "require_digest": true } }, |_| {});
denial!(a_bind_outside_of_the_roots => "binds.roots", { "binds": { "roots": ["/data", "/archive:ro"] } },
    |asked| asked.host().binds = list(&["/archive/x:/x", "/archive/x:/y:ro", "/home:/home:ro"]));
denial!(a_bind_of_the_system => "binds.denied", {}, |asked| asked.host().binds = list(&["/etc/../etc/ssl:/x:ro"]));
denial!(a_bind_of_the_workers_own_state => "binds.protect_worker", {},
    |asked| asked.host().binds = list(&["/var/lib/longshore/queue.db:/x", "/srv/docker.sock:/y"]));
denial!(a_privileged_container => "privileged", {}, |asked| asked.host().privileged = Some(true));
denial!(a_device => "devices", { "devices": ["/dev/fuse"] }, |asked| {
    let device = |path: &str| DeviceMapping { path_on_host: Some(path.to_owned()), ..DeviceMapping::default() };
    asked.host().devices = Some(vec![device("/dev/fuse"), device("/dev/sda")]);
});
denial!(a_device_by_its_numbers => "devices", { "devices": ["/dev/fuse"] },
    |asked| asked.host().device_cgroup_rules = list(&["b 8:* rwm"]));
denial!(a_device_request_for_other_than_gpus => "devices", {}, |asked| {
    asked.host().device_requests = Some(vec![DeviceRequest {
        driver: Some("cdi".to_owned()),
        device_ids: list(&["vendor.example/disk=all"]),
        ..DeviceRequest::default()
    }]);
});
denial!(a_capability => "cap_add", { "cap_add": ["SYS_PTRACE"] },
    |asked| asked.host().cap_add = list(&["cap_sys_ptrace", "SYS_ADMIN", "ALL"]));
/// Nothing was applied: the final request is what counts, whoever built it.
#[test]
fn capabilities_that_were_not_dropped() {
    // => "capabilities"
    let policy = policy(json!({ "capabilities": "none" }));
    let refusal = policy.judge(&Asked::default().request()).into_result().unwrap_err();
    insta::assert_snapshot!(refusal.to_string());
}
denial!(a_security_option => "security_opt", {},
    |asked| asked.host().security_opt = list(&["no-new-privileges", "seccomp:unconfined", "no-new-privileges=false"]));
denial!(a_container_that_may_gain_privileges => "no_new_privileges", { "no_new_privileges": true, "security_opt": ["*"] },
    |asked| asked.host().security_opt = list(&["no-new-privileges=true", "no-new-privileges=false"]));
denial!(a_parent_of_control_groups => "cgroup_parent", {}, |asked| asked.host().cgroup_parent = Some("/".to_owned()));
denial!(the_hosts_namespaces => "namespaces.host", { "namespaces": { "host": ["ipc"] } }, |asked| {
    let host = asked.host();
    for mode in [&mut host.pid_mode, &mut host.ipc_mode, &mut host.uts_mode, &mut host.userns_mode, &mut host.network_mode] {
        *mode = Some("host".to_owned());
    }
    host.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::HOST);
});
denial!(another_containers_namespaces => "namespaces.container", {}, |asked| {
    let host = asked.host();
    for mode in [&mut host.pid_mode, &mut host.ipc_mode, &mut host.network_mode, &mut host.cgroup] {
        *mode = Some("container:worker".to_owned());
    }
});
denial!(a_network => "network_modes", { "network_modes": ["bridge", "none"] },
    |asked| asked.host().network_mode = Some("internal".to_owned()));
denial!(a_published_port => "ports", { "ports": false }, |asked| {
    asked.host().port_bindings = Some([("80/tcp".to_owned(), None)].into());
});
denial!(a_runtime => "runtimes", {}, |asked| asked.host().runtime = Some("kata".to_owned()));
denial!(a_gpu => "gpus", { "gpus": false }, |asked| asked.gpus = 2);
denial!(another_user => "user", { "user": "65534:65534" }, |asked| asked.body.user = Some("root".to_owned()));
denial!(a_group => "group_add", { "group_add": [] }, |asked| asked.host().group_add = list(&["docker"]));
denial!(a_named_volume => "named_volumes", { "named_volumes": ["cache-*"] },
    |asked| asked.host().binds = list(&["cache-a:/a", "database:/b"]));
denial!(a_volume_driver_that_mounts_any_path => "volume_drivers", {}, |asked| {
    let options = [("type", "none"), ("o", "bind"), ("device", "/etc")];
    asked.host().mounts = Some(vec![Mount {
        typ: Some(MountType::VOLUME),
        target: Some("/x".to_owned()),
        volume_options: Some(MountVolumeOptions {
            driver_config: Some(MountVolumeOptionsDriverConfig {
                name: Some("local".to_owned()),
                options: Some(options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            }),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }]);
});
denial!(the_volumes_of_another_container => "volumes_from", {}, |asked| asked.host().volumes_from = list(&["database:ro"]));
denial!(a_log_driver => "log_drivers", {}, |asked| {
    asked.host().log_config = Some(HostConfigLogConfig { typ: Some("syslog".to_owned()), config: None });
});
denial!(a_field_that_no_rule_speaks_for => "fields", { "fields": ["OomKillDisable"] }, |asked| {
    asked.host().oom_kill_disable = Some(true);
    asked.host().masked_paths = list(&["/proc/kcore"]);
    asked.host().oom_score_adj = Some(-1000);
});
denial!(more_memory_than_the_machine_has => "memory_max", {}, |asked| asked.host().memory = Some(32 << 30));
denial!(more_memory_than_is_allowed => "memory_max", { "memory_max": "4GiB" }, |asked| asked.host().memory = Some(8 << 30));
denial!(swap_without_end => "memory_max", { "memory_max": "4GiB" }, |asked| asked.host().memory_swap = Some(-1));
denial!(more_processors_than_are_allowed => "cpus_max", { "cpus_max": 2 }, |asked| asked.host().cpu_quota = Some(250_000));
denial!(more_processors_than_the_machine_has => "cpus_max", {}, |asked| asked.host().nano_cpus = Some(9_000_000_000));
denial!(processes_without_end => "pids_max", { "pids_max": 256 }, |asked| asked.host().pids_limit = Some(-1));
denial!(more_time_than_is_allowed => "task_timeout", { "task_timeout": "24h" },
    |asked| asked.timeout = Some(Span::seconds(90_000)));
denial!(a_stream_to_a_host_that_is_not_listed => "http.allowed_hosts", { "http": { "allowed_hosts": ["*.example.org"] } }, |asked| {
    asked.girder = Some("https://girder.test/api/v1".to_owned());
    asked.streams = vec![
        "https://girder.test/x".to_owned(),
        "http://a.example.org:8080/x".to_owned(),
        "http://example.org.evil.test/".to_owned(),
        "http://a.example.org@evil.test/".to_owned(),
    ];
});
denial!(a_girder_whose_certificate_is_not_checked => "girder.allow_insecure_tls", {},
    |asked| asked.insecure_girder = true);
denial!(a_stream_to_the_clouds_own_address => "http.denied_networks", {},
    |asked| asked.streams = vec!["http://169.254.169.254/latest/meta-data".to_owned()]);
