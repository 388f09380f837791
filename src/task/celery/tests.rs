//! What single messages mean; whole captured ones are tried in `tests/it/corpus.rs`.

use std::fmt::Write as _;
use std::io::Write as _;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::task::arg::Arg;
use crate::task::envelope::Refusal;
use crate::task::jsonpickle::KeyOrder;
use crate::task::message::{Properties, decode};
use crate::task::transform::TransformSpec;

const DOCKER_RUN: &str = "girder_worker.docker.tasks.docker_run";
const SLICER_RUN: &str = "slicer_cli_web.girder_worker_plugin.direct_docker_run.run";

fn message(task: &str, headers: &Value, body: &str) -> RawMessage {
    let mut message = RawMessage::new(body.as_bytes().to_vec());
    message.headers =
        vec![("task".to_owned(), Json::Text(task.to_owned())), ("id".to_owned(), Json::from(&json!("t-1")))];
    message.headers.extend(Json::from(headers).entries().unwrap_or_default().iter().cloned());
    message.content_type = Some("application/json".to_owned());
    message
}

/// The task of a docker_run with these arguments, each in Python's JSON.
fn called(args: &str, kwargs: &str) -> Result<Task, DecodeError> {
    task_of(&message(DOCKER_RUN, &json!({}), &format!("[{args}, {kwargs}, {{}}]")))
}

fn task_of(message: &RawMessage) -> Result<Task, DecodeError> {
    match decode(message, &Limits::default())? {
        Decoded::Task(task) => Ok(task),
        Decoded::Unknown(unknown) => panic!("unknown: {unknown:?}"),
    }
}

fn args_of(kwargs: &str) -> Value {
    Arg::Map(called(r#"["busybox"]"#, kwargs).unwrap().args).to_value()
}

fn refusal(kwargs: &str) -> (Refusal, String) {
    let error = called(r#"["busybox"]"#, kwargs).unwrap_err();
    (error.refusal(), error.to_string())
}

#[test]
fn positions_and_keywords_are_the_same_arguments() {
    let by_position =
        called(r#"["img", false, "sh", ["a"], {"/h": {"bind": "/c", "mode": "ro"}}, false]"#, "{}").unwrap();
    let by_keyword = called(
        "[]",
        r#"{"image": "img", "pull_image": false, "entrypoint": ["sh"], "container_args": ["a"],
            "volumes": {"/h": {"bind": "/c", "mode": "ro"}}, "remove_container": false}"#,
    )
    .unwrap();
    assert_eq!(by_position.args, by_keyword.args);
    assert_eq!(
        Arg::Map(by_position.args).to_value(),
        json!({"image": "img", "pull": "never", "entrypoint": ["sh"], "container_args": ["a"],
               "volumes": {"/h": {"bind": "/c", "mode": "ro"}}, "remove_container": false})
    );
    let error = |args: &str, kwargs: &str| called(args, kwargs).unwrap_err().to_string();
    assert_eq!(
        error(r#"["img"]"#, r#"{"image": "img"}"#),
        "field kwargs.image: stands among the positional arguments, too"
    );
    assert!(error("[1,2,3,4,5,6,7]", "{}").contains("7 positional arguments are too many, the most is 6"));
    assert!(error("[]", "{}").starts_with("field image: must be the name of an image"));
    assert!(error("[7]", "{}").ends_with("(got a number)"));
}

#[test]
fn every_way_to_say_whether_to_pull_is_understood() {
    let pull = |given: &str| args_of(&format!(r#"{{"pull_image": {given}}}"#))["pull"].clone();
    assert_eq!(args_of("{}")["pull"], "always");
    assert_eq!([pull("true"), pull("1"), pull("\"yes\"")], ["always"; 3]);
    assert_eq!([pull("false"), pull("0"), pull("\"\""), pull("null")], ["never"; 4]);
    assert_eq!(pull("\"if-not-present\""), "missing");
}

#[test]
fn container_arguments_become_what_pythons_str_makes_of_them() {
    let args = args_of(
        r#"{"container_args": [true, null, 2.5, NaN, 123456789012345678901234567890, ["it's", {"a": 1}],
            {"py/tuple": ["a"]}, {"py/b64": "aGk="}, {"py/reduce": [{"py/type": "decimal.Decimal"}, {"py/tuple": ["1.50"]}]},
            {"py/object": "uuid.UUID", "hex": "00000000000000000000000000000007"}]}"#,
    );
    assert_eq!(
        args["container_args"],
        json!([
            true,
            null,
            2.5,
            "nan",
            "123456789012345678901234567890",
            "[\"it's\", {'a': 1}]",
            "('a',)",
            "b'hi'",
            "1.50",
            "00000000-0000-0000-0000-000000000007"
        ])
    );
    assert_eq!(args_of(r#"{"container_args": "a b"}"#)["container_args"], json!(["a", " ", "b"]));
    assert_eq!(args_of(r#"{"container_args": null}"#).get("container_args"), None);
    assert!(refusal(r#"{"container_args": 7}"#).1.contains("must be a list"));
}

#[test]
fn other_keywords_become_options_and_those_of_girder_worker_itself_are_dropped() {
    let args = args_of(
        r#"{"tty": true, "detach": false, "environment": {"json://1": {"py/tuple": ["x"]}},
            "labels": {"py/reduce": [{"py/type": "collections.OrderedDict"}, {"py/tuple": []}, null, null,
                       {"py/tuple": [{"py/tuple": ["k", "v"]}]}]},
            "cap_add": {"py/set": ["NET_ADMIN"]}, "itself": [["a", {"py/id": 6}]]}"#,
    );
    assert_eq!(
        args["options"],
        json!({"environment": {"1": ["x"]}, "labels": {"k": "v"}, "cap_add": ["NET_ADMIN"], "itself": [["a", "[...]"]]})
    );
}

#[test]
fn the_task_of_slicer_takes_keywords_only_and_filters_the_output() {
    let task = task_of(&message(
        SLICER_RUN,
        &json!({}),
        r#"[[], {"image": "i", "pull_image": "if-not-present"}, {}]"#,
    ));
    let args = task.unwrap().args;
    assert_eq!(args["pull"], Arg::from("missing"));
    assert_eq!(args[call::STDOUT_FILTER], Arg::from(call::SLICER_PROGRESS));
    let error = task_of(&message(SLICER_RUN, &json!({}), r#"[["i"], {}, {}]"#)).unwrap_err().to_string();
    assert!(error.contains("send keywords"), "{error}");
}

#[test]
fn classes_that_are_not_known_are_poison_and_those_docker_run_cannot_use_name_the_ones_it_can() {
    let (refused, text) = refusal(r#"{"container_args": [{"py/object": "my.VolumePth", "x": 1}]}"#);
    assert_eq!(refused, Refusal::Poison);
    assert!(
        text.starts_with(
            "field kwargs.container_args[0]: my.VolumePth is not known here, did you mean \"VolumePath\"?"
        ),
        "{text}"
    );
    let (refused, text) = refusal(r#"{"environment": {"A": {"py/function": "os.system"}}}"#);
    assert_eq!(refused, Refusal::Poison);
    assert!(text.starts_with("field kwargs.environment.A: os.system is not known here"), "{text}");
    for prefix in ["girder_worker.utils.transforms", "girder_worker_utils.transforms"] {
        let args = args_of(&format!(
            r#"{{"container_args": [{{"py/object": "{prefix}.girder_io.GirderItemId", "gc": null, "item_id": "i"}}]}}"#
        ));
        assert_eq!(args["container_args"][0]["instead"], "GirderItemIdToVolume", "{args}");
    }
    let gc = r#"{"py/object": "my.Client", "urlBase": "http://g/", "token": "t"}"#;
    let (refused, text) = refusal(&format!(
        r#"{{"container_args": [{{"py/object": "{SLICER}.GirderToken", "gc": {gc}}}]}}"#,
        SLICER = "slicer_cli_web.girder_worker_plugin.direct_docker_run"
    ));
    assert_eq!((refused, text.contains("my.Client")), (Refusal::Poison, true), "{text}");
}

#[test]
fn wrong_fields_of_transforms_are_named() {
    let path = |attributes: &str| {
        refusal(&format!(
            r#"{{"container_args": [{{"py/object": "girder_worker.docker.transforms.VolumePath", {attributes}}}]}}"#
        ))
    };
    for (attributes, expected) in [
        (r#""filename": "../x", "_volume": null"#, "must not contain `..`"),
        (r#""filename": null, "_volume": null"#, "kwargs.container_args[0].filename: must be a text"),
        (r#""filename": "x", "_volume": "/tmp""#, "kwargs.container_args[0]._volume: must be a transform"),
        (r#""filename": "x", "_volume": {"py/id": 4}"#, "refers to itself"),
        (
            r#""filename": "x", "_volume": {"py/object": "girder_worker.docker.transforms.TemporaryVolume", "_mode": 99999}"#,
            "must be permission bits",
        ),
    ] {
        let (refused, text) = path(attributes);
        assert_eq!(refused, Refusal::Unusable);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn two_mentions_of_one_temporary_volume_are_one_and_two_volumes_are_two() {
    let volume =
        r#"{"py/object": "girder_worker.docker.transforms.TemporaryVolume", "host_dir": null, "_mode": 511}"#;
    let args = args_of(&format!(r#"{{"volumes": [{volume}, {volume}, {{"py/id": 4}}]}}"#));
    assert_eq!(
        args["volumes"],
        json!([{"$": "TemporaryVolume", "id": "volume-1"}, {"$": "TemporaryVolume", "id": "volume-2"},
               {"$": "TemporaryVolume", "id": "volume-1"}])
    );
}

/// A hook that uploads from a temporary volume with these settings.
fn hook(host_dir: &str) -> Value {
    json!({"py/object": "girder_worker.docker.transforms.girder.GirderUploadVolumePathToItem", "gc": null, "item_id": "i",
           "_volumepath": {"py/object": "girder_worker.docker.transforms.VolumePath", "filename": "f",
               "_volume": {"py/object": "girder_worker.docker.transforms.TemporaryVolume", "host_dir": host_dir, "_mode": 511}}})
}

#[test]
fn a_hooks_volume_is_the_bodys_only_one_like_it() {
    let volume = |dir: &str| {
        format!(
            r#"{{"py/object": "girder_worker.docker.transforms.TemporaryVolume", "host_dir": "{dir}", "_mode": 511}}"#
        )
    };
    let body =
        format!(r#"[["i"], {{"volumes": [{}, {}, {}]}}, {{}}]"#, volume("/a"), volume("/b"), volume("/b"));
    let of = |dir: &str| task_of(&message(DOCKER_RUN, &json!({"girder_result_hooks": [hook(dir)]}), &body));
    let id = |dir: &str| {
        serde_json::to_value(&of(dir).unwrap().result_hooks).unwrap()[0]["volumepath"]["volume"]["id"].clone()
    };
    assert_eq!(id("/a"), "volume-1");
    assert_eq!(id("/c"), "hook-volume-4");
    // Which of two it is cannot be told.
    assert_eq!(id("/b"), "hook-volume-4");
}

#[test]
fn a_hook_whose_order_was_lost_reads_as_long_as_no_used_value_is_a_reference() {
    let mut lost = hook("/a");
    lost["job"] = json!({"access": {"py/id": 21}, "_id": {"py/object": "bson.objectid.ObjectId", "py/state": {"py/b64": "awQLFOj7bjqVM1nT"}}});
    let mut message = message(DOCKER_RUN, &json!({"girder_result_hooks": [lost]}), r#"[["i"], {}, {}]"#);
    assert!(task_of(&message).unwrap_err().to_string().contains("py/id"));
    message.header_order = KeyOrder::Lost;
    assert!(matches!(
        task_of(&message).unwrap().result_hooks[..],
        [TransformSpec::GirderUploadVolumePathToItem(_)]
    ));
}

#[test]
fn a_task_of_another_name_is_told_apart_without_reading_its_body() {
    let mut other = message("slicer_cli_web.image_job.ingest_from_docker", &json!({}), "not json");
    other.content_type = Some("application/x-python-serialize".to_owned());
    let Ok(Decoded::Unknown(unknown)) = decode(&other, &Limits::default()) else { panic!("not told apart") };
    assert_eq!(
        (unknown.name.as_str(), unknown.id.as_deref()),
        ("slicer_cli_web.image_job.ingest_from_docker", Some("t-1"))
    );
    let mut first = RawMessage::new(&br#"{"task": "x.y", "id": "7", "args": [], "kwargs": {}}"#[..]);
    first.content_type = Some("application/json".to_owned());
    assert!(matches!(decode(&first, &Limits::default()), Ok(Decoded::Unknown(_))));
    let mut ours = message(DOCKER_RUN, &json!({}), "x");
    ours.content_type = Some("application/x-yaml".to_owned());
    let error = decode(&ours, &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("reading YAML runs code"), "{error}");
}

#[test]
fn headers_win_over_the_body_of_a_hybrid_message_and_taskset_is_the_group_of_protocol_one() {
    let body = r#"{"task": "other", "id": "b", "retries": 3, "args": ["i"], "kwargs": {}, "group": "g", "taskset": "s"}"#;
    let hybrid = CeleryContext::of(&task_of(&message(DOCKER_RUN, &json!({}), body)).unwrap()).unwrap();
    assert_eq!((hybrid.id.as_str(), hybrid.retries, hybrid.protocol), ("t-1", 3, 2));
    let mut first = RawMessage::new(body.replace("other", DOCKER_RUN));
    first.content_type = Some("application/json".to_owned());
    let context = CeleryContext::of(&task_of(&first).unwrap()).unwrap();
    assert_eq!((context.id.as_str(), context.group.as_deref(), context.protocol), ("b", Some("s"), 1));
}

#[test]
fn compressed_bodies_are_expanded_within_bounds() {
    let body = br#"[["i"], {}, {}]"#;
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(body).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(body).unwrap();
    let of = |name: &str, body: Vec<u8>| {
        let mut message = message(DOCKER_RUN, &json!({"compression": name}), "");
        message.body = body.into();
        task_of(&message)
    };
    let zlib = zlib.finish().unwrap();
    assert!(of("application/x-gzip", zlib.clone()).is_ok());
    assert!(of("application/x-gzip", gzip.finish().unwrap()).is_ok());
    assert!(of("application/x-bz2", bzip2.finish().unwrap()).is_ok());
    assert!(
        of("application/x-gzip", zlib[..8].to_vec()).unwrap_err().to_string().contains("does not expand")
    );
    assert!(of("application/zstd", zlib).unwrap_err().to_string().contains("application/zstd"));
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 8 << 20]).unwrap();
    assert!(matches!(of("application/x-gzip", bomb.finish().unwrap()), Err(DecodeError::Large { .. })));
}

#[test]
fn times_without_an_offset_are_utc_and_pythons_last_one_means_never() {
    let eta = |text: &str| {
        task_of(&message(DOCKER_RUN, &json!({"eta": text}), r#"[["i"], {}, {}]"#))
            .map(|task| task.not_before.unwrap().to_string())
    };
    assert_eq!(eta("2027-01-02T03:04:05").unwrap(), "2027-01-02T03:04:05Z");
    assert_eq!(eta("2027-01-02T03:04:05.000006-05:00").unwrap(), "2027-01-02T08:04:05.000006Z");
    assert_eq!(eta("2027-01-02T03:04:05Z").unwrap(), "2027-01-02T03:04:05Z");
    assert_eq!(eta("9999-12-31T23:59:59.999999").unwrap(), Timestamp::MAX.to_string());
    assert!(eta("soon").unwrap_err().to_string().contains("ISO 8601"));
}

#[test]
fn the_sooner_time_limit_ends_an_attempt() {
    let of = |limit: Value| task_of(&message(DOCKER_RUN, &json!({"timelimit": limit}), r#"[["i"], {}, {}]"#));
    assert_eq!(of(json!([10, 2.5])).unwrap().timeout, Some(Span(std::time::Duration::from_millis(2500))));
    assert_eq!(of(json!([null, null])).unwrap().timeout, None);
    assert_eq!(of(json!([0, null])).unwrap().timeout, None);
    for bad in [json!(7), json!([1]), json!([-1, null]), json!(["1", null])] {
        assert!(of(bad).unwrap_err().to_string().contains("timelimit"));
    }
    // Longer than anybody waits is no limit.
    assert_eq!(of(json!([1e300, null])).unwrap().timeout, None);
}

#[test]
fn priorities_lie_around_the_middle_in_the_brokers_own_order() {
    let of = |priority, priority_order| {
        let mut message = message(DOCKER_RUN, &json!({}), r#"[["i"], {}, {}]"#);
        message.properties = Properties { priority, priority_order, ..Properties::default() };
        u64::from(task_of(&message).unwrap().priority)
    };
    assert_eq!(
        [None, Some(0), Some(1), Some(5), Some(9), Some(200)].map(|p| of(p, PriorityOrder::HighestFirst)),
        [5, 5, 6, 8, 9, 9]
    );
    assert_eq!(
        [None, Some(0), Some(3), Some(6), Some(9)].map(|p| of(p, PriorityOrder::LowestFirst)),
        [5, 5, 3, 2, 0]
    );
}

#[test]
fn what_follows_a_task_travels_as_documents_of_their_own() {
    let body = r#"{"py/tuple": [{"py/tuple": ["i"]}, {}, {"chord": null, "errbacks": null,
        "callbacks": null, "chain": [{"py/object": "celery.canvas.Signature", "task": "a.b", "args": {"py/tuple": []},
        "kwargs": {"v": [{"py/object": "girder_worker.docker.transforms.HostStdOut"}, {"py/id": 6}]}, "options": {"task_id": "n"},
        "subtask_type": null, "immutable": true, "__dict__": {"_app": {"py/reduce": [{"py/function": "f"}, {"py/tuple": []}]}}}]}]}"#;
    let task = task_of(&message(DOCKER_RUN, &json!({}), body)).unwrap();
    let context = CeleryContext::of(&task).unwrap();
    let [next] = &context.chain[..] else { panic!("{:?}", context.chain) };
    assert_eq!((next.task.as_str(), next.immutable), ("a.b", true));
    assert_eq!(
        next.document,
        r#"{"task": "a.b", "args": {"py/tuple": []}, "kwargs": {"v": [{"py/object": "girder_worker.docker.transforms.HostStdOut"}, {"py/id": 3}]}, "options": {"task_id": "n"}, "subtask_type": null, "immutable": true}"#
    );
    let again = next.read(&Limits::default()).unwrap();
    assert_eq!(again.get(&again.root, "task").and_then(|node| node.text()), Some("a.b"));
    let wrong = message(DOCKER_RUN, &json!({}), r#"[["i"], {}, {"chain": [{"args": []}]}]"#);
    assert!(
        task_of(&wrong).unwrap_err().to_string().starts_with("field embed.chain[0]: must be a signature")
    );
}

#[test]
fn a_refused_message_still_tells_whom_to_answer() {
    let mut refused = message(
        DOCKER_RUN,
        &json!({"jobInfoSpec": {"url": "http://g/api/v1/job/7", "headers": {"Girder-Token": "t"}}, "group": 7}),
        "not json",
    );
    refused.properties.reply_to = Some("q".to_owned());
    assert!(task_of(&refused).is_err());
    let (context, girder) = sender(&refused, &Limits::default()).unwrap();
    assert_eq!((context.id.as_str(), context.reply_to.as_deref()), ("t-1", Some("q")));
    let girder = girder.unwrap();
    assert_eq!(
        (girder.api_url.as_str(), girder.job.unwrap().url.as_str()),
        ("http://g/api/v1", "http://g/api/v1/job/7")
    );
    assert!(sender(&RawMessage::new(&b"x"[..]), &Limits::default()).is_none());
}

#[test]
fn a_small_message_that_unfolds_without_end_is_refused() {
    let mut labels = r#"[["x"]"#.to_owned();
    for n in 4..40 {
        let _ = write!(labels, r#", [{{"py/id": {n}}}, {{"py/id": {n}}}]"#);
    }
    let (refused, text) = refusal(&format!(r#"{{"labels": {labels}]}}"#));
    assert_eq!(refused, Refusal::Unusable);
    assert!(text.contains("unfolds to more than 250000 values"), "{text}");
    let mut deep = "[]".to_owned();
    for _ in 0..59 {
        deep = format!("[{deep}]");
    }
    assert!(refusal(&format!(r#"{{"labels": {deep}}}"#)).1.contains("nested deeper than 56 levels"));
    let shared = format!(r#"[["{}"]{}]"#, "x".repeat(100_000), r#", {"py/id": 4}"#.repeat(60));
    for name in ["labels", "container_args"] {
        let (refused, text) = refusal(&format!(r#"{{"{name}": {shared}}}"#));
        assert_eq!(refused, Refusal::Unusable);
        assert!(text.contains("unfolds to more than 4194304 bytes"), "{text}");
    }
    let next = format!(r#"{{"task": "a", "kwargs": {{"x": "{}"}}}}"#, "x".repeat(100_000));
    let body = format!(r#"[["i"], {{}}, {{"chain": [{next}{}]}}]"#, r#", {"py/id": 5}"#.repeat(60));
    let error = task_of(&message(DOCKER_RUN, &json!({}), &body)).unwrap_err().to_string();
    assert!(error.contains("together larger"), "{error}");
}

/// Values that steer the reader into every branch.
fn value() -> impl Strategy<Value = Value> {
    let class = proptest::sample::select(vec![
        "girder_worker.docker.transforms.VolumePath",
        "girder_worker.docker.transforms.TemporaryVolume",
        "girder_worker.docker.transforms._DefaultTemporaryVolume",
        "girder_worker.docker.transforms.Connect",
        "girder_worker.docker.transforms.girder.GirderUploadVolumePathToItem",
        "slicer_cli_web.girder_worker_plugin.direct_docker_run.CommaJoinedVolumes",
        "girder_client.GirderClient",
        "celery.canvas.Signature",
    ]);
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-2_i64..9).prop_map(Value::from),
        "[a-z/.]{0,6}".prop_map(Value::from),
        (0_u64..12).prop_map(|id| json!({"py/id": id})),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| json!({"py/tuple": items})),
            (class.clone(), proptest::collection::vec(inner, 8)).prop_map(|(class, values)| {
                let names =
                    ["filename", "_volume", "_input", "_output", "_volumes", "gc", "task", "_volumepath"];
                let mut map: serde_json::Map<_, _> =
                    names.map(str::to_owned).into_iter().zip(values).collect();
                map.insert("py/object".to_owned(), class.into());
                Value::Object(map)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_message_makes_it_panic(args in value(), volumes in value(), embed in value(), hooks in value(), spec in value(), bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let headers = json!({"girder_result_hooks": [hooks], "jobInfoSpec": spec, "timelimit": [args]});
        let body = json!([["i"], {"container_args": args, "volumes": volumes, "stream_connectors": [embed]}, {"chain": [embed]}]);
        for headers in [&headers, &json!({})] {
            let mut message = message(DOCKER_RUN, headers, &body.to_string());
            if let Ok(Decoded::Task(task)) = decode(&message, &Limits::default()) {
                let written = crate::task::envelope::encode(&task, crate::task::ContentType::Json);
                prop_assert_eq!(crate::task::envelope::decode(&written, crate::task::ContentType::Json, &Limits::default()), Ok(task));
            }
            message.body = bytes.clone().into();
            let _ = decode(&message, &Limits::default());
            let _ = sender(&message, &Limits::default());
            message.headers.clear();
            let _ = decode(&message, &Limits::default());
            let _ = RawMessage::from_file(&bytes, &Limits::default());
        }
    }
}
