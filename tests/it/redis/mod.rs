//! What only the Redis adapters promise: scripts that survive, warnings, sockets, passwords and TLS, plain submissions.

pub(crate) mod dock;
