//! One NATS server or cluster as `broker/nats` and `store/nats` see it: connection, JetStream's requests, streams, scans.
//!
//! # Decisions
//! - JetStream is asked by its own JSON requests on `$JS.API.`: they are the same from server 2.9 on, while the client
//!   library's typed calls want fields of newer ones (its `create_key_value` fails on 2.9).
//! - What is stored is asked for by direct get where there is one replica only: with more, a replica that is behind may
//!   answer, and a record's compare-and-set would run on what was.

use std::fmt::Write;

pub mod address;
mod link;
mod scan;
mod stored;
pub mod stream;

pub use address::Place;
pub use link::{Breaks, Link, Published, in_order};
pub use scan::{From, Scan};
pub use stored::{AckInfo, Stored};

/// Why a server could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The address cannot be used.
    #[error("{0}")]
    Address(String),
    /// It does not answer; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It says no; trying the same again does not help.
    #[error("{0}")]
    Refused(String),
    /// A stream, consumer or message is not there.
    #[error("{0}")]
    Missing(String),
    /// Another change was faster: the subject's last message is not the expected one.
    #[error("the subject was changed meanwhile")]
    Overtaken,
    /// It holds or says what is not understood.
    #[error("{0}")]
    Unreadable(String),
}

/// Headers that servers and clients agree on.
pub mod header {
    /// Two messages with one id within a stream's window are one.
    pub const MESSAGE_ID: &str = "Nats-Msg-Id";
    /// The sequence that the subject's last message must have; 0: there must be none.
    pub const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
    /// Of a message without its body: how many bytes that has.
    pub const SIZE: &str = "Nats-Msg-Size";
    /// Of an answer to a direct get.
    pub const SUBJECT: &str = "Nats-Subject";
    /// Of an answer to a direct get.
    pub const SEQUENCE: &str = "Nats-Sequence";
    /// Of an answer to a direct get.
    pub const TIME: &str = "Nats-Time-Stamp";
}

/// `name` as one token of a subject, a consumer's or a key's name: what separates or matches tokens, or is not allowed in
/// one of them, is written `=XX`.
pub fn token(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.bytes().all(plain) {
        return name.to_owned();
    }
    let mut token = String::with_capacity(name.len() + 8);
    for byte in name.bytes() {
        if plain(byte) {
            token.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(token, "={byte:02X}");
        }
    }
    token
}

/// What [`token`] was made of; `None` when it was made by another.
pub fn name_of(token: &str) -> Option<String> {
    if !token.contains('=') {
        return Some(token.to_owned());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'=' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_is_one_token_and_comes_back(name in "\\PC{1,60}") {
            let token = token(&name);
            prop_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte)));
            prop_assert_eq!(name_of(&token), Some(name));
        }
    }

    #[test]
    fn a_token_of_another_making_names_nothing() {
        assert_eq!(name_of("a=2"), None);
        assert_eq!(name_of("a=ZZ"), None);
        assert_eq!(name_of("a=FF"), None, "no UTF-8");
    }
}
