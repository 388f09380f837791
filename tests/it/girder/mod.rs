//! What a worker does with a Girder: against the real server, and against one that fails as it is told to.

mod cached;
mod clerk;
mod faults;
mod fetch;
mod job;
mod journals;
mod kept;
mod rig;
mod shore;
mod slicer;
mod spool;
mod staged;
mod upload;
mod uploads;
mod ways;
