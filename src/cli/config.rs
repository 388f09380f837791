//! `config …`: the settings in force, and whether a file is right.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::CliError;
use super::global::Global;
use super::output::Output;
use crate::config::{FileChoice, load};

const EXAMPLES: &str = "\
Examples:
  longshore config default >/etc/longshore.toml    a file to begin with
  longshore config check ./longshore.toml          everything that is wrong with a file, by line
  LONGSHORE_WORKER__CONCURRENCY=8 longshore config show

What a flag says outweighs a LONGSHORE_ variable, which outweighs the file, which outweighs the
default. Exit codes: 0 it is right, 2 something is wrong.";

/// Tell the settings in force, check a file, print the template.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum ConfigCommand {
    /// Print every setting in force and where it came from
    Show,
    Check(Check),
    /// Print every setting with its default and a comment, as a file to begin with
    Default,
}

/// Check a settings file and the environment; tells everything that is wrong.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file; the one in force unless given
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ConfigCommand {
    /// Does what was asked and needs settings that are right.
    pub(crate) fn run(&self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Show => show(context),
            // Both are done before settings are read.
            Self::Check(_) | Self::Default => Ok(()),
        }
    }
}

fn show(context: &Context) -> Result<(), CliError> {
    let effective = context.loaded.effective();
    if context.output.is_json() {
        let origins: Map<String, Value> =
            effective.iter().map(|one| (one.key.clone(), Value::String(one.origin.clone()))).collect();
        return context.output.document(
            &json!({ "settings": context.settings(), "origins": origins, "file": context.loaded.file }),
        );
    }
    let rows: Vec<Vec<String>> =
        effective.into_iter().map(|one| vec![one.key, one.value.to_string(), one.origin]).collect();
    context.output.table(&["SETTING", "VALUE", "FROM"], &rows)
}

impl Check {
    /// Does what was asked.
    pub(crate) fn run(&self, global: &Global, output: Output) -> Result<(), CliError> {
        let mut sources = global.sources(Vec::new());
        if let Some(file) = &self.file {
            sources.file = FileChoice::Named(file.clone());
        }
        let loaded = load(&sources)?;
        if output.is_json() {
            return output.document(&json!({ "right": true, "file": loaded.file }));
        }
        match loaded.file {
            Some(file) => output.line(format_args!("{}  is right", file.display())),
            None => output.line("there is no settings file; the environment is right"),
        }
    }
}
