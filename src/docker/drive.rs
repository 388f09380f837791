//! The run of one container: create, attach, start, wait, remove, and what may come between them.
//!
//! # Decisions
//! - No call beyond those five while all goes well. An exit code other than 0 is worth one look at the container, since only
//!   that tells a memory limit or a stopping engine from a failure.
//! - A stopping dockerd closes its socket before it stops the containers: an exit that finds nobody listening is the
//!   engine's doing and not the task's.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::attach::Outlet;
use super::book::LogBook;
use super::container::{Container, CreateError, Remover};
use super::engine::{Creation, Engine, EngineError, Inspected, Output};
use super::error::{self, Oom};
use super::labels::Afterwards;
use super::usage;
use crate::cancel::CancelReason;
use crate::crew::Crew;
use crate::error::TaskError;
use crate::events::reporter::Phase;
use crate::handler::{Attempt, LEFT, left};
use crate::policy::{MountIdentity, MountSwapped};

/// How long the output of a stopped container may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What runs containers.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) crew: Crew,
    pub(super) remover: Remover,
    pub(super) stop_grace: Duration,
    pub(super) engine_patience: Duration,
}

/// How a container ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i64,
    /// Whether it was killed for the memory it took.
    pub(super) oom: Option<Oom>,
    pub(super) last_words: String,
}

pub(super) type Stream = BoxStream<'static, Result<Output, EngineError>>;
type Pump = JoinHandle<(Outlet, Result<(), EngineError>)>;

impl Driver {
    /// Makes the container. The error may be worth another try with the image pulled: see [`CreateError`]. A creation
    /// that is still under way when the scope ends comes to its end behind the attempt's back and is removed.
    pub(super) async fn create(
        &self,
        attempt: &Attempt,
        creation: Creation,
        afterwards: Afterwards,
    ) -> Result<Container, CreateError> {
        if let Some(reason) = attempt.scope().reason() {
            return Err(CreateError::Task(error::ended(&reason)));
        }
        let marks = (attempt.fence(), afterwards);
        let (engine, remover) = (self.engine.clone(), self.remover.clone());
        let making = self.crew.spawn("create container", async move {
            Container::create(&engine, &remover, creation, marks).await
        });
        let made = tokio::select! {
            made = making => made,
            reason = attempt.scope().canceled() => return Err(CreateError::Task(error::ended(&reason))),
        };
        let failed = |_| {
            CreateError::Task(TaskError::retryable(
                "create_failed",
                "the worker failed to make the container",
            ))
        };
        let (container, warnings) = made.map_err(failed)??;
        for warning in warnings {
            attempt.report().warn(warning);
        }
        Ok(container)
    }

    /// Starts the container and sees it through to its end, or stops it when the scope ends or `broken` resolves. One that
    /// ended by itself is returned: it goes when its outputs are where they belong.
    pub(super) async fn run(
        &self,
        container: Container,
        order: Run<'_>,
        broken: impl Future<Output = TaskError>,
    ) -> Result<(Ended, Container), TaskError> {
        match self.start(&container, order.attempt, order.argv).await {
            Ok(output) => self.see_through(container, order, output, broken).await,
            Err(error) => {
                container.scrap().await;
                Err(error)
            }
        }
    }

    /// The same for a container that was started before, whose output is read from `output`.
    pub(super) async fn see_through(
        &self,
        container: Container,
        order: Run<'_>,
        output: Stream,
        broken: impl Future<Output = TaskError>,
    ) -> Result<(Ended, Container), TaskError> {
        let Run { attempt, outlet, mounts, book, .. } = order;
        let watch = Watch { driver: self, attempt, container: &container, mounts, book };
        match watch.to_the_end(outlet, output, broken).await {
            Ok(ended) => {
                attempt.report().reached(Phase::Ended);
                Ok((ended, container))
            }
            Err(left) if left.code == LEFT => {
                container.leave();
                Err(left)
            }
            Err(error) => {
                attempt.report().reached(Phase::Ended);
                container.dispose().await;
                Err(error)
            }
        }
    }

    async fn start(
        &self,
        container: &Container,
        attempt: &Attempt,
        argv: &[String],
    ) -> Result<Stream, TaskError> {
        if let Some(reason) = attempt.scope().reason() {
            return Err(error::ended(&reason));
        }
        let begin = async {
            let output = container.attach().await.map_err(|failed| error::engine(&failed))?;
            container.start().await.map_err(|failed| error::start(&failed, argv))?;
            Ok::<_, TaskError>(output)
        };
        let output = tokio::select! {
            begun = begin => begun?,
            reason = attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        attempt.report().reached(Phase::Started);
        attempt.report().running(Some(container.id()));
        Ok(output)
    }
}

/// What a run needs beside its container.
pub(super) struct Run<'a> {
    pub(super) attempt: &'a Attempt,
    /// Entrypoint and arguments, for messages.
    pub(super) argv: &'a [String],
    pub(super) outlet: Outlet,
    /// What the mounted host paths were when policy judged them.
    pub(super) mounts: &'a [MountIdentity],
    /// From which a later process could go on.
    pub(super) book: Option<&'a LogBook>,
}

/// A started container and those who care for it.
struct Watch<'a> {
    driver: &'a Driver,
    attempt: &'a Attempt,
    container: &'a Container,
    mounts: &'a [MountIdentity],
    book: Option<&'a LogBook>,
}

impl Watch<'_> {
    async fn to_the_end(
        &self,
        mut outlet: Outlet,
        mut output: Stream,
        broken: impl Future<Output = TaskError>,
    ) -> Result<Ended, TaskError> {
        let swapped = self.swapped();
        tokio::pin!(broken, swapped);
        let grace = self.driver.stop_grace;
        loop {
            let ended = CancellationToken::new();
            let pump = self.pump(outlet, output, ended.clone());
            let waited = tokio::select! {
                biased;
                waited = self.container.wait() => waited,
                reason = self.attempt.scope().canceled() => {
                    if may_leave(self.attempt, self.book) {
                        // What was read and not told is read again by the next process.
                        pump.abort();
                        let _ = pump.await;
                        return Err(left());
                    }
                    return Err(self.stopped(pump, &ended, error::ended(&reason), grace).await);
                }
                failed = &mut broken => return Err(self.stopped(pump, &ended, failed, grace).await),
                found = &mut swapped => return Err(self.stopped(pump, &ended, found, Duration::ZERO).await),
            };
            ended.cancel();
            match waited {
                Ok(code) => return self.exited(code, pump).await,
                Err(lost) if lost.is_away() => {
                    let (kept, _) = joined(pump).await?;
                    self.attempt.report().warn(format!("{lost}; waiting for it, output may be missing"));
                    output = self.found_again().await?;
                    outlet = kept;
                }
                Err(failed) => {
                    pump.abort();
                    return Err(error::wait(&failed, self.container.id()));
                }
            }
        }
    }

    fn pump(&self, mut outlet: Outlet, output: Stream, ended: CancellationToken) -> Pump {
        let (report, id) = (self.attempt.report().clone(), self.container.id().to_owned());
        self.driver.crew.spawn("container output", async move {
            let metered = usage::meter(&id, &report, &ended);
            let (result, ()) = tokio::join!(outlet.drain(output, &ended), metered);
            (outlet, result)
        })
    }

    /// Stops the container because `why`, while its output is still read.
    async fn stopped(
        &self,
        mut pump: Pump,
        ended: &CancellationToken,
        why: TaskError,
        grace: Duration,
    ) -> TaskError {
        self.attempt.report().note("stopping the container");
        self.container.stop(grace).await;
        ended.cancel();
        if let Ok(Ok((outlet, _))) = tokio::time::timeout(LAST_OUTPUT, &mut pump).await {
            outlet.finish();
        }
        pump.abort();
        why
    }

    /// Resolves when a host path that the container has mounted is not the one that policy judged, else never. A container
    /// that ended, or whose mounts this worker may not look at, is not waited for.
    async fn swapped(&self) -> TaskError {
        if !self.mounts.is_empty()
            && let Ok(Some(Inspected { pid: Some(pid), .. })) =
                self.driver.engine.inspect(self.container.id()).await
        {
            let mounts = self.mounts.to_vec();
            let look =
                self.driver.crew.spawn_blocking(move || mounts.iter().find_map(|mount| differs(pid, mount)));
            if let Ok(Some(swapped)) = look.await {
                return TaskError::permanent("mount_swapped", swapped.to_string());
            }
        }
        std::future::pending().await
    }

    /// The container ended by itself.
    async fn exited(&self, code: i64, pump: Pump) -> Result<Ended, TaskError> {
        let (outlet, drained) = tokio::select! {
            joined = joined(pump) => joined?,
            reason = self.attempt.scope().canceled() => {
                let leaves = may_leave(self.attempt, self.book);
                return Err(if leaves { left() } else { error::ended(&reason) });
            }
        };
        let last_words = outlet.finish();
        let engine = &self.driver.engine;
        if code == 0 {
            if !engine.listens().await {
                return Err(error::engine_restarted(&engine.address()));
            }
            if let Err(lost) = drained {
                self.attempt
                    .report()
                    .warn(format!("the end of the container's output may be missing: {lost}"));
            }
            return Ok(Ended { code, oom: None, last_words });
        }
        match engine.inspect(self.container.id()).await {
            // A removal marks the container before it kills it.
            Ok(Some(found)) if found.removing => Err(error::removed(self.container.id())),
            Ok(Some(found)) => {
                let oom = found.oom_killed.then_some(Oom { limit: found.memory_limit });
                Ok(Ended { code, oom, last_words })
            }
            Ok(None) => Err(error::removed(self.container.id())),
            Err(lost) if lost.is_away() => Err(error::engine_restarted(&engine.address())),
            Err(failed) => Err(error::engine(&failed)),
        }
    }

    /// Waits for an engine that went away. The output of a container that still runs is followed again.
    async fn found_again(&self) -> Result<Stream, TaskError> {
        let engine = &self.driver.engine;
        let asked = async {
            let mut pause = Duration::from_millis(100);
            loop {
                match engine.inspect(self.container.id()).await {
                    Err(lost) if lost.is_away() => tokio::time::sleep(pause).await,
                    other => return other,
                }
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        };
        let found = tokio::select! {
            found = tokio::time::timeout(self.driver.engine_patience, asked) => found,
            reason = self.attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        match found {
            Ok(Err(failed)) => Err(error::engine(&failed)),
            Ok(Ok(Some(found))) if found.running => {
                self.container.attach().await.map_err(|failed| error::engine(&failed))
            }
            Err(_) | Ok(Ok(_)) => Err(error::engine_restarted(&engine.address())),
        }
    }
}

/// Whether the attempt may run on without this process, and a later one can go on with it.
pub(super) fn may_leave(attempt: &Attempt, book: Option<&LogBook>) -> bool {
    attempt.scope().reason() == Some(CancelReason::Left) && book.is_some_and(LogBook::is_sound)
}

/// Compares a mount as the container's first process sees it, links resolved inside its own root.
fn differs(pid: u32, mount: &MountIdentity) -> Option<MountSwapped> {
    let root = std::fs::File::open(format!("/proc/{pid}/root")).ok()?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let seen = openat2(&root, mount.target.as_str(), how).ok()?;
    let seen = std::fs::File::from(seen).metadata().ok()?;
    mount.compare(seen.dev(), seen.ino()).err()
}

async fn joined(pump: Pump) -> Result<(Outlet, Result<(), EngineError>), TaskError> {
    pump.await
        .map_err(|_| TaskError::retryable("output_lost", "the container's output was not read to its end"))
}
