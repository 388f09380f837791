//! Puts the layers on one another: template < shared variables < file < `LONGSHORE_` variables < flags.

use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::bounds::BOUNDS;
use super::file::File;
use super::problem::{ConfigError, Near, Problem};
use super::types::Settings;
use super::{TEMPLATE, celery, places, variables};

/// Where the file is looked for when none is named.
pub const USUAL_FILE: &str = "/etc/longshore.toml";

/// Which file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChoice {
    /// `/etc/longshore.toml`, if it is there.
    Usual,
    /// This one; it must be there.
    Named(PathBuf),
    /// None.
    None,
}

/// A setting given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it was typed, such as `--broker`.
    pub flag: &'static str,
    /// The setting, with dots.
    pub key: &'static str,
    /// What it says.
    pub value: Value,
}

/// Everything settings are made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file.
    pub file: FileChoice,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// The command line.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The environment of this process; variables that are no text are none of ours.
    pub fn of_process(file: FileChoice, flags: Vec<Flag>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            .collect();
        Self { file, environment, flags }
    }

    /// The text of an environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
    }
}

/// Settings in force, and where each came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The file that was read.
    pub file: Option<PathBuf>,
    pub(super) figment: Figment,
}

/// A variable of every process, below the file: who sets a folder there means longshore.
const AMBIENT: &[(&str, &str)] = &[("TMPDIR", "work_dir")];

/// Variables that other programs read too, and what they set here.
const SHARED: &[(&str, &str)] = &[
    ("DOCKER_HOST", "docker.host"),
    ("DOCKER_CLIENT_TIMEOUT", "docker.client_timeout"),
    ("DOCKER_CONFIG", "docker.config_dir"),
    ("CELERY_BROKER_URL", "brokers"),
    ("GIRDER_WORKER_BROKER", "brokers"),
    ("CELERY_RESULT_BACKEND", "celery.result_backend"),
    ("GIRDER_WORKER_BACKEND", "celery.result_backend"),
    ("DSA_WORKER_CONCURRENCY", "worker.concurrency"),
    ("GIRDER_WORKER_API_URL", "girder.job_api_url"),
    ("REQUESTS_CA_BUNDLE", "tls.ca_file"),
];

/// A switch of `girder_worker` for files that lie within reach; here it may also name the folders.
const DIRECT_PATHS: (&str, [&str; 2]) = ("GW_DIRECT_PATHS", ["girder", "direct_paths"]);

/// `girder_worker`'s variable with default options of every container, as JSON.
const RUN_OPTIONS: (&str, [&str; 2]) = ("GIRDER_WORKER_DOCKER_RUN_OPTIONS", ["docker", "default_options"]);

/// Reads all layers. Tells everything that is wrong at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let template = File::parse(Path::new("config/longshore.toml"), TEMPLATE.to_owned())
        .map_err(|problem| ConfigError { problems: vec![problem] })?;
    let mut stack = Stack {
        figment: Figment::from(Layer { name: "default".to_owned(), values: template.values() }),
        problems: Vec::new(),
    };
    stack.shared_variables(AMBIENT, sources, &template);
    let file = stack.file(&sources.file);
    stack.shared_variables(SHARED, sources, &template);
    stack.run_options(sources);
    stack.direct_paths(sources);
    stack.own_variables(sources, &template);
    stack.flags(&sources.flags);
    let mut settings: Settings = stack.figment.extract().map_err(|error| {
        let reason = reason(&error.kind);
        let key = error.path.join(".");
        let file = template.path.clone();
        ConfigError { problems: vec![Problem::Value { file, line: template.line(&error.path), key, reason }] }
    })?;
    stack.bounds(&settings, file.as_ref());
    if stack.problems.is_empty()
        && let Err(problem) = places::resolve(&mut settings, sources)
    {
        stack.problems.push(problem);
    }
    if stack.problems.is_empty() {
        Ok(Loaded { settings, file: file.map(|file| file.path), figment: stack.figment })
    } else {
        Err(ConfigError { problems: stack.problems })
    }
}

/// The layers so far; what they hold can always be read as settings.
struct Stack {
    figment: Figment,
    problems: Vec<Problem>,
}

impl Stack {
    fn shared_variables(&mut self, names: &[(&str, &str)], sources: &Sources, template: &File) {
        for (name, key) in names {
            if let Some(text) = sources.variable(name).filter(|text| !text.is_empty()) {
                // Only Celery and girder_worker name a broker or a backend in variables that are not ours.
                let text = match *key {
                    "brokers" => celery::broker(text),
                    "celery.result_backend" => celery::redis(text),
                    _ => text.to_owned(),
                };
                let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                self.variable(name, &path, &text, &template.values());
            }
        }
    }

    fn run_options(&mut self, sources: &Sources) {
        let (name, key) = RUN_OPTIONS;
        if let Some(text) = sources.variable(name).filter(|text| !text.trim().is_empty()) {
            let read = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
                .map_err(|error| format!("it must be a JSON object of docker-py keywords: {error}"))
                .and_then(|map| Value::serialize(map).map_err(|error| reason(&error.kind)))
                .and_then(|value| self.add(name, &key.map(str::to_owned), value));
            if let Err(reason) = read {
                self.problems.push(Problem::Variable { name: name.to_owned(), reason });
            }
        }
    }

    fn direct_paths(&mut self, sources: &Sources) {
        let (name, key) = DIRECT_PATHS;
        let Some(text) = sources.variable(name).map(str::trim).filter(|text| !text.is_empty()) else {
            return;
        };
        let folders: Vec<Value> = if text.starts_with('/') {
            text.split([',', ':'])
                .map(str::trim)
                .filter(|folder| !folder.is_empty())
                .map(Value::from)
                .collect()
        } else {
            vec![Value::from("/")]
        };
        if let Err(reason) = self.add(name, &key.map(str::to_owned), Value::from(folders)) {
            self.problems.push(Problem::Variable { name: name.to_owned(), reason });
        }
    }

    fn own_variables(&mut self, sources: &Sources, template: &File) {
        let mut ordered: Vec<&(String, String)> = sources.environment.iter().collect();
        ordered.sort();
        for (name, text) in ordered {
            match variables::key(name, template) {
                None => {}
                Some(Ok(path)) => self.variable(name, &path, text, &template.values()),
                Some(Err(near)) => {
                    self.problems.push(Problem::UnknownVariable { name: name.clone(), near });
                }
            }
        }
    }

    fn variable(&mut self, name: &str, path: &[String], text: &str, defaults: &Dict) {
        let outcome = variables::value(path, text, defaults).and_then(|value| self.add(name, path, value));
        if let Err(reason) = outcome {
            self.problems.push(Problem::Variable { name: name.to_owned(), reason });
        }
    }

    fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            let path: Vec<String> = flag.key.split('.').map(str::to_owned).collect();
            if let Err(reason) = self.add(flag.flag, &path, flag.value.clone()) {
                self.problems.push(Problem::Flag { flag: flag.flag, reason });
            }
        }
    }

    /// Adds one value if the settings can be read with it.
    fn add(&mut self, name: &str, path: &[String], value: Value) -> Result<(), String> {
        let layer = Layer { name: name.to_owned(), values: nested(path, value) };
        let with = self.figment.clone().merge(layer);
        match with.extract::<Settings>() {
            Ok(_) => {
                self.figment = with;
                Ok(())
            }
            Err(error) => Err(reason(&error.kind)),
        }
    }

    fn file(&mut self, choice: &FileChoice) -> Option<File> {
        let path = match choice {
            FileChoice::None => return None,
            FileChoice::Named(path) => path.as_path(),
            FileChoice::Usual => Path::new(USUAL_FILE),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if *choice == FileChoice::Usual && error.kind() == std::io::ErrorKind::NotFound => {
                return None;
            }
            Err(error) => {
                let file = path.to_owned();
                self.problems.push(Problem::Unreadable { file, reason: error.to_string() });
                return None;
            }
        };
        match File::parse(path, text) {
            Ok(file) => {
                self.document(&file);
                Some(file)
            }
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }

    /// Tells values that no worker could work with, each with where it was set.
    fn bounds(&mut self, settings: &Settings, file: Option<&File>) {
        for bound in BOUNDS.iter().filter(|bound| !(bound.holds)(settings)) {
            let origin = self.figment.find_metadata(bound.key).map_or("default", |from| from.name.as_ref());
            let place = match file.filter(|file| file.path.display().to_string() == origin) {
                Some(file) => {
                    let path: Vec<String> = bound.key.split('.').map(str::to_owned).collect();
                    format!("{origin}:{}", file.line(&path))
                }
                None => origin.to_owned(),
            };
            self.problems.push(Problem::Bound { place, key: bound.key, wants: bound.wants });
        }
    }

    /// Adds a document; every key that is refused is told, taken out, and the rest read again.
    fn document(&mut self, file: &File) {
        let mut values = file.values();
        let mut found: Vec<Problem> = Vec::new();
        loop {
            let layer = Layer { name: file.path.display().to_string(), values: values.clone() };
            let with = self.figment.clone().merge(layer);
            let Err(error) = with.extract::<Settings>() else {
                self.figment = with;
                break;
            };
            let (problem, path) = locate(file, &error);
            found.push(problem);
            if !take_out(&mut values, &path) {
                break;
            }
        }
        found.sort_by_key(|problem| match problem {
            Problem::UnknownKey { line, .. } | Problem::Value { line, .. } => *line,
            _ => 0,
        });
        self.problems.append(&mut found);
    }
}

/// What is wrong in `file`, and the key to take out.
fn locate(file: &File, error: &figment::Error) -> (Problem, Vec<String>) {
    let mut path = error.path.clone();
    if let Kind::UnknownField(name, known) = &error.kind {
        if path.last() != Some(name) {
            path.push(name.clone());
        }
        let near = Near::find(name, &known.iter().map(|known| (*known).to_owned()).collect::<Vec<_>>());
        let problem =
            Problem::UnknownKey { file: file.path.clone(), line: file.line(&path), key: dotted(&path), near };
        return (problem, path);
    }
    let problem = Problem::Value {
        file: file.path.clone(),
        line: file.line(&path),
        key: dotted(&path),
        reason: reason(&error.kind),
    };
    (problem, path)
}

/// `rules[1].image`
fn dotted(path: &[String]) -> String {
    let mut text = String::new();
    for key in path {
        if key.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            text.extend(["[", key, "]"]);
        } else {
            text.push_str(if text.is_empty() { "" } else { "." });
            text.push_str(key);
        }
    }
    text
}

/// Removes the value at `path`, or the whole list that holds it. Says whether something was removed.
fn take_out(values: &mut Dict, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if !rest.is_empty()
        && let Some(Value::Dict(_, inner)) = values.get_mut(first)
        && take_out(inner, rest)
    {
        return true;
    }
    values.remove(first).is_some()
}

fn nested(path: &[String], value: Value) -> Dict {
    let Some((last, tables)) = path.split_last() else { return Dict::new() };
    let leaf = Dict::from([(last.clone(), value)]);
    tables.iter().rev().fold(leaf, |inner, key| Dict::from([(key.clone(), Value::from(inner))]))
}

/// What is wrong with a value, in words.
fn reason(kind: &Kind) -> String {
    match kind {
        Kind::Message(text) => text.clone(),
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("{} is not {}", shown(actual), plain(expected))
        }
        Kind::InvalidLength(length, expected) => format!("{length} elements where {expected} is expected"),
        Kind::UnknownVariant(name, known) | Kind::UnknownField(name, known) => {
            format!("{name:?} is not one of {}", known.join(", "))
        }
        Kind::MissingField(name) => format!("{name} is missing"),
        Kind::DuplicateField(name) => format!("{name} stands twice"),
        Kind::ISizeOutOfRange(number) => format!("{number} is out of range"),
        Kind::USizeOutOfRange(number) => format!("{number} is out of range"),
        Kind::Unsupported(actual) => format!("{} cannot stand here", shown(actual)),
        Kind::UnsupportedKey(actual, expected) => format!("{} is not {expected}", shown(actual)),
    }
}

/// What serde expected, in the words of the template.
fn plain(expected: &str) -> &str {
    match expected {
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "a table",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        other => other,
    }
}

fn shown(actual: &Actual) -> String {
    match actual {
        Actual::Bool(truth) => truth.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Char(letter) => format!("{letter:?}"),
        Actual::Str(text) => format!("{text:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Values with one origin.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
