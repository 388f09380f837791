//! What a task may ask for.

pub mod image;
