//! What is read, what is refused, and that nothing panics.

use proptest::prelude::*;

use super::*;
use crate::task::envelope::Limits;

fn read(text: &str) -> Result<Json, JsonError> {
    parse(text.as_bytes(), &Limits::default())
}

#[test]
fn what_python_writes_is_kept_as_it_is() {
    assert_eq!(read("NaN"), Ok(Json::NonFinite(NonFinite::Nan)));
    assert_eq!(
        read("[Infinity, -Infinity]").unwrap().items().unwrap()[1],
        Json::NonFinite(NonFinite::NegativeInfinity)
    );
    assert_eq!(read("1e999"), Ok(Json::NonFinite(NonFinite::Infinity)));
    assert_eq!(read("18446744073709551615"), Ok(Json::Number(u64::MAX.into())));
    assert_eq!(read("-18446744073709551616"), Ok(Json::BigInteger("-18446744073709551616".to_owned())));
    assert_eq!(read(r#""a\ud800b""#), Ok(Json::Surrogates(vec![0x61, 0xd800, 0x62])));
    assert_eq!(read(r#""\ud83d\ude00 \ud800\ud83d\ude00""#).unwrap().to_string(), r#""😀 \ud800😀""#);
    assert_eq!(read(r#""\ud83d\ude00\n""#), Ok(Json::Text("😀\n".to_owned())));
    let keys: Vec<String> =
        read(r#"{"z":1,"a":2}"#).unwrap().entries().unwrap().iter().map(|(k, _)| k.clone()).collect();
    assert_eq!(keys, ["z", "a"]);
}

#[test]
fn what_is_no_json_is_refused_with_its_place() {
    let reason = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(reason(r#"{"a":1,"a":2}"#), "the key \"a\" stands twice in one map at byte 13");
    assert!(reason("").contains("document ends"));
    assert!(reason("[1,]").contains("no JSON value"));
    assert!(reason("[1] x").contains("follows the end"));
    assert!(reason("01").contains("does not start with 0"));
    assert!(reason("'a'").contains("no JSON value"));
    assert!(reason("\"a\nb\"").contains("control character"));
    assert!(reason(r#""\ux000""#).contains("hexadecimal"));
    assert!(reason(&"[".repeat(65)).contains("nested deeper than 64"));
    assert!(reason(&"1".repeat(4301)).contains("more than 4300 digits"));
    assert!(parse(b"\"\xff\"", &Limits::default()).unwrap_err().to_string().contains("no UTF-8"));
    let limits = Limits { max_nodes: 3, ..Limits::default() };
    assert!(parse(b"[1,2,3]", &limits).unwrap_err().to_string().contains("more than 3 values"));
}

proptest! {
    #[test]
    fn agrees_with_the_strict_parser_where_that_one_reads(text in any::<String>(), number in any::<f64>()) {
        let value = serde_json::json!({"k": [text, number, null, true, i64::MIN]});
        let read = parse(value.to_string().as_bytes(), &Limits::default()).unwrap();
        prop_assert_eq!(&read.to_value(), &value);
        prop_assert_eq!(parse(read.to_string().as_bytes(), &Limits::default()).unwrap(), read);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[\\[\\]{}\",:\\\\u0-9a-fNI.eE+ -]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = parse(text.as_bytes(), &Limits::default());
        let _ = parse(&bytes, &Limits::default());
    }
}
