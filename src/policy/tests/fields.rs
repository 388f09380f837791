use std::collections::HashMap;

use bollard::models::*;

use super::super::fields::{BODY, HOST, Voice};
use super::*;

#[expect(clippy::unnecessary_wraps, reason = "the model's fields are optional")]
fn text() -> Option<String> {
    Some("x".to_owned())
}
#[expect(clippy::unnecessary_wraps, reason = "the model's fields are optional")]
fn texts() -> Option<Vec<String>> {
    Some(vec!["x".to_owned()])
}
#[expect(clippy::unnecessary_wraps, reason = "the model's fields are optional")]
fn map() -> Option<HashMap<String, String>> {
    Some([("x".to_owned(), "y".to_owned())].into())
}

/// Every field, without a rest: a field that the model gains does not compile until it stands here.
fn every_host_field() -> HostConfig {
    HostConfig {
        cpu_shares: Some(1),
        memory: Some(1),
        cgroup_parent: text(),
        blkio_weight: Some(1),
        blkio_weight_device: Some(vec![ResourcesBlkioWeightDevice::default()]),
        blkio_device_read_bps: Some(vec![ThrottleDevice::default()]),
        blkio_device_write_bps: Some(vec![ThrottleDevice::default()]),
        blkio_device_read_iops: Some(vec![ThrottleDevice::default()]),
        blkio_device_write_iops: Some(vec![ThrottleDevice::default()]),
        cpu_period: Some(1),
        cpu_quota: Some(1),
        cpu_realtime_period: Some(1),
        cpu_realtime_runtime: Some(1),
        cpuset_cpus: text(),
        cpuset_mems: text(),
        devices: Some(vec![DeviceMapping::default()]),
        device_cgroup_rules: texts(),
        device_requests: Some(vec![DeviceRequest::default()]),
        memory_reservation: Some(1),
        memory_swap: Some(1),
        memory_swappiness: Some(1),
        nano_cpus: Some(1_000_000_000),
        oom_kill_disable: Some(true),
        init: Some(true),
        pids_limit: Some(1),
        ulimits: Some(vec![ResourcesUlimits::default()]),
        cpu_count: Some(1),
        cpu_percent: Some(1),
        io_maximum_iops: Some(1),
        io_maximum_bandwidth: Some(1),
        binds: Some(vec!["/data:/x".to_owned()]),
        container_id_file: text(),
        log_config: Some(HostConfigLogConfig { typ: text(), config: None }),
        network_mode: text(),
        port_bindings: Some([("1/tcp".to_owned(), None)].into()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::ALWAYS),
            maximum_retry_count: None,
        }),
        auto_remove: Some(true),
        volume_driver: text(),
        volumes_from: texts(),
        mounts: Some(vec![Mount { source: Some("/data".to_owned()), ..Mount::default() }]),
        console_size: Some(vec![1, 1]),
        annotations: map(),
        cap_add: texts(),
        cap_drop: texts(),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::HOST),
        dns: texts(),
        dns_options: texts(),
        dns_search: texts(),
        extra_hosts: texts(),
        group_add: texts(),
        ipc_mode: text(),
        cgroup: text(),
        links: texts(),
        oom_score_adj: Some(-1),
        pid_mode: text(),
        privileged: Some(true),
        publish_all_ports: Some(true),
        readonly_rootfs: Some(true),
        security_opt: texts(),
        storage_opt: map(),
        tmpfs: map(),
        uts_mode: text(),
        userns_mode: text(),
        shm_size: Some(1),
        sysctls: map(),
        runtime: text(),
        isolation: Some(HostConfigIsolationEnum::PROCESS),
        masked_paths: texts(),
        readonly_paths: texts(),
    }
}

fn every_body_field() -> ContainerCreateBody {
    ContainerCreateBody {
        hostname: text(),
        domainname: text(),
        user: text(),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        exposed_ports: texts(),
        tty: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
        env: texts(),
        cmd: texts(),
        healthcheck: Some(HealthConfig::default()),
        args_escaped: Some(true),
        image: text(),
        volumes: texts(),
        working_dir: text(),
        entrypoint: texts(),
        network_disabled: Some(true),
        on_build: texts(),
        labels: map(),
        stop_signal: text(),
        stop_timeout: Some(1),
        shell: texts(),
        host_config: Some(every_host_field()),
        networking_config: Some(NetworkingConfig::default()),
    }
}

#[test]
fn the_table_knows_every_field_of_the_engines_request_and_no_other() {
    let body = serde_json::to_value(every_body_field()).unwrap();
    let known = |table: &[(&'static str, Voice)]| table.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let names = |value: &Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&body), known(BODY));
    assert_eq!(names(&body["HostConfig"]), known(HOST));
}

/// Each field alone, in a worker that allows nothing: what is not free must be denied, and by the setting of the table.
#[test]
fn every_field_that_is_not_free_is_denied_where_nothing_is_allowed() {
    let settings = json!({ "binds": { "roots": [] }, "network_modes": ["bridge"], "ports": false, "gpus": false,
        "devices": [], "runtimes": [], "group_add": [], "volume_drivers": [], "log_drivers": [], "memory_max": 0,
        "cpus_max": 0.0, "pids_max": 0 });
    let all = serde_json::to_value(every_host_field()).unwrap();
    for (name, voice) in HOST {
        let mut only = serde_json::Map::new();
        only.insert((*name).to_owned(), all[*name].clone());
        let host: HostConfig = serde_json::from_value(Value::Object(only)).unwrap();
        let policy = policy(settings.clone());
        let asked = Asked {
            body: ContainerCreateBody { host_config: Some(host), ..ContainerCreateBody::default() },
            ..Asked::default()
        };
        let denied = policy.judge(&asked.request()).denied;
        // Two limits deny their absence, too.
        let said: Vec<&str> = denied
            .iter()
            .map(|denied| denied.setting.trim_start_matches("policy."))
            .filter(|setting| *setting != "pids_max" || *name == "PidsLimit")
            .filter(|setting| *setting != "memory_max" || name.starts_with("Memory"))
            .collect();
        match voice {
            Voice::Free if *name == "OomScoreAdj" => assert_eq!(said, ["fields"], "{name}"),
            Voice::Free => assert!(said.iter().all(|setting| *setting == "memory_max"), "{name}: {said:?}"),
            Voice::Named => assert_eq!(said, ["fields"], "{name}"),
            // Without a driver a request is for no GPU.
            Voice::Key("gpus") => assert_eq!(said, ["devices"], "{name}"),
            Voice::Key("cpus_max") if *name == "CpuPeriod" => {
                assert!(said.is_empty(), "a period alone asks for nothing");
            }
            Voice::Key(key) => {
                assert!(
                    said.iter().any(|setting| setting.split('.').next() == Some(*key)),
                    "{name}: {said:?}"
                );
            }
        }
    }
}

#[test]
fn a_field_that_the_table_does_not_know_is_denied() {
    let policy = policy(json!({}));
    let asked = Asked::default();
    let told = |json: &Value| {
        let mut judging = judging(&policy, &asked);
        super::super::fields::judge(&mut judging, json);
        judging.denied.iter().map(|denied| denied.asked.clone()).collect::<Vec<_>>()
    };
    let grown =
        json!({ "Umask": 0, "Seat": "x", "HostConfig": { "Teleport": true, "Quiet": false, "Init": true } });
    assert_eq!(told(&grown), ["Seat", "HostConfig.Teleport"]);
}

fn judging<'a>(policy: &'a Policy, asked: &'a Asked) -> Judging<'a> {
    let request = Box::leak(Box::new(asked.request()));
    Judging {
        policy,
        section: &policy.base,
        request,
        body: &asked.body,
        host: asked.body.host_config.as_ref(),
        networking: None,
        machine: &policy.surroundings.machine,
        files: HostFiles::Here,
        protected: &[],
        denied: Vec::new(),
        mounts: Vec::new(),
    }
}
