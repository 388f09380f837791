//! Takes a compressed body apart, never beyond what a body may have.

use std::borrow::Cow;
use std::io::{BufRead, Read};

use crate::task::envelope::{DecodeError, Limits};
use crate::task::json::Json;

/// The body as its serializer wrote it. `application/x-gzip` is what kombu calls a zlib stream; gzip proper is read too.
pub(super) fn expand<'a>(
    body: &'a [u8],
    compression: Option<&Json>,
    limits: &Limits,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    let Some(compression) = compression else { return Ok(Cow::Borrowed(body)) };
    let name = compression.text().unwrap_or_default().to_ascii_lowercase();
    let reader: Box<dyn Read + 'a> = match name.as_str() {
        "application/x-gzip" | "application/gzip" | "gzip" | "zlib" | "application/zlib" => {
            if body.starts_with(&[0x1f, 0x8b]) {
                Box::new(flate2::bufread::MultiGzDecoder::new(body))
            } else {
                Box::new(flate2::bufread::ZlibDecoder::new(body))
            }
        }
        "application/x-bz2" | "application/x-bzip2" | "bzip2" | "bz2" => {
            Box::new(bzip2::bufread::MultiBzDecoder::new(body))
        }
        _ => {
            return Err(DecodeError::Field {
                path: "compression".to_owned(),
                value: crate::task::arg::shown(&compression.to_value()),
                reason: "is not known: set task_compression to zlib, gzip, bzip2 or none in the producer"
                    .to_owned(),
            });
        }
    };
    bounded(reader, limits).map(Cow::Owned)
}

fn bounded(reader: Box<dyn Read + '_>, limits: &Limits) -> Result<Vec<u8>, DecodeError> {
    let most = u64::try_from(limits.max_bytes).unwrap_or(u64::MAX);
    let mut reader = std::io::BufReader::new(reader.take(most.saturating_add(1)));
    let mut out = Vec::new();
    loop {
        let piece = match reader.fill_buf() {
            Ok([]) => return Ok(out),
            Ok(piece) => piece,
            Err(error) => {
                return Err(DecodeError::Field {
                    path: "body".to_owned(),
                    value: String::new(),
                    reason: format!("does not expand as its header `compression` says: {error}"),
                });
            }
        };
        out.extend_from_slice(piece);
        let length = piece.len();
        reader.consume(length);
        if out.len() > limits.max_bytes {
            return Err(DecodeError::Large { bytes: out.len(), most: limits.max_bytes });
        }
    }
}
