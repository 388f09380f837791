//! From flags, or a file, to a task: what `run` and `submit` share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;

use super::error::CliError;
use super::streams::{Places, StreamFlags};
use crate::docker::args::DockerRun;
use crate::retry::RetryPolicy;
use crate::task::{Arg, ArgMap, ContentType, Limits, Priority, QueueName, Task, TaskId, envelope};
use crate::units::{Size, Span};

/// What a container task asks for, as `docker run` has it.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Container options")]
pub(crate) struct ContainerFlags {
    /// When to pull the image: always, missing or never
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<String>,
    /// Mount a host path or named volume: HOST:CONTAINER[:ro]; can be repeated
    #[arg(long, value_name = "BIND")]
    pub(crate) volume: Vec<String>,
    /// Set a variable in the container: NAME=VALUE, or NAME to pass on our own; can be repeated
    #[arg(short, long, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Any other keyword of docker-py's containers.run, its value as JSON: network=none; can be repeated
    #[arg(long = "option", value_name = "KEYWORD=JSON")]
    pub(crate) options: Vec<String>,
    /// Keep the container after its end
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) streams: StreamFlags,
}

/// What any task may say of itself.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Task options")]
pub(crate) struct TaskFlags {
    /// Whole GPUs that no other task may use meanwhile
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<u32>,
    /// Processors; fractions are allowed
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<f64>,
    /// Memory, such as 512m
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Run only on workers of this os/arch, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Amount of a resource that workers' settings name: NAME=N; can be repeated
    #[arg(long, value_name = "NAME=N")]
    pub(crate) resource: Vec<String>,
    /// Longest time one attempt may run, such as 90s or 1h
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    /// Text for people and queries: NAME=VALUE; can be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// Attempts in all; 1: no second one
    #[arg(long, value_name = "ATTEMPTS")]
    pub(crate) retry: Option<u32>,
    /// Delay before the second attempt; it doubles with each further one
    #[arg(long, value_name = "TIME")]
    pub(crate) retry_backoff: Option<Span>,
    /// What is tried again: retryable, an error code or exit:<n>; can be repeated
    #[arg(long, value_name = "FAILURE")]
    pub(crate) retry_on: Vec<String>,
}

/// How a task travels.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Queue options")]
pub(crate) struct QueueFlags {
    /// The queue to put it in
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<QueueName>,
    /// 0 to 9, 9 first
    #[arg(long, value_name = "N", value_parser = priority)]
    pub(crate) priority: Option<Priority>,
    /// Do not start before this time, or before so much time has passed
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub(crate) not_before: Option<Timestamp>,
    /// Do not start after this time, or after so much time has passed
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub(crate) expires: Option<Timestamp>,
    /// Id of the task; made up unless given
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<TaskId>,
    /// Two submissions with one key are one task
    #[arg(long, value_name = "KEY")]
    pub(crate) dedup_key: Option<String>,
}

fn priority(text: &str) -> Result<Priority, String> {
    let number = text.parse::<u64>().map_err(|_| format!("{text:?} is no number in 0-9"))?;
    Priority::new(number).map_err(|error| error.to_string())
}

/// A time such as 2026-11-23T10:00:00Z, or a duration from now such as 10m.
pub(crate) fn when(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let refused =
        || format!("{text:?} is neither a time such as 2026-11-23T10:00:00Z nor a duration such as 10m");
    let span: Span = text.parse().map_err(|_| refused())?;
    Timestamp::now().checked_add(span.get()).map_err(|_| refused())
}

/// The task that the flags describe: `words` are the image and its arguments.
pub(crate) fn from_flags(words: &[String], container: &ContainerFlags) -> Result<Task, CliError> {
    let Some((image, arguments)) = words.split_first() else {
        return Err(CliError::Usage(
            "no image is named: give IMAGE [ARGS], or --file with a task".to_owned(),
        ));
    };
    let mut args = ArgMap::new();
    args.insert("image".to_owned(), Arg::from(image.as_str()));
    if let Some(pull) = &container.pull {
        args.insert("pull".to_owned(), Arg::from(pull.as_str()));
    }
    if let Some(entrypoint) = &container.entrypoint {
        args.insert("entrypoint".to_owned(), Arg::List(vec![Arg::from(entrypoint.as_str())]));
    }
    let here = std::env::current_dir()
        .map_err(|error| CliError::Infrastructure(format!("the current folder cannot be told: {error}")))?;
    let mut places = Places::declare(&container.streams, &here)?;
    if !arguments.is_empty() {
        let arguments: Vec<Arg> =
            arguments.iter().map(|text| places.place(text)).collect::<Result<_, CliError>>()?;
        args.insert("container_args".to_owned(), Arg::List(arguments));
    }
    if !container.volume.is_empty() {
        let binds: Result<Vec<Arg>, CliError> =
            container.volume.iter().map(|text| volume(text, &here)).collect();
        args.insert("volumes".to_owned(), Arg::List(binds?));
    }
    if container.keep {
        args.insert("remove_container".to_owned(), Arg::Bool(false));
    }
    let options = options(container, &mut places)?;
    if !options.is_empty() {
        args.insert("options".to_owned(), Arg::Map(options));
    }
    let connectors = places.connectors()?;
    if !connectors.is_empty() {
        args.insert("stream_connectors".to_owned(), Arg::List(connectors));
    }
    Ok(Task::new("docker_run", args))
}

/// `HOST:CONTAINER[:MODE]` with the host path made absolute, as `docker run` does.
fn volume(text: &str, here: &Path) -> Result<Arg, CliError> {
    let refuse = |reason: &str| {
        Err(CliError::Usage(format!("--volume {text}: {reason}; write HOST:CONTAINER or HOST:CONTAINER:ro")))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        _ => return refuse("it has not two or three parts between colons"),
    };
    if source.is_empty() || !target.starts_with('/') {
        return refuse("the host's part must not be empty and the container's must begin with a slash");
    }
    let named = !source.contains('/') && source != "." && source != "..";
    let source = if named {
        source.to_owned()
    } else {
        let path = normal(&here.join(source));
        path.to_str().map(str::to_owned).unwrap_or_default()
    };
    Ok(Arg::Text(format!("{source}:{target}:{mode}")))
}

/// Without `.` and with `..` taken out; links are not looked at, as `docker run` does not.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn options(container: &ContainerFlags, places: &mut Places) -> Result<ArgMap, CliError> {
    let mut options = ArgMap::new();
    if !container.env.is_empty() {
        let mut environment = ArgMap::new();
        for text in &container.env {
            if let Some((name, value)) = variable(text, |name| std::env::var(name).ok())? {
                environment.insert(name, places.place(&value)?);
            }
        }
        options.insert("environment".to_owned(), Arg::Map(environment));
    }
    for text in &container.options {
        let (name, value) = pair("--option", text)?;
        // A bare word is a text: network=none needs no quotes.
        let value = serde_json::from_str(&value).unwrap_or(serde_json::Value::String(value));
        let arg = Arg::from_value(value, &format!("args.options.{name}"))
            .map_err(|error| CliError::Usage(format!("--option {text}: {error}")))?;
        options.insert(name, arg);
    }
    Ok(options)
}

/// `NAME=VALUE`, or `NAME` for our own value of it: nothing where we have none, as `docker run` does.
fn variable(text: &str, own: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, CliError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, own(text)),
    };
    if name.is_empty() {
        return Err(CliError::Usage(format!("--env {text}: the name is missing; write NAME=VALUE or NAME")));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// `NAME=VALUE`
pub(crate) fn pair(flag: &str, text: &str) -> Result<(String, String), CliError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(CliError::Usage(format!("{flag} {text}: write NAME=VALUE"))),
    }
}

/// Reads a task from a file, `-` being standard input: JSON, or MessagePack when it begins so.
pub(crate) fn from_file(path: &Path, limits: &Limits) -> Result<Task, CliError> {
    let body = read(path)?;
    let content_type = ContentType::detect(None, &body);
    content_type
        .and_then(|content_type| envelope::decode(&body, content_type, limits))
        .map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))
}

/// The bytes of a file, `-` being standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let read = if path == Path::new("-") {
        let mut body = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut body).map(|_| body)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| CliError::Usage(format!("{} cannot be read: {error}", path.display())))
}

impl TaskFlags {
    /// Writes what was asked over what `task` says.
    pub(crate) fn apply(&self, task: &mut Task) -> Result<(), CliError> {
        let resources = &mut task.resources;
        if let Some(cpus) = self.cpus {
            if !(cpus.is_finite() && cpus >= 0.0) {
                return Err(CliError::Usage(format!("--cpus {cpus}: must be zero or more")));
            }
            resources.cpus = Some(cpus);
        }
        resources.memory = self.memory.or(resources.memory);
        resources.gpus = self.gpus.or(resources.gpus);
        if self.platform.is_some() {
            resources.platform.clone_from(&self.platform);
        }
        for text in &self.resource {
            let (name, amount) = pair("--resource", text)?;
            let amount = amount
                .parse()
                .map_err(|_| CliError::Usage(format!("--resource {text}: {amount:?} is no whole number")))?;
            resources.custom.insert(name, amount);
        }
        task.timeout = self.timeout.or(task.timeout);
        let labels: BTreeMap<String, String> =
            self.label.iter().map(|text| pair("--label", text)).collect::<Result<_, _>>()?;
        task.labels.extend(labels);
        if self.retry.is_some() || self.retry_backoff.is_some() || !self.retry_on.is_empty() {
            let policy = task.retry.get_or_insert_with(RetryPolicy::default);
            policy.max_attempts = self.retry.unwrap_or(policy.max_attempts);
            if policy.max_attempts == 0 {
                return Err(CliError::Usage(
                    "--retry 0: must be at least 1 (1: no second attempt)".to_owned(),
                ));
            }
            policy.backoff = self.retry_backoff.unwrap_or(policy.backoff);
            if !self.retry_on.is_empty() {
                policy.on.clone_from(&self.retry_on);
            }
        }
        Ok(())
    }
}

impl QueueFlags {
    /// Writes what was asked over what `task` says.
    pub(crate) fn apply(&self, task: &mut Task) {
        if let Some(queue) = &self.queue {
            task.queue = queue.clone();
        }
        task.priority = self.priority.unwrap_or(task.priority);
        task.not_before = self.not_before.or(task.not_before);
        task.expires = self.expires.or(task.expires);
        if let Some(id) = &self.id {
            task.id = id.clone();
        }
        if self.dedup_key.is_some() {
            task.dedup_key.clone_from(&self.dedup_key);
        }
    }
}

/// Refuses a task whose arguments no worker could read, before it is queued.
pub(crate) fn check(task: &Task) -> Result<(), CliError> {
    if task.kind == "docker_run" {
        DockerRun::read(&task.args).map_err(|error| CliError::Usage(error.to_string()))?;
    }
    if task.dedup_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 255) {
        return Err(CliError::Usage("--dedup-key: must have 1 to 255 bytes".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
