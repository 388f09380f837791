//! One file per family of transforms; `TRANSFORMS` in the room's `mod.rs` names them.

use crate::error::TaskError;

pub(super) mod girder_fetch;
pub(super) mod girder_stream;
pub(super) mod girder_upload;
pub(super) mod http_stream;
pub(super) mod pipe;
pub(super) mod progress;
pub(super) mod python;
pub(super) mod slicer;
pub(super) mod stdio;
pub(super) mod volume;

/// The error of a transform that stands where it means nothing.
fn misplaced(name: &str, remedy: &str) -> TaskError {
    TaskError::permanent("bad_argument", format!("{name} means nothing here; {remedy}"))
}
