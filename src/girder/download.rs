//! A body that arrives piece by piece.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::GirderError;
use crate::http;

/// A body under way. An end of it is no proof that all of it is there: count the bytes.
#[derive(Debug)]
pub struct Download {
    response: Response,
    call: String,
    server: String,
    stall: Duration,
    offset: u64,
    /// How long it was waited for since the rate was last looked at, and what came meanwhile. Time that its reader
    /// takes does not count.
    waited: Duration,
    came: u64,
}

/// Bytes per second below which a server that still sends something counts as standing still.
const SLOWEST: u64 = 1 << 10;

impl Download {
    /// The body of `response` to a call for the bytes from `from` on.
    pub(super) fn of(
        response: Response,
        (call, server): (String, String),
        from: u64,
        stall: Duration,
    ) -> Result<Self, GirderError> {
        let wrong =
            |reason: String| GirderError::Answer { call: call.clone(), server: server.clone(), reason };
        let encoded = response.headers().get(CONTENT_ENCODING);
        if let Some(encoding) = encoded.filter(|encoding| encoding.as_bytes() != b"identity") {
            return Err(wrong(format!(
                "the file comes in the encoding {encoding:?}, though it was asked for as it is"
            )));
        }
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let begins = range.and_then(begin_of).ok_or_else(|| {
                    wrong("a part of the file came without saying which (Content-Range)".to_owned())
                })?;
                if begins != from {
                    return Err(wrong(format!(
                        "the file was asked for from byte {from} on and came from {begins}"
                    )));
                }
                begins
            }
            _ => 0,
        };
        Ok(Self { response, call, server, stall, offset, waited: Duration::ZERO, came: 0 })
    }

    /// Where the body begins in the file: what was asked for, or 0 when the server gives only the whole.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece; none at the end. Fails when less than a KiB per second came for as long as Girder may stand
    /// still. Cancel-safe.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, GirderError> {
        let begun = Instant::now();
        let answer = timeout(self.stall.saturating_sub(self.waited), self.response.chunk()).await;
        self.waited += begun.elapsed();
        match answer {
            Ok(Ok(piece)) => {
                self.came += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                if self.came >= SLOWEST * self.stall.as_secs().max(1) {
                    (self.waited, self.came) = (Duration::ZERO, 0);
                }
                Ok(piece)
            }
            Ok(Err(error)) => Err(GirderError::Broken {
                call: self.call.clone(),
                server: self.server.clone(),
                reason: http::reason(error),
            }),
            Err(_) => Err(GirderError::Stalled {
                call: self.call.clone(),
                server: self.server.clone(),
                limit: self.stall,
            }),
        }
    }
}

/// `5` in `bytes 5-9/10`.
fn begin_of(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_begins() {
        assert_eq!(begin_of("bytes 5-9/10"), Some(5));
        assert_eq!(begin_of("bytes 5-9/*"), Some(5));
        for bad in ["", "bytes */10", "5-9/10", "bytes x-9/10"] {
            assert_eq!(begin_of(bad), None, "{bad}");
        }
    }
}
