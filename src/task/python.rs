//! Python's `str` of an argument, because `girder_worker` passes `str(value)` of each one to the container.

use std::fmt::Write;

use serde_json::Number;

use super::Arg;

/// `str(value)`: texts as they are, true as `True`, null as `None`, lists and maps as Python prints them.
/// A transform inside a list or map has no text here and is shown by its name; the pipeline replaces transforms before.
pub fn python_str(arg: &Arg) -> String {
    match arg {
        Arg::Text(text) => text.clone(),
        other => {
            let mut out = String::new();
            repr(other, &mut out);
            out
        }
    }
}

fn repr(arg: &Arg, out: &mut String) {
    match arg {
        Arg::Null => out.push_str("None"),
        Arg::Bool(true) => out.push_str("True"),
        Arg::Bool(false) => out.push_str("False"),
        Arg::Number(number) => number_repr(number, out),
        Arg::Text(text) => text_repr(text, out),
        Arg::List(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                repr(item, out);
            }
            out.push(']');
        }
        Arg::Map(map) => {
            out.push('{');
            for (n, (key, item)) in map.iter().enumerate() {
                out.push_str(if n == 0 { "" } else { ", " });
                text_repr(key, out);
                out.push_str(": ");
                repr(item, out);
            }
            out.push('}');
        }
        Arg::Transform(spec) => out.push_str(spec.name()),
    }
}

/// Integers as digits; floats as `repr(float)`: shortest digits, an exponent outside 1e-4..1e16, always a point or exponent.
pub(super) fn number_repr(number: &Number, out: &mut String) {
    match number.as_f64() {
        Some(float) if number.is_f64() => {
            let magnitude = float.abs();
            let text = if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
                let scientific = format!("{float:e}");
                let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
                format!("{digits}e{sign}{exponent:0>2}")
            } else if float.fract() == 0.0 {
                format!("{float:.1}")
            } else {
                float.to_string()
            };
            out.push_str(&text);
        }
        _ => out.push_str(&number.to_string()),
    }
}

/// `repr(str)`: single quotes unless the text holds one and no double quote.
pub(super) fn text_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: serde_json::Value) -> String {
        python_str(&Arg::from_value(value, "args").unwrap())
    }

    /// Each right side was printed by CPython 3.11's `str`.
    #[test]
    fn values_read_as_python_prints_them() {
        assert_eq!(text(json!(true)), "True");
        assert_eq!(text(json!(null)), "None");
        assert_eq!(text(json!(2.5)), "2.5");
        assert_eq!(text(json!(3.0)), "3.0");
        assert_eq!(text(json!(1e16)), "1e+16");
        assert_eq!(text(json!(0.00001)), "1e-05");
        assert_eq!(text(json!(0.0001)), "0.0001");
        assert_eq!(text(json!(-7)), "-7");
        assert_eq!(text(json!("it's")), "it's");
        assert_eq!(text(json!(["it's", "a\"'b", 1, false])), r#"["it's", 'a"\'b', 1, False]"#);
        assert_eq!(text(json!({"k": [1.0, "x\n\u{1}"]})), r"{'k': [1.0, 'x\n\x01']}");
    }
}
