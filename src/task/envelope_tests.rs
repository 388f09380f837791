//! Round trips and refusals of the native envelope.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::task::transform::{BindMountVolume, TemporaryVolume, Volume, VolumePath};

fn decoded(value: &Value) -> Result<Task, DecodeError> {
    decode(value.to_string().as_bytes(), ContentType::Json, &Limits::default())
}

fn refusal(value: &Value) -> String {
    decoded(value).unwrap_err().to_string()
}

#[test]
fn the_design_example_decodes_and_comes_back() {
    let task = decoded(&json!({
        "v": 1, "id": "0190-a", "task": "docker_run", "queue": "default", "priority": 5,
        "args": {"image": "busybox:latest", "container_args": ["-c", {"$": "VolumePath", "filename": "out.txt"}],
                 "volumes": [{"$": "BindMountVolume", "host_path": "/data", "container_path": "/mnt/data", "mode": "ro"}]},
        "result_hooks": [{"$": "GirderUploadVolumePathToItem",
                          "volumepath": {"$": "VolumePath", "filename": "out.txt"}, "item_id": "i"}],
        "girder": {"api_url": "http://g/api/v1", "token": "t", "job": {"url": "http://g/api/v1/job/1"}},
        "timeout": "1h", "retry": {"max_attempts": 3, "backoff": "5s"},
        "resources": {"cpus": 1, "memory": "512MiB", "gpus": 0, "platform": null},
        "labels": {"study": "a"}, "later_field": {"kept": true}
    }))
    .unwrap();
    assert_eq!(task.extra["later_field"], json!({"kept": true}));
    assert_eq!(task.resources.memory.map(crate::units::Size::bytes), Some(512 << 20));
    for kind in [ContentType::Json, ContentType::MessagePack] {
        let body = encode(&task, kind);
        assert_eq!(ContentType::detect(None, &body), Ok(kind));
        assert_eq!(decode(&body, kind, &Limits::default()).as_ref(), Ok(&task));
    }
}

#[test]
fn refusals_name_the_field_the_value_and_the_remedy() {
    insta::assert_snapshot!(
        [
            refusal(&json!({"task": "x"})),
            refusal(&json!({"v": 1})),
            refusal(&json!([1])),
            refusal(&json!({"v": 2, "task": "x"})),
            refusal(&json!({"v": 1, "task": "x", "priority": 12})),
            refusal(&json!({"v": 1, "task": "x", "timeout": "soon"})),
            refusal(&json!({"v": 1, "task": "x", "args": [1]})),
            refusal(&json!({"v": 1, "task": "x", "args": {"a": [{"$": "VolumePth", "filename": "x"}]}})),
            refusal(&json!({"v": 1, "task": "x", "args": {"a": {"$": "VolumePath", "filename": "../x"}}})),
            refusal(&json!({"v": 1, "task": "x", "args": {"a": {"$": "VolumePath", "filename": "/x"}}})),
            refusal(&json!({"v": 1, "task": "x", "args": {"a": {"$": "VolumePath", "file": "x"}}})),
            refusal(&json!({"v": 1, "task": "x", "args": {"a": {"$": 7}}})),
            refusal(&json!({"v": 1, "task": "x", "retry": {"max_attempts": 0}})),
            refusal(&json!({"v": 1, "task": "x", "resources": {"gpu": 1}})),
            refusal(&json!({"v": 1, "task": "x", "result_hooks": {}})),
        ]
        .join("\n")
    );
}

#[test]
fn depth_nodes_size_and_double_keys_are_bounded() {
    let limits = Limits { max_bytes: 1_000_000, max_depth: 8, max_nodes: 50 };
    let refuse = |body: &[u8]| decode(body, ContentType::Json, &limits).unwrap_err().to_string();
    let deep = format!(r#"{{"v":1,"task":"x","args":{{"a":{}{}}}}}"#, "[".repeat(20), "]".repeat(20));
    assert!(refuse(deep.as_bytes()).contains("nested deeper than 8 levels"));
    let endless = "[".repeat(200_000);
    assert!(refuse(endless.as_bytes()).contains("nested deeper"));
    let wide = format!(r#"{{"v":1,"task":"x","args":{{"a":[{}0]}}}}"#, "0,".repeat(100));
    assert!(refuse(wide.as_bytes()).contains("more than 50 values"));
    assert!(refuse(br#"{"v":1,"v":1}"#).contains("stands twice"));
    assert!(refuse(&vec![b' '; 1_000_001]).contains("1000001 bytes"));
    let msgpack_deep = [vec![0x91; 5_000], vec![0xc0]].concat();
    assert!(decode(&msgpack_deep, ContentType::MessagePack, &limits).is_err());
}

#[test]
fn content_types_other_than_json_and_msgpack_are_refused_by_name() {
    let error = ContentType::detect(Some("application/x-python-serialize"), b"").unwrap_err().to_string();
    assert!(error.contains("application/x-python-serialize"), "{error}");
    assert_eq!(ContentType::detect(Some("application/json; charset=utf-8"), b""), Ok(ContentType::Json));
}

fn volume() -> impl Strategy<Value = Volume> {
    prop_oneof![
        Just(Volume::TemporaryVolume(TemporaryVolume::default())),
        "[a-z]{1,8}".prop_map(|id| Volume::TemporaryVolume(TemporaryVolume {
            id: Some(id),
            ..TemporaryVolume::default()
        })),
        ("/[a-z]{1,8}", "/[a-z]{1,8}").prop_map(|(host_path, container_path)| {
            Volume::BindMountVolume(BindMountVolume { host_path, container_path, mode: "rw".to_owned() })
        }),
    ]
}

fn arg() -> impl Strategy<Value = Arg> {
    let leaf = prop_oneof![
        Just(Arg::Null),
        any::<bool>().prop_map(Arg::Bool),
        any::<i64>().prop_map(Arg::from),
        any::<u64>().prop_map(|n| Arg::Number(n.into())),
        (-1.0e300..1.0e300_f64).prop_map(|n| serde_json::Number::from_f64(n).map_or(Arg::Null, Arg::Number)),
        any::<String>().prop_map(Arg::Text),
        ("[a-z]{1,8}(/[a-z]{1,8})?", proptest::option::of(volume())).prop_map(|(name, volume)| {
            TransformSpec::VolumePath(VolumePath { filename: name.try_into().unwrap(), volume }).into()
        }),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Arg::List),
            proptest::collection::vec(("[^$]{0,12}", inner), 0..6)
                .prop_map(|entries| Arg::Map(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_task_comes_back_from_both_formats(
        args in proptest::collection::vec(("[a-z_]{1,12}", arg()), 0..5),
        priority in 0_u64..=9,
        generation in 0_u32..5,
        timeout in proptest::option::of(0_u64..100_000_000),
        labels in proptest::collection::btree_map("[a-z]{1,6}", any::<String>(), 0..3),
    ) {
        let mut task = Task::new("docker_run", args.into_iter().collect());
        task.priority = crate::task::Priority::new(priority).unwrap();
        task.generation = Generation(generation);
        task.timeout = timeout.map(|ms| crate::units::Span(std::time::Duration::from_millis(ms)));
        task.labels = labels;
        for kind in [ContentType::Json, ContentType::MessagePack] {
            prop_assert_eq!(&decode(&encode(&task, kind), kind, &Limits::default()).unwrap(), &task);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in [ContentType::Json, ContentType::MessagePack] {
            let _ = decode(&body, kind, &Limits::default());
        }
    }
}
