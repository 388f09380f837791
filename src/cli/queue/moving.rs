//! `queue move`: brings what waits in a queue to another broker.

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::broker::{Broker, BrokerUrl, Intake};
use crate::cancel::{CancelReason, CancelScope};
use crate::cli::context::{Context, url};
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::config::{Address, store_beside};
use crate::task::QueueName;
use crate::transfer::{Tally, Transfer, TransferError};

const EXAMPLES: &str = "\
Examples:
  longshore queue move redis://old:6379 redis://new:6379 --queue nightly
  longshore queue move sqlite:///var/lib/longshore/longshore.db redis://hub --queue default
  longshore queue move amqp://hub// redis://hub --queue celery --to-queue gpu --limit 100

Workers and producers may go on at both brokers. What a worker holds stays with it; so does what it
has ended and not yet settled. Delayed tasks keep their time, all keep their priority, bytes and
headers, and a task that was asked to be canceled stays so. RabbitMQ cannot hand out what is delayed:
that stays, and can be moved once its time has come.

A task is put durably into its new queue before it is taken off the old one. SIGINT ends the move
behind the tasks that are on their way. When it was killed, run the same command again soon: what
is there already is found by its id (within the dedup window of the new broker; RabbitMQ has none)
and only taken off. Until then a worker at the old broker may run a task a second time, unless both
brokers' workers share their records (--store).

Exit codes: 0 the queue is empty or the limit reached, 2 wrong usage, 3 it ended before that.";

/// Move what waits in a queue to another broker or queue, while workers go on at both
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Move {
    /// Address of the broker that it is taken from
    #[arg(value_name = "FROM")]
    from: String,
    /// Address of the broker that it is brought to
    #[arg(value_name = "TO")]
    to: String,
    /// The queue that is emptied
    #[arg(long, value_name = "NAME")]
    queue: QueueName,
    /// The queue that it goes to, when that has another name
    #[arg(long, value_name = "NAME")]
    to_queue: Option<QueueName>,
    /// At most so many tasks
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl Move {
    /// Does what was asked.
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (from, to) = (Address::new(self.from), Address::new(self.to));
        let into = self.to_queue.unwrap_or_else(|| self.queue.clone());
        let (from_url, to_url) = (url(&from)?, url(&to)?);
        if from_url == to_url && into == self.queue {
            let text =
                format!("{} of {from_url} is where it is already: name another --to-queue", self.queue);
            return Err(CliError::Usage(text));
        }
        refuse_memory(&from_url)?;
        refuse_memory(&to_url)?;
        let transfer = Transfer {
            from: context.broker_at(&from, vec![self.queue.clone()]).await?,
            to: context.broker_at(&to, Vec::new()).await?,
            away: self.queue.clone(),
            queue: into,
            records: context.store_at(&records(context, &from)).await?,
            limit: self.limit,
            limits: context.limits(),
        };
        let waiting = waiting(&transfer.from, &self.queue).await?;
        let stop = CancelScope::new();
        tokio::spawn(end_on_signal(stop.clone()));
        let mut tally = Tally::default();
        let bar = bar(waiting);
        let moved = transfer.run(&stop, &mut tally, |tally| bar.set_position(tally.moved)).await;
        bar.finish_and_clear();
        tell(context.output, &transfer, &tally)?;
        match moved {
            Err(TransferError::Broker(error)) => Err(error.into()),
            Err(TransferError::Store(error)) => Err(error.into()),
            Ok(()) if stop.is_canceled() => {
                Err(CliError::Infrastructure("it was stopped: run it again to go on".to_owned()))
            }
            Ok(()) if tally.unsettled > 0 => Err(CliError::Infrastructure(format!(
                "{} tasks are at both brokers, because they could not be taken off {}: run it again at once",
                tally.unsettled, transfer.from.name
            ))),
            Ok(()) => Ok(()),
        }
    }
}

/// The records of the workers of a broker: those that the settings name, or else those beside it.
fn records(context: &Context, broker: &Address) -> Address {
    let settings = context.settings();
    let is_set = settings.store != store_beside(&settings.brokers[0], settings);
    if is_set { settings.store.clone() } else { store_beside(broker, settings) }
}

/// A broker in memory is this process's alone, and empty.
fn refuse_memory(url: &BrokerUrl) -> Result<(), CliError> {
    if url.scheme() == "memory" {
        return Err(CliError::Usage(format!(
            "{url} is a broker of one process: nothing can be moved there or away"
        )));
    }
    Ok(())
}

/// How much there is to move. A paused queue hands nothing out, to nobody.
async fn waiting(from: &Broker, queue: &QueueName) -> Result<u64, CliError> {
    let queues = from.admin.queues().await?;
    let Some(found) = queues.into_iter().find(|found| found.name == *queue) else { return Ok(0) };
    match found.intake {
        Intake::Open => Ok(found.ready + found.delayed),
        Intake::Paused => Err(CliError::Usage(format!(
            "{queue} is paused at {name} and hands nothing out: longshore --broker {name} queue resume {queue} first; \
             longshore worker drain keeps its workers from it",
            name = from.name
        ))),
    }
}

/// Ends `stop` with the first signal.
async fn end_on_signal(stop: CancelScope) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    stop.cancel(CancelReason::Interrupted);
}

fn bar(waiting: u64) -> ProgressBar {
    if !Output::is_watched() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("[{bar:30}] {pos} of about {len} moved  {per_sec}");
    let style = style.expect("invariant: the template is readable").progress_chars("=> ");
    ProgressBar::new(waiting).with_style(style)
}

fn tell(output: Output, transfer: &Transfer, tally: &Tally) -> Result<(), CliError> {
    let Transfer { from, to, away: queue, queue: into, .. } = transfer;
    if output.is_json() {
        let mut document = json!({ "from": from.name, "queue": queue, "to": to.name, "to_queue": into });
        if let (Some(document), Ok(serde_json::Value::Object(counts))) =
            (document.as_object_mut(), serde_json::to_value(tally))
        {
            document.extend(counts);
        }
        return output.document(&document);
    }
    let Tally { moved, duplicates, left, unsettled, delayed } = *tally;
    output.line(format_args!("{moved} moved from {queue} of {} to {into} of {}", from.name, to.name))?;
    let notes = [
        (duplicates, "were there already: an earlier move was cut off"),
        (left, "stay with the workers that are at them or ended them"),
        (delayed, "stay until their time has come"),
        (unsettled, "are at both brokers"),
    ];
    for (count, note) in notes.iter().filter(|(count, _)| *count > 0) {
        output.note(format_args!("{count} {note}"));
    }
    Ok(())
}
