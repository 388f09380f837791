use super::*;
use crate::task::Resources;
use crate::units::Size;

fn read(value: Value) -> Result<DockerRun, String> {
    DockerRun::read(&args(value)).map_err(|error| error.to_string())
}

fn refused(value: &Value) -> String {
    read(value.clone()).expect_err(&format!("{value} should be refused"))
}

#[test]
fn an_image_is_enough() {
    let run = read(json!({ "image": "busybox" })).unwrap();
    assert_eq!(run.pull, Pull::Missing);
    assert!(run.remove_container);
    assert_eq!((run.entrypoint, run.container_args.len(), run.volumes.len()), (None, 0, 0));
    insta::assert_snapshot!(refused(&json!({})), @r#"args.image is missing: give the image to run, such as "busybox:latest""#);
    insta::assert_snapshot!(refused(&json!({ "image": "a b" })), @r#"args.image is "a b": give the image to run, such as "busybox:latest""#);
}

#[test]
fn pull_is_read_in_both_dialects() {
    let pull = |value: Value| {
        let mut all = json!({ "image": "busybox" });
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        read(all).map(|run| run.pull)
    };
    for name in ["pull", "pull_image"] {
        assert_eq!(pull(json!({ name: true })), Ok(Pull::Always));
        assert_eq!(pull(json!({ name: false })), Ok(Pull::Never));
        assert_eq!(pull(json!({ name: "if-not-present" })), Ok(Pull::Missing));
        assert_eq!(pull(json!({ name: "missing" })), Ok(Pull::Missing));
        assert_eq!(pull(json!({ name: "never" })), Ok(Pull::Never));
        assert_eq!(pull(json!({ name: null })), Ok(Pull::Missing));
    }
    insta::assert_snapshot!(
        pull(json!({ "pull": "sometimes" })).unwrap_err(),
        @r#"args.pull is "sometimes": give "always", "missing" or "never""#
    );
    assert!(pull(json!({ "pull": true, "pull_image": true })).is_err());
}

#[test]
fn arguments_become_the_texts_that_python_makes_of_them() {
    let run = read(json!({ "image": "busybox", "container_args": ["-v", true, null, 2.5, 7] })).unwrap();
    assert_eq!(argument_texts(&run.container_args), ["-v", "True", "None", "2.5", "7"]);
    let run =
        read(json!({ "image": "busybox", "container_args": "echo hi", "entrypoint": "sh -c" })).unwrap();
    assert_eq!(argument_texts(&run.container_args), ["echo hi"]);
    assert_eq!(run.entrypoint.map(|words| argument_texts(&words)), Some(vec!["sh -c".to_owned()]));
    insta::assert_snapshot!(
        refused(&json!({ "image": "busybox", "container_args": ["a", "b\0c"] })),
        @"args.container_args[1] is a text with a zero byte: give a text without one: no process takes it"
    );
    assert!(refused(&json!({ "image": "busybox", "container_args": { "a": 1 } })).contains("is a map"));
}

#[test]
fn volumes_are_a_map_a_list_or_transforms() {
    let binds = |volumes: Value| -> Vec<String> {
        let run = read(json!({ "image": "busybox", "volumes": volumes })).unwrap();
        run.volumes
            .iter()
            .map(|volume| match volume {
                VolumeArg::Bind(bind) => bind.to_string(),
                VolumeArg::Transform(volume) => format!("{volume:?}").chars().take(16).collect(),
            })
            .collect()
    };
    assert_eq!(binds(json!({ "/data": { "bind": "/mnt", "mode": "ro" } })), ["/data:/mnt:ro"]);
    assert_eq!(binds(json!({ "/data": { "bind": "/mnt" } })), ["/data:/mnt:rw"]);
    assert_eq!(binds(json!({ "/data": { "bind": "/mnt", "ro": true } })), ["/data:/mnt:ro"]);
    assert_eq!(
        binds(json!({ "/data": { "bind": "/mnt", "propagation": "rslave" } })),
        ["/data:/mnt:rw,rslave"]
    );
    assert_eq!(binds(json!({ "cache": "/mnt" })), ["cache:/mnt:rw"]);
    assert_eq!(binds(json!(["/a:/b", "/c:/d:ro,z", "/e"])), ["/a:/b:rw", "/c:/d:ro,z", "/e"]);
    let transforms = json!([
        { "$": "BindMountVolume", "host_path": "/data", "container_path": "/mnt" },
        { "$": "TemporaryVolume", "id": "scratch" },
    ]);
    assert_eq!(binds(transforms), ["BindMountVolume(", "TemporaryVolume("]);
}

#[test]
fn a_volume_cannot_smuggle_a_second_path_past_the_colon() {
    for volumes in [
        json!({ "/tmp/x:/etc": { "bind": "/mnt" } }),
        json!({ "/tmp/x": { "bind": "/mnt:/etc" } }),
        json!({ "/tmp/x": { "bind": "/mnt", "mode": "rw:/etc" } }),
        json!({ "../x": { "bind": "/mnt" } }),
        json!({ "/tmp/x": { "bind": "mnt" } }),
        json!(["/a:/b:rw:/c"]),
        json!([{ "$": "BindMountVolume", "host_path": "/tmp/x:/etc", "container_path": "/mnt" }]),
        json!([{ "$": "VolumePath", "filename": "x" }]),
    ] {
        assert!(
            refused(&json!({ "image": "busybox", "volumes": volumes })).starts_with("args.volumes"),
            "{volumes}"
        );
    }
}

#[test]
fn an_unknown_argument_says_where_it_belongs() {
    insta::assert_snapshot!(
        refused(&json!({ "image": "busybox", "mem_limit": "1g" })),
        @"args.mem_limit: docker_run has no such argument: docker-py's keywords stand in args.options, write args.options.mem_limit"
    );
    insta::assert_snapshot!(
        refused(&json!({ "image": "busybox", "container_arg": [] })),
        @r#"args.container_arg: docker_run has no such argument, did you mean "container_args"?"#
    );
    insta::assert_snapshot!(
        refused(&json!({ "image": "busybox", "enviroment": {} })),
        @r#"args.enviroment: docker_run has no such argument, did you mean "options.environment"?"#
    );
    insta::assert_snapshot!(refused(&json!({ "image": "busybox", "zzz": 1 })), @"args.zzz: docker_run has no such argument");
}

#[test]
fn options_are_checked_at_once_with_transforms_in_them() {
    let path = json!({ "$": "VolumePath", "filename": "x" });
    let run =
        read(json!({ "image": "busybox", "options": { "environment": { "OUT": path }, "mem_limit": "1g" } }));
    assert_eq!(run.unwrap().options.len(), 2);
    assert!(refused(&json!({ "image": "busybox", "options": { "mem_limit": path } })).contains("mem_limit"));
    assert!(refused(&json!({ "image": "busybox", "options": { "mem_limits": 1 } })).contains("did you mean"));
    assert!(refused(&json!({ "image": "busybox", "options": [] })).contains("a map of docker-py's keywords"));
}

#[test]
fn stream_connectors_are_connects_and_the_filter_has_a_name() {
    let connect =
        json!({ "$": "Connect", "input": { "$": "ContainerStdOut" }, "output": { "$": "HostStdOut" } });
    let run =
        read(json!({ "image": "b1", "stream_connectors": [connect], "stdout_filter": "slicer_progress" }))
            .unwrap();
    assert_eq!((run.stream_connectors.len(), run.stdout_filter), (1, Some(StdoutFilter::Slicer)));
    let stdout = json!([{ "$": "HostStdOut" }]);
    insta::assert_snapshot!(
        refused(&json!({ "image": "b1", "stream_connectors": stdout })),
        @"args.stream_connectors[0] is HostStdOut: give a Connect, which joins a source with a sink"
    );
    assert!(
        refused(&json!({ "image": "b1", "stdout_filter": "grep" })).ends_with("give \"slicer_progress\"")
    );
}

#[test]
fn defaults_give_way_to_the_task() {
    let defaults = RunDefaults::read(&args(json!({
        "network": "girder", "mem_limit": "1g", "environment": { "A": "1" }, "entrypoint": "/init", "tty": true,
        "volumes": ["/srv/a:/a", "/srv/b:/b:rw"],
    })))
    .unwrap();
    let mut run = read(json!({ "image": "busybox", "volumes": { "/srv/b": "/elsewhere" },
        "options": { "network_mode": "none", "environment": { "B": "2" } } }))
    .unwrap();
    run.fill(&defaults);
    let body = serde_json::to_value(ContainerOptions::read(&run.options).unwrap().into_body(None)).unwrap();
    assert_eq!(body["HostConfig"]["NetworkMode"], "none");
    assert_eq!(body["HostConfig"]["Memory"], 1 << 30);
    assert_eq!(body["Env"], json!(["B=2"]));
    assert_eq!(run.entrypoint, Some(vec![Arg::from("/init")]));
    let volumes: Vec<String> = run
        .volumes
        .iter()
        .map(|volume| match volume {
            VolumeArg::Bind(bind) => bind.to_string(),
            VolumeArg::Transform(_) => panic!("no transform was given"),
        })
        .collect();
    assert_eq!(volumes, ["/srv/b:/elsewhere:rw", "/srv/a:/a:ro"]);
    let wrong = RunDefaults::read(&args(json!({ "mem_limit": "lots" }))).unwrap_err();
    assert!(wrong.to_string().starts_with("args.options.mem_limit is \"lots\""));
}

#[test]
fn declared_resources_fill_what_the_options_leave_open() {
    let resources = Resources {
        cpus: Some(1.5),
        memory: Some(Size(1 << 29)),
        platform: Some("linux/arm64".to_owned()),
        ..Resources::default()
    };
    let filled = |options: Value| {
        let mut read = ContainerOptions::read(&args(options)).unwrap();
        read.fill(&resources);
        let host = read.body.host_config.clone().unwrap();
        (host.nano_cpus, host.memory, read.platform)
    };
    let arm = Some("linux/arm64".to_owned());
    assert_eq!(filled(json!({})), (Some(1_500_000_000), Some(1 << 29), arm.clone()));
    assert_eq!(filled(json!({ "nano_cpus": 7, "mem_limit": 9 })), (Some(7), Some(9), arm.clone()));
    assert_eq!(filled(json!({ "cpu_quota": 50_000 })), (None, Some(1 << 29), arm));
    assert_eq!(filled(json!({ "platform": "linux/386" })).2.as_deref(), Some("linux/386"));
}

#[test]
fn networks_join_as_docker_py_joins_them() {
    insta::assert_snapshot!(
        refusal(&json!({ "network": "a", "network_mode": "b" })),
        @"args.options.network cannot be used: it says the same as network_mode, give only one of them"
    );
    insta::assert_snapshot!(
        refusal(&json!({ "networking_config": { "a": {} } })),
        @"args.options.networking_config cannot be used: it needs network, which names the network to join"
    );
    assert!(refusal(&json!({ "network": "host", "ports": { "80": 80 } })).contains("args.options.ports"));
    let config = json!({ "network": "a", "networking_config": { "a": { "Aliases": ["x"] } } });
    let endpoint = "/NetworkingConfig/EndpointsConfig/a";
    assert_eq!(sent_at(config, endpoint), json!({ "Aliases": ["x"] }));
    let config = json!({ "network": "a", "networking_config": { "b": {} } });
    assert_eq!(sent(config), sent(json!({ "network": "a" })));
}

#[test]
fn a_mac_address_goes_to_the_endpoint_of_the_network_that_is_joined() {
    let mac = "02:42:ac:11:00:02";
    let at = |options: Value, default: Option<&str>| {
        let body = ContainerOptions::read(&args(options)).unwrap().into_body(default);
        serde_json::to_value(body).unwrap()["NetworkingConfig"]["EndpointsConfig"].clone()
    };
    assert_eq!(at(json!({ "mac_address": mac }), None), json!({ "bridge": { "MacAddress": mac } }));
    assert_eq!(at(json!({ "mac_address": mac }), Some("own")), json!({ "own": { "MacAddress": mac } }));
    let asked =
        json!({ "mac_address": mac, "network": "a", "networking_config": { "a": { "Aliases": ["x"] } } });
    assert_eq!(at(asked, Some("own")), json!({ "a": { "MacAddress": mac, "Aliases": ["x"] } }));
}

#[test]
fn a_default_network_is_joined_only_when_none_is_asked_for() {
    let mode = |options: Value| {
        let body = ContainerOptions::read(&args(options)).unwrap().into_body(Some("own"));
        body.host_config.and_then(|host| host.network_mode)
    };
    assert_eq!(mode(json!({})).as_deref(), Some("own"));
    assert_eq!(mode(json!({ "network_mode": "none" })).as_deref(), Some("none"));
}

#[test]
fn a_large_request_keeps_its_shape() {
    let options = serde_json::from_str(include_str!("large.json")).unwrap();
    let read = ContainerOptions::read(&args(options)).unwrap();
    assert_eq!((read.name.as_deref(), read.platform.as_deref()), (Some("wish"), Some("linux/amd64")));
    assert_eq!(read.network(), Some("girder"));
    insta::with_settings!({ sort_maps => true }, {
        insta::assert_json_snapshot!(read.into_body(None));
    });
}
