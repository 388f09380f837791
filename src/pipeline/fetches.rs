//! The files that a task fetches from Girder while it is staged: several at once, with progress, from the cache where
//! they are in it. Called by `staging`.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::TaskError;
use crate::events::Progress;
use crate::events::reporter::Reporter;
use crate::girder::fetch::{self, Sum, Watch};
use crate::girder::{Ceilings, Client, FileDocument, cache};
use crate::store::StreamBytes;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(500);
const MIB: f64 = 1_048_576.0;

/// Files under way. Dropping it ends them.
pub(super) struct Fetches {
    running: JoinSet<Result<(), TaskError>>,
    slots: Arc<Semaphore>,
    meter: Arc<Meter>,
    /// What may still be fetched.
    pub(super) within: Ceilings,
}

impl Fetches {
    pub(super) fn new(report: &Reporter, parallel: usize, within: Ceilings) -> Self {
        let meter = Meter {
            report: report.clone(),
            expected: AtomicU64::new(0),
            done: AtomicU64::new(0),
            told: Mutex::new(Told { begun: None, last: None }),
        };
        let slots = Arc::new(Semaphore::new(parallel.max(1)));
        Self { running: JoinSet::new(), slots, meter: Arc::new(meter), within }
    }

    /// Fetches `document` into the empty file `into`, soon. `name` is what people know it by.
    pub(super) fn add(&mut self, client: Client, document: FileDocument, into: File, name: String) {
        let (slots, meter) = (self.slots.clone(), self.meter.clone());
        meter.expected.fetch_add(document.size.unwrap_or(0), Ordering::Relaxed);
        self.running.spawn(async move {
            // Never closed while somebody waits for it.
            let _slot = slots.acquire_owned().await;
            one(&client, document, into, &name, &meter).await
        });
    }

    /// Waits until all are there, or for the first error.
    pub(super) async fn done(&mut self) -> Result<(), TaskError> {
        while let Some(ended) = self.running.join_next().await {
            let ended = ended.unwrap_or_else(|error| {
                Err(TaskError::retryable("workspace", format!("a download ended by itself: {error}")))
            });
            if let Err(error) = ended {
                self.running.shutdown().await;
                return Err(error);
            }
        }
        self.meter.tell_all();
        Ok(())
    }
}

async fn one(
    client: &Client,
    document: FileDocument,
    into: File,
    name: &str,
    meter: &Arc<Meter>,
) -> Result<(), TaskError> {
    let begun = Instant::now();
    let id = document.id.clone();
    let about = |error: TaskError| TaskError { message: format!("{name}: {}", error.message), ..error };
    let mut from = None;
    if let Some(cache) = client.site().cache() {
        from = cache.provide(client, &document, &into, meter.as_ref()).await.map_err(about)?;
    }
    let size = if from.is_none() {
        let fetched = fetch::fetch(client, document, into, Sum::WhenTold, meter.as_ref()).await;
        fetched.map_err(about)?.size
    } else {
        into.metadata().map_or(0, |metadata| metadata.len())
    };
    let seconds = begun.elapsed().as_secs_f64();
    let told = match from {
        Some(cache::From::Cache) => format!("fetched {name} ({}) from the cache", mib(size)),
        Some(cache::From::Girder) | None => {
            format!("fetched {name} ({}) in {seconds:.1} s", mib(size))
        }
    };
    meter.report.note(told);
    let stream = format!("Girder file {id} → {name}");
    meter.report.describe(|details| details.streams.push(StreamBytes { stream, bytes: size, sha256: None }));
    Ok(())
}

/// Counts the bytes of all files of a task and tells them now and then.
struct Meter {
    report: Reporter,
    expected: AtomicU64,
    done: AtomicU64,
    told: Mutex<Told>,
}

struct Told {
    begun: Option<Instant>,
    last: Option<Instant>,
}

impl Watch for Meter {
    fn moved(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = *told.begun.get_or_insert(now);
        if told.last.is_some_and(|last| now - last < TELL_EVERY) {
            return;
        }
        told.last = Some(now);
        drop(told);
        self.tell(now - begun);
    }
    fn lost(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Meter {
    #[expect(clippy::cast_precision_loss, reason = "progress is for people")]
    fn tell(&self, since: Duration) {
        let done = self.done.load(Ordering::Relaxed);
        let expected = self.expected.load(Ordering::Relaxed).max(done);
        let mut message = format!("fetching inputs: {} of {}", mib(done), mib(expected));
        if since >= TELL_EVERY {
            let rate = done as f64 / MIB / since.as_secs_f64();
            message = format!("{message}, {rate:.1} MiB/s");
        }
        self.report.progress(Progress {
            message: Some(message),
            current: Some(done as f64),
            total: Some(expected as f64),
        });
    }

    fn tell_all(&self) {
        let begun = self.told.lock().unwrap_or_else(PoisonError::into_inner).begun;
        if let Some(begun) = begun {
            self.tell(begun.elapsed());
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are for people")]
fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{:.1} MiB", bytes as f64 / MIB) }
}
