//! `schema`: the JSON Schemas of what travels.

use clap::Args;
use schemars::generate::SchemaSettings;

use super::error::CliError;
use super::output::Output;
use crate::events::cloudevent::CloudEvent;
use crate::store::Record;
use crate::task;

const EXAMPLES: &str = "\
Examples:
  longshore schema task >task.schema.json
  longshore schema event | jq '.properties | keys'

A file of this form is submitted with longshore submit --file task.json.";

/// Print the JSON Schema of a task, an event or a result.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SchemaCommand {
    /// task: the native envelope; event: what events prints; result: what task show prints
    #[arg(value_enum, value_name = "WHAT")]
    what: What,
}

/// What travels.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    Task,
    Event,
    Result,
}

impl SchemaCommand {
    /// Does what was asked.
    pub(crate) fn run(&self, output: Output) -> Result<(), CliError> {
        let generator = || SchemaSettings::draft2020_12().into_generator();
        output.document(&match self.what {
            What::Task => task::schema::task(),
            What::Event => generator().into_root_schema_for::<CloudEvent>(),
            What::Result => generator().into_root_schema_for::<Record>(),
        })
    }
}
