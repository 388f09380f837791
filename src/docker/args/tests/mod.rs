//! Each conversion's right side was taken from docker-py 7's `_create_container_args` and `HostConfig`.

mod keywords;
mod run;

use serde_json::{Value, json};

use super::*;

/// Reads `value` as arguments.
fn args(value: Value) -> ArgMap {
    match Arg::from_value(value, "args").unwrap() {
        Arg::Map(map) => map,
        other => panic!("{} is no map of arguments", other.kind()),
    }
}

/// The engine's request for options, as it is sent.
fn sent(options: Value) -> Result<Value, String> {
    let read = ContainerOptions::read(&args(options)).map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(read.into_body(None)).unwrap())
}

/// What stands at `pointer` of the engine's request for options.
fn sent_at(options: Value, pointer: &str) -> Value {
    let all = sent(options).unwrap();
    all.pointer(pointer).cloned().unwrap_or_else(|| panic!("nothing at {pointer} of {all}"))
}

fn refusal(options: &Value) -> String {
    sent(options.clone()).expect_err(&format!("{options} should be refused"))
}

#[test]
fn a_text_is_shortened_and_a_map_is_not_shown_in_a_refusal() {
    let long = refusal(&json!({ "mem_limit": "x".repeat(200) }));
    assert!(long.len() < 200, "{long}");
    let map = refusal(&json!({ "mem_limit": { "secret": "hunter2" } }));
    assert!(!map.contains("hunter2"), "{map}");
}
