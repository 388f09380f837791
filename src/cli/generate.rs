//! `completions` and `man`: what clap's own crates make of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Cli;
use super::error::CliError;
use super::output::Output;

/// Print a script that completes commands and flags in a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example: longshore completions bash >/etc/bash_completion.d/longshore")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: clap_complete::Shell,
}

impl Completions {
    /// Does what was asked.
    pub(crate) fn run(&self, output: Output) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "longshore", &mut script);
        output.bytes(&script)
    }
}

/// Write the manual pages of all commands into a folder, or print the first one.
#[derive(Debug, Args)]
#[command(after_help = "Example: longshore man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The folder; it must be there
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    /// Does what was asked.
    pub(crate) fn run(&self, output: Output) -> Result<(), CliError> {
        if let Some(folder) = &self.folder {
            return clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
                CliError::Usage(format!("{} cannot be written into: {error}", folder.display()))
            });
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(|error| CliError::Infrastructure(format!("the page cannot be made: {error}")))?;
        output.bytes(&page)
    }
}
