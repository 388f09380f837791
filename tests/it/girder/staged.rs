//! Inputs staged by the pipeline alone, and a Girder of one's own words to stage them from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longshore::error::TaskError;
use longshore::girder::{self, Site};
use longshore::handler::Attempt;
use longshore::pipeline::{ContainerPlan, Pipeline, Request, Settings};
use longshore::task::{Arg, ArgMap, Task};
use longshore::units::Span;
use serde_json::{Value, json};

use crate::support::faulty::{Asked, Faulty, Reply};

/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A staged pipeline.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) plan: ContainerPlan,
    pub(super) attempt: Attempt,
    _work: tempfile::TempDir,
    _pipeline: Kept,
}

/// What was staged goes when it is dropped.
struct Kept(#[expect(dead_code, reason = "it is kept for what its end removes")] Pipeline);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

impl Staged {
    /// Where the n-th argument lies on the host.
    pub(super) fn host(&self, n: usize) -> PathBuf {
        let path = &self.plan.arguments[n];
        let mount = self.plan.mounts.iter().find(|mount| path.starts_with(&mount.target)).unwrap();
        mount.source.join(path[mount.target.len()..].trim_start_matches('/'))
    }

    /// The n-th argument below its volume.
    pub(super) fn below(&self, n: usize) -> String {
        let path = &self.plan.arguments[n];
        let mount = self.plan.mounts.iter().find(|mount| path.starts_with(&mount.target)).unwrap();
        path[mount.target.len()..].to_owned()
    }
}

/// Short waits: 1 s of standing still, 2 s of trying again.
pub(super) fn quick() -> girder::Settings {
    girder::Settings {
        stall_timeout: Span::seconds(1),
        retry_budget: Span::seconds(2),
        ..girder::Settings::default()
    }
}

/// Stages `args` with Girder clients of `site`.
pub(super) async fn stage_with(
    args: &[Value],
    site: &Arc<Site>,
    change: impl FnOnce(&mut Settings),
) -> Result<Staged, TaskError> {
    let work = tempfile::tempdir().unwrap();
    let attempt = Attempt::detached(Task::new("docker_run", ArgMap::new()));
    let container_args = args.iter().map(|arg| Arg::from_value(arg.clone(), "args").unwrap()).collect();
    let request = Request { container_args, ..Request::default() };
    let mut settings = Settings { girder: site.clone(), ..Settings::new(work.path()) };
    change(&mut settings);
    let staged = tokio::time::timeout(PATIENCE, Pipeline::stage(request, &attempt, &settings));
    let (pipeline, plan) = staged.await.expect("staging ends")?;
    Ok(Staged { plan, attempt, _work: work, _pipeline: Kept(pipeline) })
}

/// Stages `args` with short waits.
pub(super) async fn stage(args: &[Value]) -> Result<Staged, TaskError> {
    stage_with(args, &Arc::new(Site::plain(quick())), |_| {}).await
}

/// A file of `server`, to a volume.
pub(super) fn file(server: &Faulty, id: &str) -> Value {
    json!({"$": "GirderFileIdToVolume", "file_id": id,
        "girder": {"api_url": format!("{}/api/v1", server.url()), "token": TOKEN}})
}

/// What opens the scripted servers.
pub(super) const TOKEN: &str = "the-token-of-the-task";

/// Girder's document of a file.
pub(super) fn document(id: &str, name: &str, size: usize) -> Value {
    json!({"_id": id, "name": name, "size": size, "created": "2026-01-01T00:00:00.000000+00:00"})
}

/// A Girder with the one file `f1` of `content`, whose download is answered by `download`.
pub(super) async fn one_file(
    content: Vec<u8>,
    download: impl Fn(&Asked, &[u8]) -> Reply + Send + Sync + 'static,
) -> Faulty {
    Faulty::start(move |asked| match asked.path.as_str() {
        "/api/v1/file/f1" => Reply::json(&document("f1", "a.bin", content.len())),
        "/api/v1/file/f1/download" => download(asked, &content),
        _ => Reply::error(404, "no such route"),
    })
    .await
}

/// Bytes that differ everywhere.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}
