//! Any JSON, as a jsonpickle document: nothing panics, and what was written anew reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore::task::jsonpickle::{KeyOrder, KeyText, Rules, decode, encode};
use longshore::task::{Limits, json};

fuzz_target!(|data: &[u8]| {
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    let Ok(value) = json::parse(data, &limits) else { return };
    for order in [KeyOrder::Kept, KeyOrder::Lost] {
        let rules = Rules { order, keys: KeyText::Document };
        let Ok(document) = decode(&value, rules, "body", &limits) else { continue };
        let text = document.python_str(&document.root);
        let Ok(written) = encode(&document, &document.root) else { continue };
        let room = Limits { max_depth: 512, ..limits };
        let again = decode(&written, rules, "body", &room).expect("what was written is read");
        // A signature, which Python shows in its own way, becomes a plain map: only what had a text keeps it.
        if text.is_ok() {
            assert_eq!(text, again.python_str(&again.root));
        }
        let twice = encode(&again, &again.root).map(|json| json.to_string());
        assert_eq!(twice, Ok(written.to_string()));
    }
});
