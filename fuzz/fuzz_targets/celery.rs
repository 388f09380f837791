//! Any file, as `longshore decode` reads it: nothing panics, and what became a task comes back from its envelope.
//! `tests/corpus` is the seed: `cargo +nightly fuzz run celery tests/corpus`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore::task::envelope::{self, ContentType};
use longshore::task::message::decode;
use longshore::task::{Decoded, Limits, RawMessage, celery};

fuzz_target!(|data: &[u8]| {
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    let Ok(message) = RawMessage::from_file(data, &limits) else { return };
    let _ = celery::sender(&message, &limits);
    if let Ok(Decoded::Task(task)) = decode(&message, &limits) {
        let written = envelope::encode(&task, ContentType::Json);
        let room = Limits { max_bytes: usize::MAX, max_depth: 256, max_nodes: usize::MAX };
        assert_eq!(envelope::decode(&written, ContentType::Json, &room).as_ref(), Ok(&task));
    }
});
