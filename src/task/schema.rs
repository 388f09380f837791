//! The JSON Schemas that `longshore schema` prints.

use schemars::Schema;
use schemars::generate::SchemaSettings;

use super::Task;

/// The schema of the native envelope (JSON Schema 2020-12).
pub fn task() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Task>()
}
