//! The flags that every command takes, and the log.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args};
use figment::value::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use super::output::Format;
use crate::config::types::{Log, LogFormat};
use crate::config::{FileChoice, Flag, Sources};

/// The flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Settings file instead of /etc/longshore.toml; empty: none
    #[arg(long, global = true, value_name = "FILE", env = "LONGSHORE_CONFIG", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub(crate) config: Option<PathBuf>,
    /// Address of a broker, such as sqlite:///srv/longshore.db; can be repeated for a worker
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) broker: Vec<String>,
    /// Address of the store of records; with the first broker unless given
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Who reads the output
    #[arg(long, global = true, value_enum, default_value = "human", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Log more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with_all = ["quiet", "log_level"])]
    pub(crate) verbose: u8,
    /// Log only what went wrong; twice: nothing
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "log_level")]
    pub(crate) quiet: u8,
    /// What to log: error, warn, info, debug, trace, or parts such as info,longshore::docker=debug
    #[arg(short = 'l', long, visible_alias = "loglevel", global = true, value_name = "FILTER")]
    pub(crate) log_level: Option<String>,
}

impl Global {
    /// Where settings come from, with the flags of one command beside these.
    pub(crate) fn sources(&self, more: Vec<Flag>) -> Sources {
        let file = match &self.config {
            None => FileChoice::Usual,
            Some(path) if path.as_os_str().is_empty() => FileChoice::None,
            Some(path) => FileChoice::Named(path.clone()),
        };
        Sources::of_process(file, self.flags().into_iter().chain(more).collect())
    }

    fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        if !self.broker.is_empty() {
            let urls: Vec<Value> = self.broker.iter().map(|url| Value::from(url.as_str())).collect();
            flags.push(Flag { flag: "--broker", key: "brokers", value: Value::from(urls) });
        }
        if let Some(url) = &self.store {
            flags.push(Flag { flag: "--store", key: "store", value: Value::from(url.as_str()) });
        }
        let level = match (self.verbose, self.quiet) {
            (0, 0) => self.log_level.as_deref().map(|level| ("--log-level", level)),
            (1, _) => Some(("--verbose", "debug")),
            (2.., _) => Some(("--verbose", "trace")),
            (0, 1) => Some(("--quiet", "error")),
            (0, 2..) => Some(("--quiet", "off")),
        };
        if let Some((flag, level)) = level {
            flags.push(Flag { flag, key: "log.level", value: Value::from(level) });
        }
        flags
    }

    /// Whether a flag asked for a log: commands that are no worker say nothing below a warning otherwise.
    fn asks_for_log(&self) -> bool {
        self.verbose > 0 || self.quiet > 0 || self.log_level.is_some()
    }

    /// Sends log lines to standard error.
    pub(crate) fn start_log(&self, log: &Log, logs: Logs) {
        let filter = match logs {
            Logs::WhenAsked if !self.asks_for_log() => EnvFilter::new("warn"),
            Logs::WhenAsked | Logs::Always => log.level.filter(),
        };
        start_log(filter, log.format);
    }
}

/// Which commands write what the settings say to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logs {
    /// Workers.
    Always,
    /// Commands that end soon: warnings only, unless a flag asks for more.
    WhenAsked,
}

fn start_log(filter: EnvFilter, format: LogFormat) {
    // The AMQP client logs whole messages that a server returns, with the tokens in them. What it meets, the broker tells.
    let filter = filter.add_directive(Directive::from_str("lapin=off").expect("invariant: a directive"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process keeps the first one's log.
    let _ = match format {
        LogFormat::Human => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
