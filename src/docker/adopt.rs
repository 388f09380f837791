//! Adoption: the container of an attempt that an earlier process of this worker began runs on, or has ended, and this
//! process goes on with it, under the same number and fence. Called through `run` by the executor.
//!
//! Found by the attempt's name and checked by its labels. What the earlier process told stands in the attempt's
//! [`book`]; the output is read again from its beginning out of the engine's log, and what was told is passed over.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::args::StdoutFilter;
use super::attach::Outlet;
use super::book::{self, Begun, LogBook};
use super::container::Container;
use super::drive::{Run, Stream};
use super::ending::Ending;
use super::engine::Inspected;
use super::error;
use super::judge::TaskJudge;
use super::labels;
use super::request;
use super::run::Room;
use super::spool;
use crate::error::TaskError;
use crate::events::reporter::Earlier;
use crate::events::{Standing, Told};
use crate::handler::{Attempt, Remains, Slot, Staged, gone};
use crate::pipeline::{Pipeline, workspace};
use crate::task::{Fence, Secret, Task, TransformSpec};

/// What an earlier process of `instance` left of the attempt of `task` with `fence`. A container that cannot be gone on with
/// is removed.
pub(super) async fn remains(
    room: &Arc<Room>,
    task: &Task,
    fence: Fence,
    instance: &str,
) -> Result<Remains, TaskError> {
    if spool::is_kept(room, task, fence, instance) {
        // The reaper removes what of its container is left.
        return Ok(Remains::Spooled);
    }
    let Some(found) = find(room, task, fence, instance).await? else { return Ok(Remains::Nothing) };
    let known = book::find(&folder(room, task, fence, instance), task, fence).is_some();
    if known && found.began && !found.removing {
        return Ok(Remains::Adoptable);
    }
    room.driver.engine.remove(&found.id).await.map_err(|failed| error::engine(&failed))?;
    tracing::info!(task = %task.id, container = found.id, "removed: nobody can go on with it");
    Ok(Remains::Nothing)
}

/// The container of that attempt, if it is ours.
async fn find(
    room: &Arc<Room>,
    task: &Task,
    fence: Fence,
    instance: &str,
) -> Result<Option<Inspected>, TaskError> {
    let found = room.driver.engine.inspect(&labels::name(&task.id, fence)).await;
    let found = found.map_err(|failed| error::engine(&failed))?;
    Ok(found.filter(|found| labels::belong_to(&found.labels, instance, (&task.id, fence))))
}

fn folder(room: &Arc<Room>, task: &Task, fence: Fence, instance: &str) -> PathBuf {
    workspace::place(&room.pipeline.work_dir, instance, (&task.id, fence))
}

/// Goes on with what [`remains`] found.
pub(super) async fn adopt(room: &Arc<Room>, attempt: Attempt) -> Result<Box<dyn Staged>, TaskError> {
    let (task, fence, instance) = (attempt.task().clone(), attempt.fence(), attempt.instance());
    let found = find(room, &task, fence, instance).await?.ok_or_else(gone)?;
    let folder = folder(room, &task, fence, instance);
    let (begun, told) = book::find(&folder, &task, fence).ok_or_else(gone)?;
    room.housing().await?;
    let run = room.read(&task)?;
    let mut settings = room.pipeline.clone();
    settings.judge = Arc::new(TaskJudge::new(room.policy.clone(), task.clone()));
    settings.download = room.ceilings(&attempt);
    let request = request::pipeline_request(&run, &task);
    let pipeline = Pipeline::adopt(&request, &attempt, &settings, &begun.made).await?;
    let book = match LogBook::go_on(&folder, &told) {
        Ok(book) => Arc::new(book),
        Err(error) => {
            pipeline.leave();
            let text = format!("cannot write in {}: {error}", folder.display());
            return Err(TaskError::retryable("workspace", text));
        }
    };
    let standing = told.standing.clone();
    resume(&attempt, &begun, told, &book);
    let report = attempt.report();
    for secret in &secrets_of(&task) {
        report.redact(secret);
    }
    report.describe(|details| details.container = Some(found.id.clone()));
    if standing.started.is_none() {
        // Its start was not told any more.
        report.running(Some(&found.id));
    } else if found.running {
        report.runs_on();
    }
    report.note("a new process of the worker goes on with the container");
    let driver = &room.driver;
    let container =
        Container::found(&driver.engine, &driver.remover, found.id, labels::afterwards(&found.labels));
    let output = Reading { standing, filter: run.stdout_filter };
    Ok(Box::new(Adopted { room: room.clone(), attempt, container, pipeline, begun, output, book }))
}

pub(super) fn resume(attempt: &Attempt, begun: &Begun, told: Told, book: &Arc<LogBook>) {
    let earlier =
        Earlier { attempt: begun.attempt, details: begun.details.clone(), times: begun.times.clone(), told };
    attempt.report().resume(earlier, attempt.worker(), book.clone());
}

/// What staging keeps out of all that is told, and is not staged again.
pub(super) fn secrets_of(task: &Task) -> Vec<Secret> {
    let mut found = Vec::new();
    if let Some(girder) = &task.girder {
        found.extend([&girder.token, &girder.client_token].into_iter().flatten().cloned());
        found.extend(girder.job.iter().flat_map(|job| job.headers.values().cloned()));
    }
    let mut look = |spec: &TransformSpec| {
        tokens_in(&serde_json::to_value(spec).unwrap_or_default(), &mut found);
    };
    task.args.values().for_each(|arg| arg.each_transform(&mut look));
    task.result_hooks.iter().for_each(look);
    found
}

fn tokens_in(value: &Value, found: &mut Vec<Secret>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("token").and_then(Value::as_str).map(Secret::new));
            map.values().for_each(|value| tokens_in(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| tokens_in(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A container that an earlier process started, and what is left to do.
struct Adopted {
    room: Arc<Room>,
    attempt: Attempt,
    container: Container,
    pipeline: Pipeline,
    begun: Begun,
    output: Reading,
    book: Arc<LogBook>,
}

/// How its output is read.
struct Reading {
    /// How far it was told.
    standing: Standing,
    filter: Option<StdoutFilter>,
}

#[async_trait]
impl Staged for Adopted {
    async fn run(self: Box<Self>, _slot: Slot) -> Result<Value, TaskError> {
        let Self { room, attempt, container, mut pipeline, begun, output: reading, book } = *self;
        let ending = Ending { room: &room, attempt: &attempt, image: &begun.image };
        let seen = async {
            let (outlet, output) = output(&room, &attempt, &container, &reading).await;
            let argv = &begun.details.argv[..];
            let run = Run { attempt: &attempt, argv, outlet, mounts: &[], book: Some(&book) };
            let broken = std::future::pending();
            let ended = room.driver.see_through(container, run, output, broken).await?;
            ending.finish(ended, &mut pipeline, Some(&book)).await
        };
        // The earlier process may have died while the engine removed it: what is in its place is begun anew.
        let result = seen.await.map_err(|failed| if failed.code == error::REMOVED { gone() } else { failed });
        ending.close(result, pipeline).await
    }

    async fn discard(self: Box<Self>) {
        let Self { room, attempt, container, pipeline, begun, .. } = *self;
        container.scrap().await;
        Ending { room: &room, attempt: &attempt, image: &begun.image }.clean_up(pipeline).await;
    }
}

/// The container's output behind what was told. An engine that drops the oldest of a long log may have dropped some of it.
async fn output(
    room: &Arc<Room>,
    attempt: &Attempt,
    container: &Container,
    Reading { standing, filter }: &Reading,
) -> (Outlet, Stream) {
    let report = attempt.report();
    let oldest = room.driver.engine.oldest_log(container.id()).await;
    // Our first event was told after the first line was written, so an older one must be there.
    let whole = match (&oldest, standing.first_output) {
        (Ok(oldest), Some(told)) => oldest.is_some_and(|oldest| oldest <= told),
        (Ok(_), None) => true,
        (Err(_), _) => false,
    };
    let (outlet, since) = if whole {
        (Outlet::again(report.clone(), room.line_max(), standing), None)
    } else {
        report.warn("the engine has dropped the beginning of the container's log: output may be missing");
        (Outlet::behind(report.clone(), room.line_max(), standing), standing.last_output)
    };
    let output: Stream = match container.logs(since).await {
        Ok(output) => output,
        Err(failed) => {
            report.warn(format!("the container's output cannot be read any more: {failed}"));
            Box::pin(futures_util::stream::empty())
        }
    };
    (outlet.filtered(*filter), output)
}
