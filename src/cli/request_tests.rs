use serde_json::json;

use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn bind(text: &str) -> Result<String, String> {
    match volume(text, Path::new("/home/me")) {
        Ok(Arg::Text(text)) => Ok(text),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn volumes_are_read_as_docker_run_reads_them() {
    assert_eq!(bind("/data:/mnt").unwrap(), "/data:/mnt:rw");
    assert_eq!(bind("/data:/mnt:ro").unwrap(), "/data:/mnt:ro");
    assert_eq!(bind("./in:/mnt").unwrap(), "/home/me/in:/mnt:rw");
    assert_eq!(bind("../you/x:/mnt").unwrap(), "/home/you/x:/mnt:rw");
    assert_eq!(bind(".:/mnt").unwrap(), "/home/me:/mnt:rw");
    assert_eq!(bind("cache:/mnt").unwrap(), "cache:/mnt:rw");
    for wrong in ["/data", "/a:/b:ro:x", ":/mnt", "/data:mnt"] {
        let told = bind(wrong).unwrap_err();
        assert!(told.contains(wrong) && told.contains("HOST:CONTAINER"), "{told}");
    }
}

#[test]
fn variables_have_a_value_or_take_ours() {
    let own = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
    let read = |text: &str| variable(text, own).map_err(|error| error.to_string());
    assert_eq!(read("A=b=c").unwrap(), Some(("A".to_owned(), "b=c".to_owned())));
    assert_eq!(read("A=").unwrap(), Some(("A".to_owned(), String::new())));
    assert_eq!(read("HOME").unwrap(), Some(("HOME".to_owned(), "/home/me".to_owned())));
    assert_eq!(read("NOT_SET").unwrap(), None);
    assert!(read("=x").unwrap_err().contains("--env =x"));
}

#[test]
fn flags_become_the_arguments_that_a_producer_would_send() {
    let container = ContainerFlags {
        pull: Some("never".to_owned()),
        volume: vec!["/data:/mnt:ro".to_owned()],
        env: vec!["A=1".to_owned()],
        entrypoint: Some("sh".to_owned()),
        options: vec!["network=none".to_owned(), "pids_limit=64".to_owned()],
        keep: true,
        streams: StreamFlags::default(),
    };
    let task = from_flags(&words("busybox:latest -c --env"), &container).unwrap();
    assert_eq!(
        serde_json::to_value(&task.args).unwrap(),
        json!({
            "image": "busybox:latest",
            "pull": "never",
            "entrypoint": ["sh"],
            "container_args": ["-c", "--env"],
            "volumes": ["/data:/mnt:ro"],
            "remove_container": false,
            "options": {"environment": {"A": "1"}, "network": "none", "pids_limit": 64},
        })
    );
    check(&task).unwrap();
}

#[test]
fn a_task_that_no_worker_could_read_is_refused_before_it_is_queued() {
    let container = ContainerFlags { options: vec!["netwrok=none".to_owned()], ..ContainerFlags::default() };
    let task = from_flags(&words("busybox"), &container).unwrap();
    let told = check(&task).unwrap_err().to_string();
    assert!(told.contains("netwrok") && told.contains("network"), "{told}");
    assert!(from_flags(&[], &container).is_err());
}

#[test]
fn flags_outweigh_what_a_file_says() {
    let mut task = from_flags(&words("busybox"), &ContainerFlags::default()).unwrap();
    task.labels.insert("a".to_owned(), "file".to_owned());
    task.resources.gpus = Some(1);
    let flags = TaskFlags {
        cpus: Some(1.5),
        memory: Some(Size(1 << 30)),
        label: words("a=flag b=c=d"),
        resource: words("licence=2"),
        retry: Some(5),
        ..TaskFlags::default()
    };
    flags.apply(&mut task).unwrap();
    assert_eq!(
        task.labels,
        BTreeMap::from([("a", "flag"), ("b", "c=d")].map(|(k, v)| (k.to_owned(), v.to_owned())))
    );
    assert_eq!((task.resources.cpus, task.resources.gpus), (Some(1.5), Some(1)));
    assert_eq!(task.resources.custom.get("licence"), Some(&2));
    assert_eq!(task.retry.as_ref().map(|retry| retry.max_attempts), Some(5));
    let wrong = TaskFlags { retry: Some(0), ..TaskFlags::default() };
    assert!(wrong.apply(&mut task).is_err());
    let wrong = TaskFlags { resource: words("licence=two"), ..TaskFlags::default() };
    assert!(wrong.apply(&mut task).unwrap_err().to_string().contains("licence=two"));
}

#[test]
fn times_are_absolute_or_from_now() {
    assert_eq!(when("2026-11-23T10:00:00Z").unwrap().to_string(), "2026-11-23T10:00:00Z");
    let soon = when("10m").unwrap();
    let left = soon.duration_since(Timestamp::now()).as_secs();
    assert!((595..=600).contains(&left), "{left}");
    assert!(when("tomorrow").is_err());
}
