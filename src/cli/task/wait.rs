//! `task wait`: waits until tasks ended and says how.

use clap::Args;

use super::Open;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Shown;
use crate::cli::watch::{Watch, tell_ends};
use crate::units::Span;

const EXAMPLES: &str = "\
Examples:
  longshore task wait --progress last
  longshore task wait --timeout 1h $(longshore submit --count 10 busybox:latest true)

Exit codes: 0 all succeeded; 1 one failed, was canceled or parked; 2 no such task; 3 not ended in
time, purged meanwhile, or no answer from broker or store.";

/// Wait until tasks ended, and tell how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Wait {
    /// Ids of the tasks; last: the newest one
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Show a progress bar and what happens
    #[arg(long)]
    progress: bool,
    /// Print what the containers say
    #[arg(long)]
    logs: bool,
    /// Give up after so much time
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

impl Wait {
    pub(super) async fn run(self, context: &Context, open: &Open) -> Result<(), CliError> {
        let ids = open.resolve(&self.ids).await?;
        let shown = Shown::asked(self.progress, self.logs);
        let watch = Watch { broker: &open.broker, store: open.store.as_ref(), output: context.output, shown };
        tell_ends(&watch, &ids, self.timeout.map(Span::get)).await
    }
}
