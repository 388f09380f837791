//! Volumes, pipes and streams of a container as flags of `run` and `submit`, and the words in its arguments that stand
//! for their paths: `{pipe:NAME}`, `{volume}`, `{volume:NAME/FILE}`. Called by `request`; the transforms that come out
//! are those that any producer may send, so nothing here decides what a worker allows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Args;

use super::error::CliError;
use crate::task::transform::{Connect, HttpStream, NamedPipe, ProgressPipe, TemporaryVolume, Volume};
use crate::task::transform::{RelativePath, VolumePath};
use crate::task::{Arg, Secret, TransformSpec};

/// What goes in and out of a container beside its files.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Volume and stream options")]
pub(crate) struct StreamFlags {
    /// Make a folder that lives as long as the task; {volume:NAME} is its path; can be repeated
    #[arg(long, value_name = "NAME[:MODE][=HOST_DIR]")]
    pub(crate) temp_volume: Vec<String>,
    /// Make a FIFO for the container to write, {pipe:NAME} being its path; can be repeated. NAME may be
    /// VOLUME/NAME, in a temporary volume, or an absolute path of the container's
    #[arg(long, value_name = "NAME=TO")]
    pub(crate) output_pipe: Vec<String>,
    /// Make a FIFO for reports of progress, a JSON object per line; {pipe:NAME} is its path
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "progress")]
    pub(crate) progress_pipe: Option<String>,
    /// Send the container's standard output there byte for byte, instead of to the log
    #[arg(long, value_name = "TO")]
    pub(crate) stdout: Option<String>,
    /// The same of its standard error
    #[arg(long, value_name = "TO")]
    pub(crate) stderr: Option<String>,
    /// Header of the requests that streams make, NAME: VALUE or @FILE with such lines; can be repeated
    #[arg(long, value_name = "HEADER")]
    pub(crate) header: Vec<String>,
}

/// For the help of both commands.
pub(crate) const EXAMPLES: &str = "\
Volumes, pipes and streams (TO is - or stderr for our own output, a URL to POST to, or pipe:NAME for
another FIFO, which the container reads; {volume} is a folder that every task has):
  --progress-pipe tool:1 --report {pipe:progress}
  --output-pipe out=http://localhost:8080/upload tool:1 --to {pipe:out}
  --output-pipe /run/out=pipe:/run/in tool:1 --to /run/out --from /run/in
  --temp-volume scratch tool:1 --work {volume:scratch} --log {volume/log.txt}";

const TO: &str = "TO is - or stderr for our own output, http://… or https://…, or pipe:NAME";

impl StreamFlags {
    /// Whether something goes to our own standard output byte for byte.
    pub(crate) fn uses_our_output(&self) -> bool {
        let pipes = self.output_pipe.iter().filter_map(|text| text.split_once('=').map(|(_, to)| to));
        pipes.chain(self.stdout.as_deref()).chain(self.stderr.as_deref()).any(|to| to == "-")
    }
}

/// What the flags declared, and which of it was mentioned.
#[derive(Debug, Default)]
pub(crate) struct Places {
    volumes: BTreeMap<String, TemporaryVolume>,
    pipes: BTreeMap<String, Pipe>,
    connectors: Vec<TransformSpec>,
    mentioned: BTreeSet<String>,
}

#[derive(Debug)]
struct Pipe {
    flag: &'static str,
    spec: TransformSpec,
    /// Which mentions tell the container where it is; none where its path is plain without one.
    told_by: Vec<String>,
}

impl Places {
    /// Reads the flags; relative host folders are below `here`.
    pub(crate) fn declare(flags: &StreamFlags, here: &Path) -> Result<Self, CliError> {
        let mut places = Self::default();
        for text in &flags.temp_volume {
            places.temp_volume(text, here)?;
        }
        if let Some(name) = &flags.progress_pipe {
            let (name, volume) = places.in_volume("--progress-pipe", name)?;
            let spec = TransformSpec::ProgressPipe(ProgressPipe { name, volume });
            places.pipe("--progress-pipe", flags.progress_pipe.as_deref().unwrap_or_default(), spec)?;
        }
        let headers = headers(&flags.header)?;
        for text in &flags.output_pipe {
            let Some((name, to)) = text.split_once('=') else {
                return Err(CliError::Usage(format!("--output-pipe {text}: write NAME=TO, where {TO}")));
            };
            let spec = TransformSpec::NamedOutputPipe(places.named("--output-pipe", name)?);
            places.pipe("--output-pipe", name, spec.clone())?;
            places.connect(&format!("--output-pipe {text}"), spec, to, &headers)?;
        }
        for (flag, to, from) in [
            ("--stdout", &flags.stdout, TransformSpec::ContainerStdOut),
            ("--stderr", &flags.stderr, TransformSpec::ContainerStdErr),
        ] {
            if let Some(to) = to {
                places.connect(&format!("{flag} {to}"), from, to, &headers)?;
            }
        }
        places.check_origins(&flags.header)?;
        Ok(places)
    }

    /// An argument of the container: a text, or the place that it names.
    pub(crate) fn place(&mut self, text: &str) -> Result<Arg, CliError> {
        let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
            return Ok(Arg::from(text));
        };
        // Doubled braces stand for the text itself.
        if let Some(literal) = inner.strip_prefix('{').and_then(|text| text.strip_suffix('}'))
            && is_place(literal)
        {
            return Ok(Arg::Text(inner.to_owned()));
        }
        if !is_place(inner) {
            return Ok(Arg::from(text));
        }
        let spec = match inner.split_once(':') {
            Some(("pipe", name)) => self.mentioned_pipe(text, name)?,
            Some((_, rest)) => {
                let (name, file) =
                    rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file)));
                let volume = self.volumes.get(name).cloned().ok_or_else(|| {
                    CliError::Usage(format!(
                        "{text}: no volume is called {name:?}; make it with --temp-volume {name}, or write {{{{…}}}} for the text itself"
                    ))
                })?;
                self.mentioned.insert(volume_key(name));
                below(text, volume, file)?
            }
            None => {
                self.mentioned.insert(volume_key(""));
                let file = inner.strip_prefix("volume/");
                below(text, TemporaryVolume::default(), file)?
            }
        };
        Ok(Arg::Transform(Box::new(spec)))
    }

    /// What is left to say of the task: its stream connectors. Refuses what the container is not told of.
    pub(crate) fn connectors(self) -> Result<Vec<Arg>, CliError> {
        let unknown = |what: &str, word: &str| {
            CliError::Usage(format!(
                "{what}: the container is not told where it is; put {word} among its arguments, or into --env NAME={word}"
            ))
        };
        for name in self.volumes.keys() {
            if !self.mentioned.contains(&volume_key(name)) {
                return Err(unknown(&format!("--temp-volume {name}"), &format!("{{volume:{name}}}")));
            }
        }
        for (name, pipe) in &self.pipes {
            let told = |key: &String| self.mentioned.contains(key);
            if !pipe.told_by.is_empty() && !pipe.told_by.iter().any(told) {
                return Err(unknown(&format!("{} {name}", pipe.flag), &format!("{{pipe:{name}}}")));
            }
        }
        Ok(self.connectors.into_iter().map(|spec| Arg::Transform(Box::new(spec))).collect())
    }

    /// `NAME[:MODE][=HOST_DIR]`
    fn temp_volume(&mut self, text: &str, here: &Path) -> Result<(), CliError> {
        let refuse = |reason: &str| {
            CliError::Usage(format!(
                "--temp-volume {text}: {reason}; write NAME, NAME:MODE with octal permission bits, or NAME=HOST_DIR"
            ))
        };
        let (rest, host_dir) = text.split_once('=').map_or((text, None), |(rest, dir)| (rest, Some(dir)));
        let (name, mode) = rest.split_once(':').map_or((rest, None), |(name, mode)| (name, Some(mode)));
        if name.is_empty() || name.contains(['/', '{', '}']) {
            return Err(refuse("its name must not be empty nor hold a slash or brace"));
        }
        let mode = match mode.map(|mode| u32::from_str_radix(mode, 8)) {
            Some(Ok(mode)) if mode <= 0o7777 => Some(mode),
            Some(_) => return Err(refuse("the mode is no octal number such as 750")),
            None => None,
        };
        let host_dir = match host_dir {
            Some("") => return Err(refuse("the host's folder is empty")),
            Some(dir) => here.join(dir).to_str().map(str::to_owned),
            None => None,
        };
        let volume = TemporaryVolume { id: Some(name.to_owned()), host_dir, mode };
        if self.volumes.insert(name.to_owned(), volume).is_some() {
            return Err(refuse("there is one of this name already"));
        }
        Ok(())
    }

    /// The pipe `name`: at a path of the container's, in a temporary volume, or in the default one.
    fn named(&self, flag: &str, name: &str) -> Result<NamedPipe, CliError> {
        if let Some((folder, file)) = name.rsplit_once('/').filter(|_| name.starts_with('/')) {
            let folder = if folder.is_empty() { "/" } else { folder }.to_owned();
            return Ok(NamedPipe {
                name: relative(flag, name, file)?,
                volume: None,
                container_path: Some(folder.clone()),
                host_path: Some(folder),
            });
        }
        let (name, volume) = self.in_volume(flag, name)?;
        Ok(NamedPipe { name, volume, container_path: None, host_path: None })
    }

    /// `VOLUME/NAME` is in a temporary volume, `NAME` in the default one.
    fn in_volume(&self, flag: &str, name: &str) -> Result<(RelativePath, Option<Volume>), CliError> {
        match name.split_once('/').and_then(|(volume, file)| Some((self.volumes.get(volume)?, file))) {
            Some((volume, file)) => {
                Ok((relative(flag, name, file)?, Some(Volume::TemporaryVolume(volume.clone()))))
            }
            None => Ok((relative(flag, name, name)?, None)),
        }
    }

    fn pipe(&mut self, flag: &'static str, name: &str, spec: TransformSpec) -> Result<(), CliError> {
        let volume =
            name.split_once('/').map(|(volume, _)| volume).filter(|name| self.volumes.contains_key(*name));
        let told_by = match volume {
            _ if name.starts_with('/') => Vec::new(),
            Some(volume) => vec![pipe_key(name), volume_key(volume)],
            None => vec![pipe_key(name), volume_key("")],
        };
        let pipe = Pipe { flag, spec, told_by };
        match self.pipes.insert(name.to_owned(), pipe) {
            Some(_) => Err(CliError::Usage(format!(
                "{flag} {name}: there is a pipe of this name already; two streams need two pipes"
            ))),
            None => Ok(()),
        }
    }

    fn connect(
        &mut self,
        flag: &str,
        from: TransformSpec,
        to: &str,
        headers: &BTreeMap<String, Secret>,
    ) -> Result<(), CliError> {
        let output = match to {
            "-" => TransformSpec::HostStdOut,
            "stderr" => TransformSpec::HostStdErr,
            url if url.starts_with("http://") || url.starts_with("https://") => {
                TransformSpec::ChunkedTransferEncodingStream(HttpStream {
                    url: url.to_owned(),
                    headers: headers.clone(),
                })
            }
            other => match other.strip_prefix("pipe:") {
                Some(name) => {
                    let spec = TransformSpec::NamedInputPipe(self.named(flag, name)?);
                    self.pipe("pipe", name, spec.clone())?;
                    spec
                }
                None => {
                    return Err(CliError::Usage(format!(
                        "{flag}: {to:?} is nowhere a stream can go: {TO}; a file is written through --volume, or by - and the shell"
                    )));
                }
            },
        };
        let connect = Connect { input: Box::new(from), output: Box::new(output) };
        self.connectors.push(TransformSpec::Connect(connect));
        Ok(())
    }

    fn mentioned_pipe(&mut self, text: &str, name: &str) -> Result<TransformSpec, CliError> {
        let Some(pipe) = self.pipes.get(name) else {
            return Err(CliError::Usage(format!(
                "{text}: no pipe is called {name:?}; make it with --output-pipe {name}=TO, --progress-pipe={name} or \
                 --stdout pipe:{name}, or write {{{{…}}}} for the text itself"
            )));
        };
        self.mentioned.insert(pipe_key(name));
        if let Some((volume, _)) = name.split_once('/') {
            self.mentioned.insert(volume_key(volume));
        }
        Ok(pipe.spec.clone())
    }

    /// Headers may hold a token, which is one server's: with several servers nobody could tell whose it is.
    fn check_origins(&self, headers: &[String]) -> Result<(), CliError> {
        let origins: BTreeSet<String> = self
            .connectors
            .iter()
            .filter_map(|spec| match spec {
                TransformSpec::Connect(connect) => match &*connect.output {
                    TransformSpec::ChunkedTransferEncodingStream(stream) => {
                        Some(stream.url.split('/').take(3).collect::<Vec<_>>().join("/"))
                    }
                    _ => None,
                },
                _ => None,
            })
            .collect();
        match (headers.is_empty(), origins.len()) {
            (true, _) | (false, 1) => Ok(()),
            (false, 0) => Err(CliError::Usage(
                "--header: no stream goes to a URL; leave it out, or give one".to_owned(),
            )),
            (false, _) => Err(CliError::Usage(format!(
                "--header: it would go to {}; headers may hold secrets of one server, so give each stream its own in a task file (--file)",
                origins.into_iter().collect::<Vec<_>>().join(" and ")
            ))),
        }
    }
}

fn volume_key(name: &str) -> String {
    format!("volume:{name}")
}

fn pipe_key(name: &str) -> String {
    format!("pipe:{name}")
}

/// Whether the text between braces has the form of a place.
fn is_place(inner: &str) -> bool {
    ["pipe:", "volume:", "volume/"].iter().any(|start| inner.len() > start.len() && inner.starts_with(start))
        || inner == "volume"
}

/// The volume itself, or a file in it.
fn below(text: &str, volume: TemporaryVolume, file: Option<&str>) -> Result<TransformSpec, CliError> {
    let Some(file) = file.filter(|file| !file.is_empty()) else {
        return Ok(TransformSpec::TemporaryVolume(volume));
    };
    let named = volume.id.is_some().then_some(Volume::TemporaryVolume(volume));
    Ok(TransformSpec::VolumePath(VolumePath {
        filename: relative("the argument", text, file)?,
        volume: named,
    }))
}

fn relative(flag: &str, text: &str, path: &str) -> Result<RelativePath, CliError> {
    RelativePath::try_from(path.to_owned())
        .map_err(|error| CliError::Usage(format!("{flag} {text}: {error}")))
}

/// `NAME: VALUE`, or `@FILE` with one such line for each header: what stands in a command line, others can read.
fn headers(texts: &[String]) -> Result<BTreeMap<String, Secret>, CliError> {
    let mut headers = BTreeMap::new();
    for text in texts {
        let lines = match text.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| CliError::Usage(format!("--header {text}: it cannot be read: {error}")))?,
            None => text.clone(),
        };
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            // Without the line: it may hold a token.
            let (name, value) = line.split_once(':').ok_or_else(|| {
                CliError::Usage(
                    "--header: a colon is missing; write NAME: VALUE, or @FILE with such lines".to_owned(),
                )
            })?;
            headers.insert(name.trim().to_owned(), Secret::new(value.trim()));
        }
    }
    Ok(headers)
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
