//! The settings: what can be set ([`types`]), where values come from ([`layers`]), and what is told about them.
//!
//! `config/longshore.toml`, embedded, is the lowest layer and the only place of a default; over it lie a few variables
//! that other programs know too, a file, the `LONGSHORE_` environment, and flags. Known by all rooms, knows none of them
//! but the types of their own settings.
//!
//! # Decisions
//! Layers are added one by one and the settings read after each, so that a wrong value is always laid to its own
//! layer. Every wrong key is taken out and the rest read again: one run tells all that is wrong.

pub mod layers;
pub mod problem;
pub mod types;

mod bounds;
mod celery;
mod effective;
mod file;
mod places;
mod variables;

pub use effective::Effective;
pub use layers::{FileChoice, Flag, Loaded, Sources, load};
pub use places::store_beside;
pub use problem::{ConfigError, Problem};
pub use types::{Address, Settings};

/// The template: every setting with its default and a comment. The lowest layer.
pub const TEMPLATE: &str = include_str!("../../config/longshore.toml");
