//! The figures: one file per question, all in one binary, because every binary links the whole tree.
//!
//! `cargo bench` asks all questions, `cargo bench -- dispatch steal` only these. README.md tells how to read the answers.
//! Nothing but this folder is a source of figures.

#![expect(clippy::print_stdout, reason = "the figures are what it is run for")]

mod brokers;
mod celery;
mod containers;
mod dispatch;
mod girder;
mod idle;
mod job_progress;
mod progress;
mod steal;
mod streams;
mod subject_progress;
mod support;

use clap::{Parser, ValueEnum};

use support::Outcome;
use support::peer::Peer;
use support::report::Answer;

/// Measures longshore beside its physical limits and the Python worker.
#[derive(Parser)]
struct Options {
    /// What to ask; all questions unless given
    #[arg(value_enum)]
    questions: Vec<Question>,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Also with a million tasks queued: some minutes and 3 GB of disk
    #[arg(long)]
    large: bool,
    /// Leave the Python worker out
    #[arg(long)]
    no_peer: bool,
    /// How often each figure is taken
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Question {
    /// Tasks that do nothing, per second
    Dispatch,
    /// Containers per second
    Containers,
    /// How well lanes share uneven work
    Steal,
    /// What a worker costs that has nothing to do
    Idle,
    /// Bytes between host and container, per second
    Streams,
    /// How soon a line of progress is an event
    Progress,
    /// Bytes from a Girder, per second
    Girder,
    /// Tasks that do nothing over NATS and Redis, per second
    Brokers,
    /// Celery tasks that do nothing over RabbitMQ, per second, and what remote control costs
    Celery,
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(ask(&options)));
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn ask(options: &Options) -> Outcome<()> {
    let peer = if options.no_peer { Peer::absent("left out by --no-peer") } else { Peer::start().await };
    if let Err(reason) = peer.node() {
        eprintln!("bench: no figures of the Python worker: {reason}");
    }
    let questions = match &options.questions[..] {
        [] => Question::value_variants(),
        some => some,
    };
    let mut answers = Vec::new();
    for question in questions {
        let answer = match question {
            Question::Dispatch => dispatch::ask(&peer, options.rounds, options.large).await,
            Question::Containers => containers::ask(&peer, options.rounds).await,
            Question::Steal => steal::ask(&peer, options.rounds).await,
            Question::Idle => idle::ask(&peer, options.rounds).await,
            Question::Streams => streams::ask(&peer, options.rounds).await,
            Question::Progress => progress::ask(options.rounds).await,
            Question::Girder => girder::ask(options.rounds).await,
            Question::Brokers => brokers::ask(&peer, options.rounds).await,
            Question::Celery => celery::ask(&peer, options.rounds).await,
        }?;
        if !options.json {
            println!("{answer}");
        }
        answers.push(answer);
    }
    if options.json {
        println!("{}", Answer::document(&answers)?);
    }
    Ok(())
}
