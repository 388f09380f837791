//! What a worker does with a Girder: against the real server, and against one that fails as it is told to.

mod cached;
mod faults;
mod fetch;
mod job;
mod rig;
mod slicer;
mod staged;
mod upload;
