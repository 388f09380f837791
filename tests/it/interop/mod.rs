//! An unmodified Girder 5 whose plugins call `docker_run.delay(...)`, and `longshore worker` where Python's worker was.
//!
//! The plugin is `tests/peer/girder/plugin`; it knows nothing of longshore. Each scenario is judged by what Girder's users
//! see: the state of the job, its log, its progress, what was uploaded.
//!
//! | scenario | what it uses |
//! |---|---|
//! | says hello | `container_args`, both streams, states RUNNING and SUCCESS |
//! | says one word and ends | a container that is gone before anybody could attach to it |
//! | says 3000 lines | order and completeness of the log |
//! | speaks unicode | arguments and output |
//! | has a title | `girder_job_title`, `_type`, `_public`, `_other_fields` |
//! | takes docker keywords | `environment`, `working_dir`, `user`, `hostname`, `mem_limit`, `read_only` |
//! | takes other values | numbers, booleans and None among `container_args` |
//! | reads a file | `GirderFileIdToVolume` |
//! | reads a file by another name | its `filename` |
//! | reads a file of a foreign name | its name in Girder |
//! | reads a file in a bound folder | its `volume`, a `BindMountVolume` that is also an argument |
//! | reads an item | `GirderItemIdToVolume`, two files |
//! | reads a folder | `GirderFolderIdToVolume`, folders in it |
//! | reads a stream | `Connect(GirderFileIdToStream, NamedInputPipe)`, 3 MB |
//! | reads a stream slowly | the same, its reader pauses |
//! | reads the beginning of a stream | the same, its reader leaves early |
//! | reads nothing of a stream | the same, nobody opens the pipe |
//! | goes to an item | `VolumePath`, `GirderUploadVolumePathToItem` |
//! | goes to a folder | `GirderUploadVolumePathToFolder`, names and content in unicode |
//! | goes to a folder as a tree | the same with folders |
//! | goes to an item in bulk | 12 MB |
//! | goes out of a temporary volume | `TemporaryVolume()` in argument and hook |
//! | lacks an output | an upload of what was not made |
//! | uploads nothing of a failure | a hook after exit code 7 |
//! | pipes to the worker's output | `Connect(NamedOutputPipe, HostStdOut)` |
//! | pipes to the worker's error output | `HostStdErr` |
//! | prints to the worker's output | `stream_connectors`, `ContainerStdOut` |
//! | streams in chunks | `ChunkedTransferEncodingStream` |
//! | mounts as docker-py does | `volumes` as a dict |
//! | mounts read-only | `BindMountVolume(mode="ro")` in a list |
//! | names the default volume | `TemporaryVolume.default` as an argument |
//! | tells its progress | `ProgressPipe` |
//! | leaves artifacts | `GirderUploadVolumePathJobArtifact`, a flat folder |
//! | leaves artifacts of a failure | `upload_on_exception=True` |
//! | leaves no artifacts of a failure unasked | the same without it |
//! | may lack an artifact | what was not made is no error |
//! | fails | exit code 3 |
//! | lacks its image | `pull_image=False` |
//! | waits for its countdown | `countdown` |
//! | expires | `expires` before the countdown ends |
//! | runs out of time | `time_limit`; no container is left |
//! | is awaited | `AsyncResult.get()` and `.state` in Girder, good and bad |
//! | is scheduled by Girder | a job of the handler `worker_handler` |
//! | is canceled before its time | cancel of an INACTIVE job |
//! | comes twenty times at once | 20 jobs on 4 lanes |
//! | mounts a file where it lies | slicer: `DirectGirderFileIdToVolume`, mounted and fetched, `if-not-present` |
//! | joins files with commas | slicer: `CommaJoinedVolumes` |
//! | calls Girder itself | slicer: `GirderApiUrl`, `GirderToken`, which nobody is told |
//! | tells its progress in its output | slicer: `<filter-progress>` and its like |
//! | lacks its image everywhere | slicer: `if-not-present` and no registry |
//! | is seen, waits and is canceled | `/worker/status`; cancel of a QUEUED job (CANCELING) and of running ones, on a broker that they leave in peace |
//!
//! What Girder 5 itself cannot do: it has no route for a job's artifacts (the test's server brings Girder 3's back), and it
//! answers 500 to each download of a file whose name holds a letter such as ß or ø, which Unicode does not take apart
//! (`setContentDisposition`): "a foreign name" has others. Only its `worker_handler` makes QUEUED jobs; those of
//! `docker_run.delay` are INACTIVE until they run.

mod compose;
mod ends;
mod fleet;
mod inputs;
mod outputs;
mod site;
mod slicer;
mod tap;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use crate::support::redis::Redis;
use site::{Carrier, Site};

/// As many as keep four lanes busy and leave the machine some air.
const AT_ONCE: usize = 8;

type Run = Box<dyn FnOnce(Arc<Site>) -> Pin<Box<dyn Future<Output = ()>>>>;

fn row<F: Future<Output = ()> + 'static>(
    name: &'static str,
    run: impl FnOnce(Arc<Site>) -> F + 'static,
) -> (&'static str, Run) {
    (name, Box::new(move |site| Box::pin(run(site))))
}

/// All but the last row of the table: that one needs the worker to itself.
fn scenarios() -> Vec<(&'static str, Run)> {
    vec![
        row("says hello", inputs::says_hello),
        row("says one word and ends", inputs::says_one_word),
        row("says 3000 lines", inputs::says_much),
        row("speaks unicode", inputs::speaks_unicode),
        row("has a title", inputs::has_a_title),
        row("takes docker keywords", inputs::takes_docker_keywords),
        row("takes other values", inputs::takes_other_values),
        row("reads a file", inputs::reads_a_file),
        row("reads a file by another name", inputs::reads_a_file_by_another_name),
        row("reads a file of a foreign name", inputs::reads_a_file_of_a_foreign_name),
        row("reads a file in a bound folder", inputs::reads_a_file_in_a_bound_folder),
        row("reads an item", inputs::reads_an_item),
        row("reads a folder", inputs::reads_a_folder),
        row("reads a stream", inputs::reads_a_stream),
        row("reads a stream slowly", inputs::reads_a_stream_slowly),
        row("reads the beginning of a stream", inputs::reads_the_beginning_of_a_stream),
        row("reads nothing of a stream", inputs::reads_nothing_of_a_stream),
        row("goes to an item", outputs::goes_to_an_item),
        row("goes to a folder", outputs::goes_to_a_folder),
        row("goes to a folder as a tree", outputs::goes_to_a_folder_as_a_tree),
        row("goes to an item in bulk", outputs::goes_to_an_item_in_bulk),
        row("goes out of a temporary volume", outputs::goes_out_of_a_temporary_volume),
        row("lacks an output", outputs::lacks_an_output),
        row("uploads nothing of a failure", outputs::uploads_nothing_of_a_failure),
        row("pipes to the worker's output", outputs::pipes_to_the_workers_output),
        row("pipes to the worker's error output", outputs::pipes_to_the_workers_error_output),
        row("prints to the worker's output", outputs::prints_to_the_workers_output),
        row("streams in chunks", outputs::streams_in_chunks),
        row("mounts as docker-py does", outputs::mounts_as_docker_py_does),
        row("mounts read-only", outputs::mounts_read_only),
        row("names the default volume", outputs::names_the_default_volume),
        row("tells its progress", outputs::tells_its_progress),
        row("leaves artifacts", outputs::leaves_artifacts),
        row("leaves artifacts of a failure", outputs::leaves_artifacts_of_a_failure),
        row("leaves no artifacts of a failure unasked", outputs::leaves_no_artifacts_of_a_failure_unasked),
        row("may lack an artifact", outputs::may_lack_an_artifact),
        row("fails", ends::fails),
        row("lacks its image", ends::lacks_its_image),
        row("waits for its countdown", ends::waits_for_its_countdown),
        row("expires", ends::expires),
        row("runs out of time", ends::runs_out_of_time),
        row("is awaited", ends::is_awaited),
        row("is scheduled by Girder", ends::is_scheduled_by_girder),
        row("is canceled before its time", ends::is_canceled_before_its_time),
        row("comes twenty times at once", ends::come_twenty_at_once),
        row("mounts a file where it lies", slicer::mounts_a_file_where_it_lies),
        row("joins files with commas", slicer::joins_files_with_commas),
        row("calls Girder itself", slicer::calls_girder_itself),
        row("tells its progress in its output", slicer::tells_its_progress_in_its_output),
        row("lacks its image everywhere", slicer::lacks_its_image),
    ]
}

const ALONE: &str = "is seen, waits and is canceled";

#[test]
fn every_scenario_stands_in_the_table() {
    let table =
        include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" |").next());
    let listed: Vec<&str> = table.filter(|name| *name != "scenario").collect();
    let mut run: Vec<&str> = scenarios().into_iter().map(|(name, _)| name).collect();
    run.push(ALONE);
    assert_eq!(listed, run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_girder_site_on_rabbitmq_runs_as_ever() {
    runs_as_ever(Carrier::rabbitmq().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_girder_site_on_redis_runs_as_ever() {
    runs_as_ever(Carrier::Redis(Redis::start().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_worker_and_ours_share_redis_and_run_every_task_once() {
    fleet::shares_a_queue(Carrier::Redis(Redis::start().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_worker_and_ours_share_a_queue_and_run_every_task_once() {
    fleet::shares_a_queue(Carrier::rabbitmq().await).await;
}

/// Runs every scenario and tells of all that failed.
async fn runs_as_ever(carrier: Carrier) {
    let site = Arc::new(Site::start(carrier).await);
    let turns = Semaphore::new(AT_ONCE);
    let runs = scenarios().into_iter().map(|(name, run)| {
        let (site, turns) = (site.clone(), &turns);
        async move {
            let _turn = turns.acquire().await.unwrap();
            let began = Instant::now();
            let ended = AssertUnwindSafe(run(site)).catch_unwind().await;
            eprintln!("{:6.1} s  {name}", began.elapsed().as_secs_f64());
            // What went wrong was printed when it did.
            ended.err().map(|_| name)
        }
    });
    let ended = join_all(runs).await;
    let (all, failed) = (ended.len(), ended.into_iter().flatten().collect::<Vec<_>>());
    assert!(
        failed.is_empty(),
        "{} of {all} scenarios failed: {failed:?}\n{}",
        failed.len(),
        site.worker.log()
    );
    ends::all_wait_are_seen_and_canceled(&site).await;
}
