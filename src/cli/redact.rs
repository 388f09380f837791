//! Takes tokens out of what is shown of a message. Whoever wants the bytes as they are asks for them.

use serde_json::Value;

/// Stands where something was taken out.
const REDACTED: &str = "[redacted]";

/// Parts of names whose values open something.
const SECRET_NAMES: &[&str] =
    &["token", "password", "passwd", "secret", "authorization", "apikey", "api_key", "credential", "cookie"];
/// Maps all of whose values may open something.
const SECRET_MAPS: &[&str] = &["headers", "environment", "env"];

/// The value with everything taken out that may open something.
pub(crate) fn redacted(value: &Value) -> Value {
    walk(value, false)
}

fn walk(value: &Value, secret: bool) -> Value {
    match value {
        Value::Object(map) => {
            let items = map.iter().map(|(name, item)| (name.clone(), walk(item, secret || opens(name))));
            Value::Object(items.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| walk(item, secret)).collect()),
        Value::String(_) | Value::Number(_) if secret => Value::String(REDACTED.to_owned()),
        plain => plain.clone(),
    }
}

fn opens(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_MAPS.contains(&name.as_str()) || SECRET_NAMES.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_opens_something_is_left() {
        let told = redacted(&json!({
            "args": {"image": "busybox", "options": {"environment": {"A": "hunter2"}, "labels": {"a": "b"}}},
            "girder": {"api_url": "http://g", "token": "hunter2", "job": {"headers": {"Girder-Token": "hunter2"}}},
            "result_hooks": [{"$": "GirderUploadVolumePathToItem", "girder": {"token": "hunter2"}}],
        }));
        assert!(!told.to_string().contains("hunter2"), "{told}");
        assert_eq!(told["args"]["image"], "busybox");
        assert_eq!(told["args"]["options"]["labels"]["a"], "b");
        assert_eq!(told["girder"]["api_url"], "http://g");
    }
}
