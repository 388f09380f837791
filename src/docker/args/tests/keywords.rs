use super::super::keywords::{KEYWORDS, Take};
use super::*;

/// `RUN_CREATE_KWARGS`, `RUN_HOST_CONFIG_KWARGS`, the named parameters and the popped ones of docker-py 7.1.
const DOCKER_PY: &str = "image command stdout stderr remove detach domainname entrypoint environment healthcheck \
    hostname labels mac_address name network_disabled platform stdin_open stop_signal tty use_config_proxy user \
    working_dir auto_remove blkio_weight_device blkio_weight cap_add cap_drop cgroup_parent cgroupns cpu_count \
    cpu_percent cpu_period cpu_quota cpu_shares cpuset_cpus cpuset_mems cpu_rt_period cpu_rt_runtime \
    device_cgroup_rules device_read_bps device_read_iops device_write_bps device_write_iops devices \
    device_requests dns_opt dns_search dns extra_hosts group_add init init_path ipc_mode isolation kernel_memory \
    links log_config lxc_conf mem_limit mem_reservation mem_swappiness memswap_limit mounts nano_cpus network_mode \
    oom_kill_disable oom_score_adj pid_mode pids_limit privileged publish_all_ports read_only restart_policy \
    security_opt shm_size storage_opt sysctls tmpfs ulimits userns_mode uts_mode version volume_driver \
    volumes_from runtime ports volumes network networking_config stream";

#[test]
fn every_keyword_of_docker_py_has_one_row_and_no_row_is_made_up() {
    let mut expected: Vec<&str> = DOCKER_PY.split_whitespace().collect();
    expected.sort_unstable();
    let rows: Vec<&str> = KEYWORDS.iter().map(|keyword| keyword.name).collect();
    assert_eq!(rows, expected);
}

#[test]
fn every_keyword_reads_null_as_not_given() {
    let bare = sent(json!({})).unwrap();
    for keyword in KEYWORDS.iter().filter(|keyword| !matches!(keyword.take, Take::Argument(_))) {
        assert_eq!(sent(json!({ keyword.name: null })), Ok(bare.clone()), "{}", keyword.name);
    }
}

/// A value that no keyword takes, except those that are ignored.
#[test]
fn every_keyword_that_takes_a_value_refuses_a_wrong_one_by_name() {
    for keyword in KEYWORDS {
        let wrong = match keyword.take {
            Take::Ignored => continue,
            Take::Text(_) | Take::Choice(..) | Take::Flag(_) => json!(["x"]),
            _ => json!(true),
        };
        let refusal = refusal(&json!({ keyword.name: wrong }));
        assert!(refusal.starts_with(&format!("args.options.{}", keyword.name)), "{refusal}");
    }
}

#[test]
fn every_flag_is_passed_on_as_given() {
    for (name, pointer) in [
        ("init", "/HostConfig/Init"),
        ("network_disabled", "/NetworkDisabled"),
        ("oom_kill_disable", "/HostConfig/OomKillDisable"),
        ("privileged", "/HostConfig/Privileged"),
        ("publish_all_ports", "/HostConfig/PublishAllPorts"),
        ("read_only", "/HostConfig/ReadonlyRootfs"),
    ] {
        assert_eq!(sent_at(json!({ name: true }), pointer), json!(true), "{name}");
        assert_eq!(sent_at(json!({ name: false }), pointer), json!(false), "{name}");
        assert_eq!(refusal(&json!({ name: 1 })), format!("args.options.{name} is 1: give true or false"));
    }
}

#[test]
fn every_integer_is_checked_and_zero_is_the_engines_default() {
    for (name, pointer, good, bad) in [
        ("blkio_weight", "BlkioWeight", 300, 5),
        ("cpu_count", "CpuCount", 2, -1),
        ("cpu_percent", "CpuPercent", 50, 101),
        ("cpu_period", "CpuPeriod", 100_000, -1),
        ("cpu_quota", "CpuQuota", -1, -2),
        ("cpu_rt_period", "CpuRealtimePeriod", 1000, -1),
        ("cpu_rt_runtime", "CpuRealtimeRuntime", 1000, -1),
        ("cpu_shares", "CpuShares", 512, -1),
        ("nano_cpus", "NanoCpus", 1_500_000_000, -1),
        ("oom_score_adj", "OomScoreAdj", -500, 1001),
        ("pids_limit", "PidsLimit", 64, -2),
    ] {
        assert_eq!(sent_at(json!({ name: good }), &format!("/HostConfig/{pointer}")), json!(good), "{name}");
        assert_eq!(sent(json!({ name: 0 })), sent(json!({})), "{name}");
        let refused = refusal(&json!({ name: bad }));
        assert!(refused.starts_with(&format!("args.options.{name} is {bad}: give an integer")), "{refused}");
    }
    assert_eq!(sent_at(json!({ "nano_cpus": 2e9 }), "/HostConfig/NanoCpus"), json!(2_000_000_000));
    insta::assert_snapshot!(refusal(&json!({ "oom_score_adj": 2000 })), @"args.options.oom_score_adj is 2000: give an integer from -1000 to 1000");
    insta::assert_snapshot!(refusal(&json!({ "nano_cpus": 1.5 })), @"args.options.nano_cpus is 1.5: give an integer of at least 0");
    assert_eq!(sent_at(json!({ "mem_swappiness": 0 }), "/HostConfig/MemorySwappiness"), json!(0));
}

#[test]
fn sizes_are_read_as_docker_py_reads_them() {
    for (given, bytes) in [
        (json!("512m"), 536_870_912_i64),
        (json!("512mb"), 536_870_912),
        (json!("512MiB"), 536_870_912),
        (json!("1.5g"), 1_610_612_736),
        (json!("100000b"), 100_000),
        (json!("1000k"), 1_024_000),
        (json!("4096"), 4_096),
        (json!(4096), 4_096),
        (json!(4096.7), 4_096),
    ] {
        for (name, pointer) in [
            ("mem_limit", "Memory"),
            ("mem_reservation", "MemoryReservation"),
            ("memswap_limit", "MemorySwap"),
            ("shm_size", "ShmSize"),
        ] {
            let at = sent_at(json!({ name: given }), &format!("/HostConfig/{pointer}"));
            assert_eq!(at, json!(bytes), "{name} {given}");
        }
    }
    assert_eq!(sent_at(json!({ "memswap_limit": -1 }), "/HostConfig/MemorySwap"), json!(-1));
    for wrong in [json!("512x"), json!("m"), json!("-5m"), json!(-1), json!("99999999999t"), json!([1])] {
        let refused = refusal(&json!({ "mem_limit": wrong }));
        assert!(
            refused.ends_with("give a number of bytes or a size such as \"512m\" or \"2g\""),
            "{refused}"
        );
    }
}

#[test]
fn texts_and_lists_of_texts_go_where_the_engine_reads_them() {
    for (name, pointer) in [
        ("cgroup_parent", "/HostConfig/CgroupParent"),
        ("cpuset_cpus", "/HostConfig/CpusetCpus"),
        ("cpuset_mems", "/HostConfig/CpusetMems"),
        ("domainname", "/Domainname"),
        ("hostname", "/Hostname"),
        ("network", "/HostConfig/NetworkMode"),
        ("network_mode", "/HostConfig/NetworkMode"),
        ("runtime", "/HostConfig/Runtime"),
        ("stop_signal", "/StopSignal"),
        ("user", "/User"),
        ("volume_driver", "/HostConfig/VolumeDriver"),
        ("working_dir", "/WorkingDir"),
    ] {
        assert_eq!(sent_at(json!({ name: "some" }), pointer), json!("some"), "{name}");
        assert_eq!(sent(json!({ name: "" })), sent(json!({})), "{name}");
        assert!(refusal(&json!({ name: "a\0b" })).contains("zero byte"), "{name}");
    }
    for (name, pointer) in [
        ("cap_add", "CapAdd"),
        ("cap_drop", "CapDrop"),
        ("device_cgroup_rules", "DeviceCgroupRules"),
        ("dns", "Dns"),
        ("dns_opt", "DnsOptions"),
        ("dns_search", "DnsSearch"),
        ("group_add", "GroupAdd"),
        ("security_opt", "SecurityOpt"),
    ] {
        let pointer = format!("/HostConfig/{pointer}");
        assert_eq!(sent_at(json!({ name: ["a", "b"] }), &pointer), json!(["a", "b"]), "{name}");
        assert_eq!(sent_at(json!({ name: "a" }), &pointer), json!(["a"]), "{name}");
        assert!(
            refusal(&json!({ name: ["a", null] })).starts_with(&format!("args.options.{name}[1] is null"))
        );
    }
}

#[test]
fn numbers_are_texts_where_docker_py_calls_str() {
    assert_eq!(sent_at(json!({ "user": 1000 }), "/User"), json!("1000"));
    assert_eq!(
        sent_at(json!({ "group_add": [27, "video"] }), "/HostConfig/GroupAdd"),
        json!(["27", "video"])
    );
    let sysctls = sent_at(json!({ "sysctls": { "net.core.somaxconn": 1024 } }), "/HostConfig/Sysctls");
    assert_eq!(sysctls, json!({ "net.core.somaxconn": "1024" }));
    let storage = sent_at(json!({ "storage_opt": { "size": "120G" } }), "/HostConfig/StorageOpt");
    assert_eq!(storage, json!({ "size": "120G" }));
}

#[test]
fn a_choice_is_one_of_its_texts() {
    for (name, pointer, good) in [
        ("cgroupns", "CgroupnsMode", "private"),
        ("ipc_mode", "IpcMode", "container:abc"),
        ("isolation", "Isolation", "hyperv"),
        ("pid_mode", "PidMode", "host"),
        ("userns_mode", "UsernsMode", "host"),
        ("uts_mode", "UTSMode", "host"),
    ] {
        assert_eq!(sent_at(json!({ name: good }), &format!("/HostConfig/{pointer}")), json!(good));
        assert!(refusal(&json!({ name: "guest" })).contains("is \"guest\": give \""));
    }
    insta::assert_snapshot!(
        refusal(&json!({ "pid_mode": "container:" })),
        @r#"args.options.pid_mode is "container:": give "host" or "container:<name or id>""#
    );
}

#[test]
fn environment_is_a_map_or_a_list() {
    let map =
        json!({ "environment": { "A": "1", "B": true, "C": 2.0, "D": null, "E": "x=y", "F": ["x", 1] } });
    assert_eq!(sent_at(map, "/Env"), json!(["A=1", "B=True", "C=2.0", "D", "E=x=y", "F=['x', 1]"]));
    assert_eq!(sent_at(json!({ "environment": ["A=1", "B"] }), "/Env"), json!(["A=1", "B"]));
    assert!(refusal(&json!({ "environment": { "A=B": "1" } })).contains("args.options.environment.A=B"));
    assert!(
        refusal(&json!({ "environment": { "A": "x\0y" } }))
            .contains("environment.A is a text with a zero byte")
    );
}

#[test]
fn names_and_addresses_are_sorted_pairs() {
    let hosts = json!({ "extra_hosts": { "b": "10.0.0.2", "a": "10.0.0.1" } });
    assert_eq!(sent_at(hosts, "/HostConfig/ExtraHosts"), json!(["a:10.0.0.1", "b:10.0.0.2"]));
    let hosts = json!({ "extra_hosts": ["a:10.0.0.1"] });
    assert_eq!(sent_at(hosts, "/HostConfig/ExtraHosts"), json!(["a:10.0.0.1"]));
    let links = json!({ "links": { "db": "database", "cache": null } });
    assert_eq!(sent_at(links, "/HostConfig/Links"), json!(["cache", "db:database"]));
    let links = json!({ "links": [["db", "database"]] });
    assert_eq!(sent_at(links, "/HostConfig/Links"), json!(["db:database"]));
}

#[test]
fn devices_are_texts_with_three_parts_or_maps() {
    let mapping = |host, inside, permissions| json!({ "PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": permissions });
    let given = json!({ "devices": ["/dev/sda", "/dev/sda:/dev/xvda", "/dev/sda:/dev/xvda:r",
        { "PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rw" }] });
    let expected = json!([
        mapping("/dev/sda", "/dev/sda", "rwm"),
        mapping("/dev/sda", "/dev/xvda", "rwm"),
        mapping("/dev/sda", "/dev/xvda", "r"),
        mapping("/dev/fuse", "/dev/fuse", "rw"),
    ]);
    assert_eq!(sent_at(given, "/HostConfig/Devices"), expected);
    for wrong in ["dev/sda", "/dev/sda:/dev/x:q", "/dev/sda:/x:r:w", "/dev/sda:/x:"] {
        assert!(refusal(&json!({ "devices": [wrong] })).starts_with("args.options.devices[0] is "));
    }
    assert!(
        refusal(&json!({ "devices": [{ "PathOnhost": "/dev/fuse" }] }))
            .contains("did you mean \"PathOnHost\"?")
    );
}

#[test]
fn rates_weights_and_mounts_take_the_engines_own_names() {
    let rate = json!([{ "Path": "/dev/sda", "Rate": 1024 }]);
    for (name, pointer) in [
        ("device_read_bps", "BlkioDeviceReadBps"),
        ("device_read_iops", "BlkioDeviceReadIOps"),
        ("device_write_bps", "BlkioDeviceWriteBps"),
        ("device_write_iops", "BlkioDeviceWriteIOps"),
    ] {
        assert_eq!(sent_at(json!({ name: rate }), &format!("/HostConfig/{pointer}")), rate);
    }
    let weight = json!([{ "Path": "/dev/sda", "Weight": 300 }]);
    assert_eq!(sent_at(json!({ "blkio_weight_device": weight }), "/HostConfig/BlkioWeightDevice"), weight);
    let mounts = json!([{ "Target": "/data", "Source": "/srv", "Type": "bind", "ReadOnly": true,
        "BindOptions": { "Propagation": "rslave" } }]);
    assert_eq!(sent_at(json!({ "mounts": mounts }), "/HostConfig/Mounts"), mounts);
    insta::assert_snapshot!(
        refusal(&json!({ "mounts": [{ "Target": "/data", "Readonly": true }] })),
        @r#"args.options.mounts[0].Readonly is not known, did you mean "ReadOnly"?"#
    );
    assert!(
        refusal(&json!({ "mounts": [{ "Target": "/data", "Type": "bound" }] })).contains("unknown variant")
    );
}

#[test]
fn limits_logs_and_requests_take_both_spellings() {
    let expected = json!([{ "Name": "nofile", "Soft": 1024, "Hard": 2048 }]);
    for given in [
        json!([{ "Name": "nofile", "Soft": 1024, "Hard": 2048 }]),
        json!([{ "name": "nofile", "soft": 1024, "hard": 2048 }]),
    ] {
        assert_eq!(sent_at(json!({ "ulimits": given }), "/HostConfig/Ulimits"), expected);
    }
    let half =
        sent_at(json!({ "ulimits": [{ "name": "core", "soft": 0, "hard": null }] }), "/HostConfig/Ulimits");
    assert_eq!(half, json!([{ "Name": "core", "Soft": 0, "Hard": 0 }]));
    assert!(refusal(&json!({ "ulimits": [{ "name": "core" }] })).contains("give a map such as"));
    assert!(refusal(&json!({ "ulimits": [{ "nam": "core" }] })).contains("did you mean \"name\"?"));

    let expected = json!({ "Type": "json-file", "Config": { "max-size": "1g", "max-file": "3" } });
    for given in [
        json!({ "type": "json-file", "config": { "max-size": "1g", "max-file": 3 } }),
        json!({ "Type": "json-file", "Config": { "max-size": "1g", "max-file": 3 } }),
    ] {
        assert_eq!(sent_at(json!({ "log_config": given }), "/HostConfig/LogConfig"), expected);
    }

    let given = json!([{ "driver": "nvidia", "count": -1, "capabilities": [["gpu"]] }, { "DeviceIDs": [0, "GPU-1"] }]);
    let expected = json!([{ "Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]] }, { "DeviceIDs": ["0", "GPU-1"] }]);
    assert_eq!(sent_at(json!({ "device_requests": given }), "/HostConfig/DeviceRequests"), expected);
}

#[test]
fn a_health_check_counts_in_nanoseconds() {
    let given = json!({ "test": "true", "interval": 1_000_000_000, "timeout": 0, "retries": 3, "start_period": 1_000_000 });
    let expected = json!({ "Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000, "Timeout": 0, "Retries": 3,
        "StartPeriod": 1_000_000 });
    assert_eq!(sent_at(json!({ "healthcheck": given }), "/Healthcheck"), expected);
    assert_eq!(sent_at(json!({ "healthcheck": { "Test": ["NONE"] } }), "/Healthcheck/Test"), json!(["NONE"]));
    insta::assert_snapshot!(
        refusal(&json!({ "healthcheck": { "interval": 30 } })),
        @"args.options.healthcheck.interval is 30: give nanoseconds: 0 or at least 1000000 (1 ms)"
    );
}

#[test]
fn ports_bind_one_any_or_several_host_ports() {
    let bound = |value: Value| {
        sent_at(json!({ "ports": { "2222/tcp": value } }), "/HostConfig/PortBindings/2222~1tcp")
    };
    let one = |ip: &str, port: &str| json!([{ "HostIp": ip, "HostPort": port }]);
    assert_eq!(bound(json!(3333)), one("", "3333"));
    assert_eq!(bound(json!("3333")), one("", "3333"));
    assert_eq!(bound(json!("3000-3010")), one("", "3000-3010"));
    assert_eq!(bound(json!(null)), one("", ""));
    assert_eq!(bound(json!(["127.0.0.1", 1111])), one("127.0.0.1", "1111"));
    assert_eq!(bound(json!(["::1"])), one("::1", ""));
    assert_eq!(bound(json!({ "HostPort": 5, "HostIp": "10.0.0.1" })), one("10.0.0.1", "5"));
    let several = json!([{ "HostIp": "", "HostPort": "1234" }, { "HostIp": "", "HostPort": "4567" }]);
    assert_eq!(bound(json!([1234, 4567])), several);
    assert_eq!(
        sent_at(json!({ "ports": { "53/udp": 53, "80": 8080 } }), "/ExposedPorts"),
        json!({ "53/udp": {}, "80/tcp": {} })
    );
    for wrong in
        [json!({ "0": 1 }), json!({ "80/icmp": 1 }), json!({ "80": 70_000 }), json!({ "80": "http" })]
    {
        assert!(refusal(&json!({ "ports": wrong })).starts_with("args.options.ports."));
    }
}

#[test]
fn tmpfs_labels_and_volumes_from_take_their_short_forms() {
    let long = json!({ "/a": "", "/b": "size=3G,uid=1000" });
    assert_eq!(sent_at(json!({ "tmpfs": long }), "/HostConfig/Tmpfs"), long);
    assert_eq!(sent_at(json!({ "tmpfs": ["/a", "/b:size=3G,uid=1000"] }), "/HostConfig/Tmpfs"), long);
    assert_eq!(sent_at(json!({ "labels": ["x", "y"] }), "/Labels"), json!({ "x": "", "y": "" }));
    assert_eq!(sent_at(json!({ "labels": { "x": 1, "y": null } }), "/Labels"), json!({ "x": "1", "y": "" }));
    assert_eq!(sent_at(json!({ "volumes_from": "a,b:ro" }), "/HostConfig/VolumesFrom"), json!(["a", "b:ro"]));
}

#[test]
fn what_the_worker_decides_is_refused_and_what_it_does_itself_is_ignored() {
    insta::assert_snapshot!(
        refusal(&json!({ "restart_policy": { "Name": "always" } })),
        @"args.options.restart_policy cannot be used: the worker decides when a task runs again, use the task's retry"
    );
    assert_eq!(sent(json!({ "restart_policy": { "Name": "no" } })), sent(json!({})));
    insta::assert_snapshot!(
        refusal(&json!({ "kernel_memory": "4m" })),
        @"args.options.kernel_memory cannot be used: the engine has dropped this setting, use mem_limit"
    );
    insta::assert_snapshot!(
        refusal(&json!({ "command": "ls" })),
        @"args.options.command cannot be used: it is an argument of docker_run itself, write args.container_args"
    );
    let ignored = json!({ "tty": true, "detach": 1, "remove": "x", "auto_remove": true, "stdin_open": true, "stream": true,
        "stdout": false, "stderr": [], "version": "1.35", "use_config_proxy": true });
    assert_eq!(sent(ignored), sent(json!({})));
}

#[test]
fn an_unknown_keyword_names_the_nearest_one() {
    insta::assert_snapshot!(
        refusal(&json!({ "mem_limits": "1g" })),
        @r#"args.options.mem_limits is not known, did you mean "mem_limit"?"#
    );
    insta::assert_snapshot!(refusal(&json!({ "zzz": 1 })), @"args.options.zzz is not known");
}
