use super::super::section::PolicyError;
use super::*;

fn on(queue: &str) -> impl Fn(&mut Asked) {
    let queue = QueueName::new(queue).unwrap();
    move |asked| {
        asked.queue = queue.clone();
        asked.host().privileged = Some(true);
    }
}

#[test]
fn a_queues_section_stands_over_the_workers_and_is_named_where_it_decides() {
    let settings = json!({ "privileged": false, "queue": { "lab": { "privileged": true }, "gpu": { "gpus": true },
        "kiosk": { "privileged": false } } });
    assert_eq!(denials(settings.clone(), on("lab")), "");
    for (queue, setting) in [
        ("default", "policy.privileged="),
        ("gpu", "policy.privileged="),
        ("kiosk", "policy.queue.kiosk.privileged="),
    ] {
        let told = denials(settings.clone(), on(queue));
        assert!(told.contains(&format!("this worker sets {setting}false.")), "{queue}: {told}");
    }
}

#[test]
fn a_queue_with_a_profile_of_its_own_takes_nothing_from_the_workers_keys() {
    let settings =
        json!({ "profile": "open", "privileged": true, "queue": { "public": { "profile": "strict" } } });
    assert_eq!(denials(settings.clone(), on("default")), "");
    let told = denials(settings, on("public"));
    assert!(told.contains("policy.queue.public.privileged=false"), "{told}");
}

#[test]
fn a_key_replaces_one_value_of_its_group() {
    let rules = policy(json!({ "binds": { "roots": ["/data"] } })).rules(&QueueName::default()).clone();
    assert_eq!(rules.binds.roots.len(), 1);
    assert_eq!(rules.binds.denied, Profile::Standard.rules().binds.denied);
}

#[test]
fn a_limit_can_be_taken_away_from_a_profile() {
    let settings = json!({ "profile": "strict", "memory_max": "none", "memory_default": "none",
        "images": { "allowed": ["*"] } });
    assert_eq!(denials(settings, |asked| asked.host().memory = Some(1 << 50)), "");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_with_their_key() {
    let read = |settings: Value| {
        serde_json::from_value::<PolicySettings>(settings).map_err(|error| error.to_string())
    };
    for (settings, part) in [
        (json!({ "privilegd": true }), "unknown field `privilegd`"),
        (json!({ "images": { "allow": [] } }), "unknown field `allow`"),
        (json!({ "images": { "allowed": ["a b"] } }), "\"a b\" cannot be used here"),
        (json!({ "binds": { "roots": ["data"] } }), "write an absolute path"),
        (json!({ "binds": { "denied": ["/a*/b"] } }), "write an absolute path"),
        (json!({ "memory_max": "lots" }), "is not a size"),
        (json!({ "http": { "denied_networks": ["10.0.0.0/99"] } }), "write an address or a range"),
        (json!({ "namespaces": { "host": ["mnt"] } }), "unknown variant `mnt`"),
        (json!({ "profile": "lax" }), "unknown variant `lax`"),
    ] {
        let error = read(settings).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let build = |settings: Value| Policy::new(&read(settings).unwrap(), Surroundings::default()).unwrap_err();
    let nested = build(json!({ "queue": { "a": { "queue": { "b": {} } } } }));
    assert!(matches!(nested, PolicyError::Nested(_)), "{nested}");
    insta::assert_snapshot!(
        build(json!({ "queue": { "a": { "user": "a b" } } })),
        @r#"policy.queue.a.user: "a b" cannot be used here: write "image", or a user such as "65534:65534""#
    );
}

#[test]
fn settings_are_written_as_they_were_read() {
    let settings = json!({ "profile": "strict", "mode": "audit", "images": { "allowed": ["girder/*"] }, "cpus_max": "machine",
        "memory_max": "8GiB", "binds": { "roots": ["/data:ro"] }, "queue": { "lab": { "task_timeout": "none" } } });
    let read: PolicySettings = serde_json::from_value(settings.clone()).unwrap();
    let mut written = serde_json::to_value(&read).unwrap();
    written.sort_all_objects();
    let mut settings = settings;
    settings.sort_all_objects();
    assert_eq!(written, settings);
}

#[test]
fn a_network_that_the_worker_chose_is_not_judged() {
    let settings = json!({ "network_modes": ["none"] });
    let joined = |own: Option<&str>| {
        denials(settings.clone(), |asked| {
            asked.host().network_mode = Some("longshore".to_owned());
            asked.worker_network = own.map(str::to_owned);
        })
    };
    assert!(joined(None).contains("policy.network_modes"));
    assert_eq!(joined(Some("longshore")), "");
}

#[test]
fn every_endpoint_is_a_network_to_be_judged() {
    use bollard::models::{EndpointSettings, NetworkingConfig};
    let told = denials(json!({ "network_modes": ["bridge", "lab"] }), |asked| {
        asked.host().network_mode = Some("lab".to_owned());
        let endpoints = ["lab", "secret"].map(|name| (name.to_owned(), EndpointSettings::default())).into();
        asked.body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoints) });
    });
    assert!(told.contains("network \"secret\"") && !told.contains("network \"lab\""), "{told}");
}

#[test]
fn an_address_is_judged_after_the_name_was_resolved() {
    let policy = policy(json!({}));
    let task = TaskId::new("t1").unwrap();
    let queue = QueueName::default();
    let http = policy.http(&queue, &task, Some("http://girder.test:8080/api/v1"));
    let denied = |host: &str, addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        http.judge_url(host, &addresses).denied
    };
    assert!(denied("example.org", &["93.184.216.34", "2606:2800:220:1::1"]).is_empty());
    assert!(
        denied("localhost", &["127.0.0.1", "::1"]).is_empty(),
        "a Girder on the worker's own host is usual"
    );
    for address in
        ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200"]
    {
        assert_eq!(denied("rebinding.test", &["93.184.216.34", address]).len(), 1, "{address}");
        assert_eq!(denied("girder.test", &[address]).len(), 1, "not even as the Girder host");
    }
    assert_eq!(denied("169.254.169.254", &["169.254.169.254"]).len(), 1, "told once");
    assert_eq!(denied("[fe80::1]", &[]).len(), 1);
    insta::assert_snapshot!(denied("rebinding.test", &["169.254.169.254"])[0]);
}

#[test]
fn strict_streams_go_to_the_girder_host_only() {
    let policy = policy(json!({ "profile": "strict" }));
    let task = TaskId::new("t1").unwrap();
    let http = policy.http(&QueueName::default(), &task, Some("http://Girder.test:8080/api/v1"));
    assert!(http.judge_url("girder.test", &[]).denied.is_empty());
    assert_eq!(http.judge_url("girder.test.evil.test", &[]).denied[0].setting, "policy.http.allowed_hosts");
}
