//! The executor with a scripted handler over the broker in memory, under paused time: no sockets, no containers.

mod celery;
mod ends;
mod fences;
mod flow;
mod journal;
mod rig;
mod spool;
