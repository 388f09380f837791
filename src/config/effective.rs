//! The settings in force as `config show` prints them: key, value and origin, in the order of the template.

use serde::Serialize;
use serde_json::Value;

use super::TEMPLATE;
use super::file::File;
use super::layers::Loaded;

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effective {
    /// With dots.
    pub key: String,
    /// After everything that the machine decides.
    pub value: Value,
    /// `default`, a file, a variable or a flag.
    pub origin: String,
}

impl Loaded {
    /// Every setting, in the order of the template.
    pub fn effective(&self) -> Vec<Effective> {
        let Ok(template) = File::parse(std::path::Path::new("config/longshore.toml"), TEMPLATE.to_owned())
        else {
            return Vec::new();
        };
        let all = serde_json::to_value(&self.settings).unwrap_or_default();
        let origin = |key: &str| {
            self.figment.find_metadata(key).map_or_else(|| "default".to_owned(), |from| from.name.to_string())
        };
        template
            .leaves()
            .into_iter()
            .map(|path| {
                let value =
                    path.iter().try_fold(&all, |value, key| value.get(key)).cloned().unwrap_or_default();
                let key = path.join(".");
                Effective { origin: origin(&key), key, value }
            })
            .collect()
    }
}
