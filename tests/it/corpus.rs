//! Captured Celery messages decode to what Python makes of them, or are refused where they should be.
//!
//! `tests/corpus/README.md` tells the form. Every pair of files in that folder is tried, so a new one needs no code.

mod compare;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use longshore::docker::args::DockerRun;
use longshore::task::celery::{self, CeleryContext, Request};
use longshore::task::envelope::{self, ContentType};
use longshore::task::json::{self, Json};
use longshore::task::message::decode;
use longshore::task::{DecodeError, Decoded, Limits, RawMessage, Refusal, Task};

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use compare::Comparison;

/// A captured message and what Python makes of it.
struct Case {
    name: String,
    message: RawMessage,
    expected: Json,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Expectations are Python's JSON too: they hold lone surrogates and numbers that are none.
fn parsed(path: &Path) -> Json {
    let limits = Limits { max_bytes: 64 << 20, max_depth: 200, max_nodes: 5_000_000 };
    let bytes = std::fs::read(path).unwrap();
    json::parse(&bytes, &limits).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn case(name: &str) -> Case {
    let file = folder().join(format!("{name}.json"));
    let message = RawMessage::from_file(&std::fs::read(&file).unwrap(), &Limits::default()).unwrap();
    let expected = parsed(&folder().join(format!("{name}.expected.json")));
    Case { name: name.to_owned(), message, expected }
}

fn cases() -> Vec<Case> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| {
            let file = entry.unwrap().file_name().into_string().unwrap();
            file.strip_suffix(".expected.json").map(str::to_owned)
        })
        .collect();
    names.sort();
    names.iter().map(|name| case(name)).collect()
}

impl Case {
    fn text(&self, key: &str) -> &str {
        self.expected.get(key).and_then(Json::text).unwrap_or_default()
    }
    fn decoded(&self) -> Result<Decoded, DecodeError> {
        decode(&self.message, &Limits::default())
    }
    fn task(&self) -> Task {
        match self.decoded() {
            Ok(Decoded::Task(task)) => task,
            other => panic!("{}: no task: {other:?}", self.name),
        }
    }
    fn must_be_refused(&self) -> bool {
        self.text("verdict") == "reject"
            || (self.text("verdict") == "accept" && self.text("recommend") == "reject")
    }
    fn may_be_refused(&self) -> bool {
        self.must_be_refused() || self.text("recommend").ends_with("_or_reject")
    }
}

#[test]
fn the_corpus_is_there() {
    assert!(cases().len() >= 79, "only {} cases", cases().len());
}

#[test]
fn every_message_is_taken_or_refused_as_recommended() {
    let mut wrong = Vec::new();
    for case in cases() {
        let result = case.decoded();
        let right = match (&result, case.text("verdict")) {
            (Ok(Decoded::Unknown(_)), verdict) => verdict == "reject_unknown_task",
            (Err(error), _) if case.may_be_refused() => !error.to_string().is_empty(),
            // Python reads it, and the task can then only fail: the refusal says so.
            (Err(error), "accept") => error.refusal() == Refusal::Unusable,
            (Ok(Decoded::Task(_)), "accept") => !case.must_be_refused(),
            (Ok(Decoded::Task(_)) | Err(_), _) => false,
        };
        if !right {
            let shown = result.map(|decoded| matches!(decoded, Decoded::Task(_)));
            wrong.push(format!(
                "{}: {} / {}: {shown:?}",
                case.name,
                case.text("verdict"),
                case.text("recommend")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_accepted_message_has_the_arguments_canvas_and_hooks_that_python_decodes() {
    let limits = Limits::default();
    let mut wrong = Vec::new();
    for case in cases().iter().filter(|case| !case.may_be_refused()) {
        let request = Request::read(&case.message, &limits).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let mut body = Comparison::new(&request.document, case.text("recommend"));
        for (part, node) in [("args", &request.args), ("kwargs", &request.kwargs), ("embed", &request.embed)]
        {
            if let Some(expected) = case.expected.get(part) {
                body.compare(part, expected, node);
            }
        }
        wrong.extend(body.differences.iter().map(|difference| format!("{}: {difference}", case.name)));
        let hooks = celery::hook_documents(&case.message, &limits).unwrap();
        let expected = case.expected.get("hooks").and_then(Json::items).unwrap_or_default();
        if hooks.len() != expected.len() {
            wrong.push(format!("{}: {} hooks", case.name, hooks.len()));
        }
        for (n, (document, expected)) in hooks.iter().zip(expected).enumerate() {
            let mut hook = Comparison::new(document, case.text("recommend"));
            hook.compare(&format!("hooks[{n}]"), expected, &document.root);
            wrong.extend(hook.differences.iter().map(|difference| format!("{}: {difference}", case.name)));
        }
        for (key, expected) in case.expected.get("meta").and_then(Json::entries).unwrap_or_default() {
            if request.field(key).unwrap_or(&Json::Null) != expected {
                wrong.push(format!("{}: meta.{key} is not {expected}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_task_keeps_celerys_facts_and_girders_and_comes_back_from_its_envelope() {
    for case in cases() {
        let Ok(Decoded::Task(task)) = case.decoded() else { continue };
        let context = CeleryContext::of(&task).unwrap();
        let expected = |key: &str| Some(case.text(key)).filter(|text| !text.is_empty());
        assert_eq!(context.reply_to.as_deref(), expected("reply_to"), "{}", case.name);
        assert_eq!(context.correlation_id.as_deref(), expected("correlation_id"), "{}", case.name);
        assert_eq!(context.id, task.id.as_str());
        let job = case.expected.get("jobInfoSpec").filter(|json| json.entries().is_some());
        let girder = task.girder.clone();
        assert_eq!(girder.is_some(), expected("girder_api_url").is_some(), "{}", case.name);
        if let (Some(girder), Some(expected)) = (&girder, expected("girder_api_url")) {
            assert_eq!(girder.api_url, expected.trim_end_matches('/'));
        }
        let ours = girder.and_then(|girder| girder.job);
        assert_eq!(ours.is_some(), job.is_some(), "{}", case.name);
        if let (Some(ours), Some(job)) = (ours, job) {
            assert_eq!(Some(ours.url.as_str()), job.get("url").and_then(Json::text));
            let token =
                job.get("headers").and_then(|headers| headers.get("Girder-Token")).and_then(Json::text);
            assert_eq!(ours.headers.get("Girder-Token").map(longshore::task::Secret::expose), token);
        }
        for kind in [ContentType::Json, ContentType::MessagePack] {
            let again = envelope::decode(&envelope::encode(&task, kind), kind, &Limits::default());
            assert_eq!(again.as_ref(), Ok(&task), "{}", case.name);
        }
    }
}

#[test]
fn every_refusal_says_what_and_why() {
    let refusals: Vec<String> = cases()
        .iter()
        .filter_map(|case| match case.decoded() {
            Err(error) => Some(format!("{}: {error}", case.name)),
            Ok(_) => None,
        })
        .filter(|line| KNOWN_REFUSALS.iter().any(|known| line.starts_with(known)))
        .collect();
    insta::assert_snapshot!(refusals.join("\n"));
}

/// Of the messages that came with the corpus; a new file must not change a snapshot.
const KNOWN_REFUSALS: &[&str] = &["bad_", "g5_surrogate:"];

/// The native envelope of `name`, with its tokens replaced.
fn envelope_of(name: &str) -> String {
    let mut value = serde_json::to_value(case(name).task()).unwrap();
    redact(&mut value);
    serde_json::to_string_pretty(&value).unwrap()
}

fn redact(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match (key.as_str(), &value) {
                    ("token" | "client_token" | "Girder-Token", serde_json::Value::String(_)) => {
                        *value = serde_json::Value::String("[token]".to_owned());
                    }
                    ("argsrepr" | "kwargsrepr", _) => *value = serde_json::Value::String("[repr]".to_owned()),
                    _ => redact(value),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[test]
fn a_message_of_slicer_cli_web_reads_as_this_envelope() {
    insta::assert_snapshot!(envelope_of("g5_slicer_direct"));
}

#[test]
fn every_transform_of_the_older_girder_worker_reads_as_this_envelope() {
    insta::assert_snapshot!(envelope_of("gw010_c52_all"));
}

#[test]
fn docker_keywords_read_as_this_envelope() {
    insta::assert_snapshot!(envelope_of("g5_docker_kwargs"));
}

#[test]
fn a_hooks_temporary_volume_is_the_bodys_one_with_the_same_settings() {
    insta::assert_snapshot!(envelope_of("g3_temp_volume_file"));
}

#[test]
fn job_options_and_protocol_one_read_as_these_envelopes() {
    insta::assert_snapshot!([envelope_of("g5_job_options"), envelope_of("celery57_v1_full")].join("\n"));
}

/// What the decoder says of a damaged message is not asked, only that it says something, and that a task is whole.
fn stays_upright(message: &RawMessage) {
    let limits = Limits::default();
    let _ = celery::sender(message, &limits);
    if let Ok(Decoded::Task(task)) = decode(message, &limits) {
        let written = envelope::encode(&task, ContentType::Json);
        assert_eq!(envelope::decode(&written, ContentType::Json, &Limits::default()).as_ref(), Ok(&task));
    }
}

proptest! {
    #[test]
    fn no_damage_to_a_captured_message_makes_the_decoder_panic(
        which in any::<Index>(),
        edits in proptest::collection::vec((any::<Index>(), any::<Index>(), 0_usize..12), 1..6),
    ) {
        let cases = cases_once();
        let mut message = which.get(cases).message.clone();
        let mut body = message.body.to_vec();
        for (at, from, length) in edits {
            if body.is_empty() {
                break;
            }
            // Pieces of the message itself make likelier JSON than random bytes do.
            let at = at.index(body.len());
            let from = from.index(body.len());
            let piece = body[from..(from + length).min(body.len())].to_vec();
            body.splice(at..(at + length / 2).min(body.len()), piece);
        }
        message.body = body.into();
        stays_upright(&message);
    }
}

fn cases_once() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(cases)
}

/// What Python's values become where `docker_run` uses them: as the Python worker would have given them to docker-py.
#[test]
fn values_of_python_become_what_docker_py_would_have_got() {
    let temporary = |id: &str| json!({"$": "TemporaryVolume", "id": id});
    let rows = [
        ("dict_args", "/args/container_args", json!(["a"])),
        ("generator_args", "/args/container_args", json!(["a", "b"])),
        ("range_args", "/args/container_args", json!([0, 1, 2])),
        ("entrypoint_tuple", "/args/entrypoint", json!(["sh", "-c"])),
        ("positional_six", "/args/volumes", json!({"/a": {"bind": "/b", "mode": "ro"}})),
        (
            "zones",
            "/args/container_args",
            json!([
                "2026-01-02 00:00:00+00:00",
                "2026-01-03 00:00:00+00:00",
                "2026-01-02 00:00:00+01:30",
                "2026-01-02 00:00:00+00:00",
                "2026-01-02 00:00:00+01:00",
                "2026-01-02 00:00:00+00:00",
                "2026-07-02 00:00:00+02:00",
                "2026-07-02 03:00:00+02:00",
                "2026-10-25 02:30:00+02:00",
                "2026-10-25 02:30:00+02:00",
                "2026-01-02 00:00:00+01:00",
                "03:04:00+00:00",
                {"$": "VolumePath", "filename": "x"},
                {"$": "VolumePath", "filename": "y"}
            ]),
        ),
        ("dt_args", "/args/container_args/5", json!("-1 day, 0:00:03")),
        ("dt_args", "/args/container_args/6", json!("UTC")),
        ("dt_args", "/args/container_args/7", json!("X")),
        ("uuid_path_enum", "/args/container_args/0", json!("12345678-1234-5678-1234-567812345678")),
        ("uuid_path_enum", "/args/container_args/5", json!(".")),
        ("uuid_path_enum", "/args/container_args/7", json!("1/3")),
        ("bytes_env", "/args/container_args/0", json!("bytearray(b'')")),
        ("regex_arg", "/args/container_args/0", json!("re.compile('a.b')")),
        ("docker_types", "/args/options/mounts/0/Target", json!("/t")),
        ("docker_types", "/args/options/ulimits/0", json!({"Name": "nofile", "Soft": 10, "Hard": 20})),
        ("docker_types", "/args/options/log_config", json!({"Type": "json-file", "Config": {"a": "b"}})),
        ("limits_inf", "/celery/timelimit", json!({})),
        ("hook_nones", "/result_hooks/0/$", json!("GirderUploadVolumePathToItem")),
        ("hook_two_tempvols", "/args/volumes/1", temporary("volume-2")),
        ("hook_two_tempvols", "/result_hooks/0/volumepath/volume", temporary("hook-volume-3")),
        (
            "functions_args",
            "/args/container_args/0",
            json!({
                "$": "PythonTransform", "class": "girder_worker.utils.transforms.girder_io.GirderFileId",
                "instead": "GirderFileIdToVolume"
            }),
        ),
        ("functions_hook", "/result_hooks/0/instead", json!("GirderUploadVolumePathToFolder")),
        ("hook_plain_str", "/result_hooks/0/volumepath", json!({"$": "HostPath", "path": "/tmp/x"})),
    ];
    for (name, place, expected) in rows {
        let task = serde_json::to_value(case(&format!("own_gw5_{name}")).task()).unwrap();
        assert_eq!(task.pointer(place), Some(&expected), "{name}{place}: {task:#}");
    }
    for name in ["docker_types", "pipes", "positional_six", "entrypoint_forms"] {
        let task = case(&format!("own_gw5_{name}")).task();
        DockerRun::read(&task.args).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn docker_run_reads_the_arguments_that_the_decoder_writes() {
    for name in [
        "g3_pipes",
        "g3_temp_volume_file",
        "g5_docker_kwargs",
        "g5_pipe_in_file_stream",
        "g5_pipe_out_chunked",
        "g5_progress_pipe",
        "g5_slicer_direct",
        "g5_slicer_rest_cli",
        "g5_volumes_dict",
        "own_gw5_volumes_and_paths",
        "celery57_v1_full",
    ] {
        let task = case(name).task();
        let run = DockerRun::read(&task.args).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(run.stdout_filter.is_some(), name.contains("slicer"), "{name}");
    }
    // What the Python worker answers with a TypeError, docker_run refuses by its name.
    let error = DockerRun::read(&case("g5_cycle").task().args).unwrap_err();
    assert_eq!(error.to_string(), "args.options.cyc is not known");
}
