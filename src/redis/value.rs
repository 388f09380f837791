//! Reads what a server answers. Nothing is taken on trust: what is not as expected is [`LinkError::Unreadable`].

use redis::Value;

use super::LinkError;

fn unexpected(wanted: &str, value: &Value) -> LinkError {
    // Never the value itself: it may hold a message's body.
    let kind = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::VerbatimString { .. } => "a text",
        Value::Okay => "OK",
        Value::Array(_) | Value::Set(_) => "a list",
        Value::Map(_) => "a map",
        _ => "something else",
    };
    LinkError::Unreadable(format!("the server answered {kind} in place of {wanted}"))
}

/// A whole number.
pub fn int(value: &Value) -> Result<i64, LinkError> {
    match value {
        Value::Int(number) => Ok(*number),
        Value::BulkString(bytes) => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unexpected("a number", value)),
        _ => Err(unexpected("a number", value)),
    }
}

/// A number that is never below zero.
pub fn count(value: &Value) -> Result<u64, LinkError> {
    Ok(u64::try_from(int(value)?).unwrap_or(0))
}

/// A list.
pub fn list(value: Value) -> Result<Vec<Value>, LinkError> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected("a list", &other)),
    }
}

/// A list of exactly so many.
pub fn row<const N: usize>(value: Value) -> Result<[Value; N], LinkError> {
    let values = list(value)?;
    let found = values.len();
    values.try_into().map_err(|_| LinkError::Unreadable(format!("{found} values came in place of {N}")))
}

/// Bytes.
pub fn bytes(value: Value) -> Result<Vec<u8>, LinkError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        Value::Okay => Ok(b"OK".to_vec()),
        other => Err(unexpected("a text", &other)),
    }
}

/// Text; what is no UTF-8 is replaced.
pub fn text(value: Value) -> Result<String, LinkError> {
    let bytes = bytes(value)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Text that may be missing.
pub fn text_if_any(value: Value) -> Result<Option<String>, LinkError> {
    match value {
        Value::Nil | Value::Boolean(false) => Ok(None),
        other => text(other).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_expected_is_told_without_its_content() {
        let secret = Value::BulkString(b"a token".to_vec());
        let error = int(&secret).unwrap_err().to_string();
        assert!(error.contains("a text") && !error.contains("token"), "{error}");
        assert!(row::<2>(Value::Array(vec![Value::Nil])).is_err());
        assert_eq!(text_if_any(Value::Nil), Ok(None));
        assert_eq!(count(&Value::Int(-3)), Ok(0));
    }
}
