//! The `longshore` binary: parse, run, exit code.

fn main() {}
