//! Identities, payloads and refusals of documents.

use proptest::prelude::*;

use super::*;
use crate::task::envelope::{DecodeError, Limits};
use crate::task::json::{self, Json};

fn read(text: &str, rules: Rules) -> Result<Document, DecodeError> {
    let limits = Limits::default();
    decode(&json::parse(text.as_bytes(), &limits).unwrap(), rules, "body", &limits)
}

fn document(text: &str) -> Document {
    read(text, Rules::default()).unwrap()
}

fn refusal(text: &str) -> String {
    read(text, Rules::default()).unwrap_err().to_string()
}

fn printed(text: &str) -> String {
    let document = document(text);
    document.python_str(&document.root).unwrap()
}

#[test]
fn lists_maps_objects_and_reductions_are_counted_when_entered_and_tuples_are_not() {
    let document = document(
        r#"{"a": [], "t": {"py/tuple": [{"py/set": [{}]}]}, "o": {"py/object": "x.Y", "b": {}},
            "r": {"py/reduce": [{"py/type": "x"}, {"py/tuple": [[]]}]}, "last": {"py/id": 6}}"#,
    );
    assert_eq!(document.len(), 7);
    assert_eq!(document.root, Node::Shared(0));
    assert_eq!(document.get(&document.root, "a"), Some(&Node::Shared(1)));
    assert_eq!(document.get(&document.root, "o"), Some(&Node::Shared(3)));
    assert_eq!(document.get(&document.root, "r"), Some(&Node::Shared(5)));
    assert_eq!(document.get(&document.root, "last"), Some(&Node::Shared(6)));
}

#[test]
fn a_state_map_takes_an_identity_and_becomes_attributes_and_a_null_state_is_none() {
    let text = r#"[{"py/object": "a.B", "py/state": {"x": [], "same": {"py/id": 2}}},
                   {"py/object": "a.C", "py/state": null}, {"py/id": 4}]"#;
    let document = document(text);
    let items = document.items(&document.root).unwrap();
    let first = document.instance(&items[0]).unwrap();
    assert_eq!(first.attribute("same"), Some(&Node::Shared(2)));
    assert_eq!(first.attribute("x"), Some(&Node::Shared(3)));
    let second = document.instance(&items[1]).unwrap();
    assert_eq!((second.class.as_str(), second.attributes.len(), &second.state), ("a.C", 0, &None));
    assert_eq!(items[2], Node::Shared(4));
}

#[test]
fn keys_that_are_documents_come_last_and_share_the_numbering() {
    let text = r#"{"json://{\"py/tuple\": [1, 2]}": [3], "b": [2], "json://1": {"py/id": 2}, "json://\"json://x\"": 4}"#;
    let document = document(text);
    let entries = document.entries(&document.root).unwrap();
    assert_eq!(entries[0], (Node::Text("b".to_owned()), Node::Shared(1)));
    assert_eq!(entries[1].0, Node::Tuple(vec![Node::Number(1.into()), Node::Number(2.into())]));
    assert_eq!(entries[2], (Node::Number(1.into()), Node::Shared(2)));
    assert_eq!(entries[3].0, Node::Text("json://x".to_owned()));
    let literal = Rules { keys: KeyText::Literal, ..Rules::default() };
    let kept = read(r#"{"json://1": 2}"#, literal).unwrap();
    assert_eq!(kept.get(&kept.root, "json://1"), Some(&Node::Number(2.into())));
}

#[test]
fn references_must_name_an_object_before_them() {
    for bad in ["999", "2", "-1", "\"x\"", "null", "0.5", "18446744073709551616"] {
        let error = refusal(&format!(r#"[[{{"py/id": {bad}}}]]"#));
        assert!(error.starts_with("field body[0][0]: \"py/id\" must"), "{bad}: {error}");
    }
    assert!(refusal(r#"[{"py/id": 1}, []]"#).contains("one of the 1 objects before it (got 1)"));
    let cycle = document(r#"[{"py/id": 0}]"#);
    assert_eq!(cycle.items(&cycle.root), Some(&[Node::Shared(0)][..]));
}

#[test]
fn references_are_left_open_where_the_order_of_maps_was_lost() {
    let rules = Rules { order: KeyOrder::Lost, ..Rules::default() };
    let document = read(r#"{"a": {"py/id": 7}, "b": {}}"#, rules).unwrap();
    assert_eq!(document.get(&document.root, "a"), Some(&Node::Unresolved));
}

#[test]
fn what_would_load_or_run_code_is_refused_and_what_names_it_is_only_a_name() {
    for tag in ["py/repr", "py/mod", "py/ref"] {
        let error = refusal(&format!(r#"[{{"{tag}": "os/os.sep"}}]"#));
        assert!(error.starts_with("field body[0]: ") && error.contains(tag), "{error}");
    }
    let reduce = document(r#"{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["true"]}]}"#);
    assert!(matches!(reduce.shared(&reduce.root), Some(Object::Reduce(_))));
    assert!(reduce.python_str(&reduce.root).is_err());
}

#[test]
fn payloads_are_read_strictly() {
    assert_eq!(document(r#"{"py/b85": "NM&qnZy;B1a%^NF"}"#).root, Node::Bytes(b"Hello World!".to_vec()));
    assert_eq!(document(r#"{"py/b64": "aGk="}"#).root, Node::Bytes(b"hi".to_vec()));
    assert!(refusal(r#"{"py/b64": "!!!"}"#).contains("\"!!!\""));
    assert!(refusal(r#"{"py/b85": "~~~~~"}"#).contains("py/b85"));
    assert!(refusal(r#"{"py/tuple": "ab"}"#).contains("must hold a list"));
    assert!(refusal(r#"{"py/object": 7}"#).contains("must hold a name"));
    assert!(refusal(r#"{"py/object": "datetime.datetime", "__reduce__": [1, ["AAAA"]]}"#).contains("bytes"));
    assert!(
        refusal(r#"{"py/object": "bson.objectid.ObjectId", "py/state": {"py/b64": "AAAA"}}"#).contains("12")
    );
}

#[test]
fn values_read_as_python_prints_them() {
    let when = r#"{"py/object": "datetime.datetime", "__reduce__": [{"py/type": "datetime.datetime"}, ["B+oLFwksNAGWZA==", {"py/reduce": [{"py/type": "datetime.timezone"}, {"py/tuple": [{"py/reduce": [{"py/type": "datetime.timedelta"}, {"py/tuple": [-1, 68400, 0]}]}]}]}]]}"#;
    assert_eq!(printed(when), "2026-11-23 09:44:52.104036-05:00");
    assert_eq!(
        printed(&format!("[{when}]")),
        "[datetime.datetime(2026, 11, 23, 9, 44, 52, 104036, tzinfo=datetime.timezone(datetime.timedelta(days=-1, seconds=68400)))]"
    );
    assert_eq!(
        printed(r#"{"py/object": "bson.objectid.ObjectId", "py/state": {"py/b64": "awQLFOj7bjqVM1nT"}}"#),
        "6b040b14e8fb6e3a953359d3"
    );
    assert_eq!(
        printed(r#"{"py/object": "uuid.UUID", "hex": "00000000000000000000000000000007"}"#),
        "00000000-0000-0000-0000-000000000007"
    );
    assert_eq!(
        printed(r#"{"py/reduce": [{"py/type": "pathlib.PosixPath"}, {"py/tuple": ["/", "tmp", "x"]}]}"#),
        "/tmp/x"
    );
    assert_eq!(printed(r#"{"py/reduce": [{"py/type": "decimal.Decimal"}, {"py/tuple": ["1.5"]}]}"#), "1.5");
    assert_eq!(
        printed(r#"[NaN, -Infinity, 123456789012345678901234567890, {"py/tuple": [1]}, {"py/b64": "/2En"}]"#),
        r#"[nan, -inf, 123456789012345678901234567890, (1,), b"\xffa'"]"#
    );
    assert_eq!(printed(r#"["a", {"me": {"py/id": 0}}]"#), "['a', {'me': [...]}]");
    assert_eq!(printed(r#"{"py/type": "builtins.int"}"#), "<class 'int'>");
}

#[test]
fn a_small_document_that_unfolds_to_a_huge_text_is_refused() {
    let doubled: Vec<String> = (0..40).map(|n| format!(r#"[{{"py/id": {n}}}, {{"py/id": {n}}}]"#)).collect();
    let bomb = document(&format!("{{\"py/tuple\": [[1], {}]}}", doubled.join(", ")));
    assert_eq!(bomb.python_str(&bomb.root), Err(text::NoText::Large));
}

#[test]
fn a_part_of_a_document_is_written_as_one_of_its_own() {
    let document = document(
        r#"[[1], {"a": {"py/object": "x.Y", "v": [2]}, "b": {"py/id": 3}, "t": {"py/tuple": [{"py/id": 2}]}}]"#,
    );
    let part = &document.items(&document.root).unwrap()[1];
    let written = encode(&document, part).unwrap().to_string();
    assert_eq!(
        written,
        r#"{"a": {"py/object": "x.Y", "v": [2]}, "b": {"py/id": 1}, "t": {"py/tuple": [{"py/id": 0}]}}"#
    );
}

#[test]
fn a_signature_with_more_than_a_map_holds_is_not_written_without_it() {
    for rest in [r#""py/state": [1]"#, r#""py/seq": [1]"#, r#""py/newargs": {"py/tuple": [1]}"#] {
        let document =
            document(&format!(r#"{{"py/object": "celery.canvas.Signature", "task": "t", {rest}}}"#));
        assert_eq!(encode(&document, &document.root), Err(super::encode::EncodeError::Unknown), "{rest}");
    }
}

#[test]
fn a_state_with_names_that_a_reader_would_not_find_again_is_not_written() {
    for state in [r#"{"py/b65": "awQJ"}"#, r#"{"a": 1, "default_factory": null}"#] {
        let document = document(&format!(r#"{{"py/object": "x.Y", "py/state": {state}}}"#));
        assert_eq!(encode(&document, &document.root), Err(super::encode::EncodeError::Key), "{state}");
    }
    let document = document(r#"{"py/object": "celery.canvas.Signature", "task": "t", "json://1": 2}"#);
    assert_eq!(encode(&document, &document.root), Err(super::encode::EncodeError::Key));
}

/// Documents rich in tags, well-formed or not.
fn tagged() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        (0_i64..6).prop_map(|n| Json::Number(n.into())),
        prop_oneof![
            "[a-zA-Z.+/=]{0,12}",
            Just("B+oLFwksNAGWZA==".to_owned()),
            Just("bson.objectid.ObjectId".to_owned()),
            Just("datetime.datetime".to_owned()),
            Just("celery.canvas.Signature".to_owned())
        ]
        .prop_map(Json::Text),
    ];
    let key = proptest::sample::select(vec![
        "py/tuple",
        "py/set",
        "py/b64",
        "py/b85",
        "py/b65",
        "py/id",
        "py/iterator",
        "py/object",
        "py/type",
        "py/reduce",
        "py/function",
        "py/mod",
        "py/state",
        "py/seq",
        "py/newargs",
        "py/newargsex",
        "__reduce__",
        "__dict__",
        "default_factory",
        "hex",
        "json://1",
        "json://[",
        "json://{\"py/id\": 0}",
        "a",
        "b",
    ]);
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::List),
            proptest::collection::vec((key.clone(), inner), 0..4).prop_map(|mut entries| {
                entries.sort_by_key(|(key, _)| *key);
                entries.dedup_by_key(|(key, _)| *key);
                Json::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_makes_it_panic_and_what_was_written_reads_the_same(json in tagged()) {
        for order in [KeyOrder::Kept, KeyOrder::Lost] {
            let rules = Rules { order, keys: KeyText::Document };
            let Ok(document) = decode(&json, rules, "body", &Limits::default()) else { continue };
            let text = document.python_str(&document.root);
            if let Ok(written) = encode(&document, &document.root) {
                let again = decode(&written, rules, "body", &Limits::default()).unwrap();
                // A signature, which Python shows in its own way, becomes a plain map: only what had a text keeps it.
                if text.is_ok() {
                    prop_assert_eq!(text, again.python_str(&again.root));
                }
                prop_assert_eq!(encode(&again, &again.root).map(|json| json.to_string()), Ok(written.to_string()));
            }
        }
    }
}
