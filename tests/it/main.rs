//! Tests that need a port, a container or a second process.
