//! The compose file that replaces the worker of a Digital Slide Archive.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::longshore::Longshore;

/// What stands for an empty default.
const EXAMPLES: &[(&str, &str)] = &[
    ("GIRDER_WORKER_API_URL", "http://girder:8080/api/v1"),
    ("GIRDER_WORKER_DOCKER_RUN_OPTIONS", r#"{"mem_limit": "4g"}"#),
];

/// The file as Python's YAML parser reads it.
fn parsed() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(Command::new(root.join("tests/peer/girder/install")).status().unwrap().success());
    let output = Command::new(root.join("tests/.cache/girder/bin/python"))
        .args(["-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"])
        .stdin(std::fs::File::open(root.join("config/digital-slide-archive.yml")).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `${NAME:-default}` stands for where the variable is not set.
fn default_of(text: &str) -> String {
    let inner = text.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
    let default =
        inner.map(|inner| inner.split_once(":-").unwrap_or_else(|| panic!("no default in {text}")).1);
    default.unwrap_or(text).to_owned()
}

#[tokio::test]
async fn the_compose_file_of_a_slide_archive_sets_what_longshore_reads() {
    let file = parsed();
    let service = &file["services"]["longshore"];
    let variables = service["environment"].as_object().unwrap();
    let longshore = Longshore::new();
    let mut command = longshore.command(&["config", "show", "--output", "json"]);
    for (name, text) in variables {
        let default = default_of(text.as_str().unwrap());
        let example = EXAMPLES.iter().find(|(known, _)| known == name).map(|(_, example)| *example);
        let value = if default.is_empty() { example.unwrap_or_else(|| panic!("{name}")) } else { &default };
        command.env(name, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let origins: BTreeSet<&str> =
        shown["origins"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    for name in variables.keys() {
        assert!(origins.contains(name.as_str()), "{name} sets nothing; these do: {origins:?}");
    }
    assert_eq!(shown["settings"]["girder"]["direct_paths"], serde_json::json!(["/assetstore"]));

    // Docker mounts what the worker makes by its path on the host.
    let work = default_of(variables["TMPDIR"].as_str().unwrap());
    let volumes: Vec<&str> =
        service["volumes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let bound = |volume: &&str| volume.replace("${TMPDIR:-/tmp/girder_worker}", &work);
    let same = volumes.iter().map(bound).any(|volume| volume == format!("{work}:{work}"));
    assert!(same, "{volumes:?}");
    let check: Vec<&str> =
        service["healthcheck"]["test"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(check, ["CMD", "container-entrypoint", "doctor", "--quick"]);
    assert!(longshore.run(&["doctor", "--quick", "--help"]).await.stdout.contains("--quick"));
    assert!(!service["group_add"].as_array().unwrap().is_empty());
    assert_eq!(file["services"]["worker"]["profiles"], serde_json::json!(["celery"]));
}
