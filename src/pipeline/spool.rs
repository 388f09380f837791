//! Outputs that nobody took, kept until somebody does: apart from volumes and containers, in a folder of the worker's own.
//!
//! `<spool>/longshore-<instance>/<attempt>/` (mode 0700) holds a folder of outputs for each hook that is not through,
//! `sent.jsonl` with what of them was brought away, and `spool.json`, written last and synced: without it there is no
//! spool. [`keep`] makes it, when the hooks of a pipeline fail; [`bring`] does what the hooks would have done.
//!
//! # Decisions
//! - Outputs of temporary volumes are moved, so that nothing is written twice; those of mounts of the task stay where they
//!   are and are copied, since others may change them.
//! - A new token is kept with the outputs, and goes to the Girder of the first hook that waits and nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::outputs::Taking;
use super::sent::Sent;
use super::transforms::girder_upload;
use super::workspace::{self, Workspace};
use super::{Exit, Settings, Transform};
use crate::error::TaskError;
use crate::girder::{self, Connection};
use crate::handler::{Attempt, spooled};
use crate::task::{Fence, GirderContext, Secret, Task, TaskId, TransformSpec};

/// The form of `spool.json`. A process that knows another one does not go on from it.
const VERSION: u32 = 1;
const DOCUMENT: &str = "spool.json";

/// What is kept of one attempt.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    task: TaskId,
    fence: Fence,
    /// What the hooks before gave.
    values: Vec<Value>,
    hooks: Vec<Kept>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fresh: Option<Fresh>,
}

/// A hook that is not through.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Its place among the task's hooks.
    hook: usize,
    /// Where its outputs came from, when they are to be deleted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<PathBuf>,
}

/// A token in place of the task's.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Fresh {
    /// To whom it goes.
    pub(super) api_url: String,
    pub(super) token: Secret,
}

/// Where what is kept of an attempt lies below `spool`.
pub fn place(spool: &Path, instance: &str, attempt: (&TaskId, Fence)) -> PathBuf {
    workspace::place(spool, instance, attempt)
}

/// Whether outputs of the attempt of `task` with `fence` are kept in `folder`.
pub fn is_kept(folder: &Path, task: &TaskId, fence: Fence) -> bool {
    whose(folder).is_some_and(|(kept, at)| (&kept, at) == (task, fence))
}

/// Of which attempt outputs are kept in `folder`.
pub fn whose(folder: &Path) -> Option<(TaskId, Fence)> {
    read(folder).ok().map(|document| (document.task, document.fence))
}

/// What was told of the outputs that were brought away from `folder`.
pub fn brought(folder: &Path) -> Vec<Value> {
    Sent::at(folder).uploads()
}

/// The hooks of a pipeline that are not through, each with its place among the task's hooks.
pub(super) type Waiting<'a> = Vec<(usize, &'a mut Box<dyn Transform>)>;

/// Keeps what `hooks` would bring away below `spool`; `values` are what the hooks before them gave.
pub(super) async fn keep(
    spool: &Path,
    attempt: &Attempt,
    hooks: Waiting<'_>,
    (values, sent): (Vec<Value>, &Sent),
) -> Result<(), TaskError> {
    let failed = |what: &Path, error: &io::Error| {
        let text = format!("cannot keep outputs for later in {}: {error}", what.display());
        TaskError::retryable("spool", text)
    };
    fs::create_dir_all(spool).map_err(|error| failed(spool, &error))?;
    let before = place(spool, attempt.instance(), (&attempt.task().id, attempt.fence()));
    if before.exists() {
        // A process died while it kept them.
        forget(spool, attempt.instance(), (&attempt.task().id, attempt.fence()));
    }
    // Removed again with all in it when something goes wrong.
    let folder = Workspace::make(spool, attempt)?;
    let how = if hooks.len() == 1 { Taking::Move } else { Taking::Copy };
    let mut kept = Vec::with_capacity(hooks.len());
    for (hook, transform) in hooks {
        let (place, _) = folder.folder(&hook.to_string(), 0o700)?;
        let origin = transform.keep(&place, how).await?;
        kept.push(Kept { hook, origin });
    }
    sent.copy_to(folder.path()).map_err(|error| failed(folder.path(), &error))?;
    let document = Document {
        version: VERSION,
        task: attempt.task().id.clone(),
        fence: attempt.fence(),
        values,
        hooks: kept,
        fresh: None,
    };
    write(folder.path(), &document).map_err(|error| failed(folder.path(), &error))?;
    folder.leave();
    Ok(())
}

/// Brings away what is kept of `attempt` in `folder`, with `token` from now on when it is given; what the hooks give.
pub async fn bring(
    folder: &Path,
    attempt: &Attempt,
    settings: &Settings,
    token: Option<Secret>,
) -> Result<Value, TaskError> {
    let task = attempt.task();
    let unreadable = |error: io::Error| {
        let text = format!("the outputs in {} cannot be brought away: {error}", folder.display());
        TaskError::retryable("spool", text)
    };
    let mut document = read(folder).map_err(unreadable)?;
    if let Some(token) = token {
        document.fresh = fresh(task, &document, token)?;
        write(folder, &document).map_err(unreadable)?;
    }
    if let Some(fresh) = &document.fresh {
        // The job is told with it, too.
        attempt.report().renew(&fresh.api_url, &fresh.token);
    }
    let sent = Sent::at(folder);
    let mut values = document.values;
    let mut through = Vec::with_capacity(document.hooks.len());
    for kept in document.hooks {
        let spec = hook(task, kept.hook)?;
        let place = girder_upload::Kept {
            root: folder.join(kept.hook.to_string()),
            origin: kept.origin,
            sent: sent.clone(),
            hook: kept.hook,
        };
        let connection = connection(spec, task.girder.as_ref(), document.fresh.as_ref())?;
        let mut hook = girder_upload::go_on(spec, place, (attempt, settings), connection)?;
        let value = hook.finish(&Exit { code: 0, oom_killed: false }).await;
        values.push(value.map_err(|error| if girder::may_wait(&error) { spooled(&error) } else { error })?);
        through.push(hook);
    }
    for mut hook in through {
        hook.cleanup().await;
    }
    Ok(Value::Array(values))
}

/// Removes what is kept of an attempt below `spool`.
pub fn forget(spool: &Path, instance: &str, attempt: (&TaskId, Fence)) {
    let name = workspace::attempt_name(attempt.0, attempt.1);
    if let Err(error) = workspace::remove(spool, instance, &name)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(task = %attempt.0, %error, "outputs that were brought away are left behind");
    }
}

fn hook(task: &Task, number: usize) -> Result<&TransformSpec, TaskError> {
    task.result_hooks.get(number).ok_or_else(|| {
        TaskError::permanent("spool", format!("the task has no result hook {number} any more"))
    })
}

/// How the Girder of a hook is reached.
fn connection(
    spec: &TransformSpec,
    girder: Option<&GirderContext>,
    fresh: Option<&Fresh>,
) -> Result<Connection, TaskError> {
    let connection = Connection::of_transform(girder_upload::access(spec), girder)?;
    Ok(match fresh.filter(|fresh| girder::same(&fresh.api_url, &connection.api_url)) {
        Some(fresh) => Connection { token: Some(fresh.token.clone()), ..connection },
        None => connection,
    })
}

/// A token for the Girder of the first hook.
fn fresh(task: &Task, document: &Document, token: Secret) -> Result<Option<Fresh>, TaskError> {
    let Some(first) = document.hooks.first() else { return Ok(None) };
    let connection = connection(hook(task, first.hook)?, task.girder.as_ref(), None)?;
    Ok(Some(Fresh { api_url: connection.api_url, token }))
}

fn read(folder: &Path) -> io::Result<Document> {
    let document: Document = serde_json::from_slice(&fs::read(folder.join(DOCUMENT))?)?;
    if document.version == VERSION {
        Ok(document)
    } else {
        Err(io::Error::other(format!("its form is version {}, not {VERSION}", document.version)))
    }
}

/// Puts `document` in place, whole or not at all, on disk when this returns.
fn write(folder: &Path, document: &Document) -> io::Result<()> {
    let draft = folder.join(format!("{DOCUMENT}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(document)?)?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(DOCUMENT))?;
    File::open(folder)?.sync_all()
}
