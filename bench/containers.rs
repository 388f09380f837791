//! How many containers a second pass the whole road: durable queue, record, events, outbox and settlement around each.
//!
//! The limit is a bare loop over the engine's API at the same concurrency and network: create, attach, start, wait, remove.
//! Without network ours may be above it: the loop says `network_mode: none`, as a task does, which the worker carries out at
//! less cost (`docker/loopback.rs`).

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptions, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::{StreamExt, stream};
use longshore::task::{Arg, Task};
use serde_json::json;

use crate::support::Outcome;
use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};
use crate::support::rig::Rig;

const IMAGE: &str = "busybox:latest";
/// The task kind.
const KIND: &str = "docker_run";

/// One case: its network, concurrency, containers in a round, and what it must reach of the limit and of Python's.
struct Case {
    network: &'static str,
    concurrency: usize,
    count: usize,
    of_python: f64,
}

const OF_LIMIT: f64 = 0.95;
const CASES: [Case; 4] = [
    Case { network: "bridge", concurrency: 2, count: 24, of_python: 1.15 },
    Case { network: "bridge", concurrency: 8, count: 48, of_python: 1.1 },
    Case { network: "none", concurrency: 2, count: 24, of_python: 1.5 },
    Case { network: "none", concurrency: 8, count: 48, of_python: 1.5 },
];

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin("containers", "`busybox true` through the whole road (containers/s)");
    let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
    let found = docker.inspect_image(IMAGE).await;
    found.map_err(|error| format!("the engine has no {IMAGE} (scripts/busybox-image makes it): {error}"))?;
    for case in CASES {
        let (mut ours, mut bare, mut python) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            bare.push(bare_loop(&docker, &case).await?);
            ours.push(whole_road(&case).await?);
            python.extend(peer.containers(case.count, case.concurrency, case.network).await?);
        }
        let name = format!("{}, concurrency {}", case.network, case.concurrency);
        let row = Row::new(name, Figure::of(&ours)).limit(Figure::of(&bare)).python(Figure::if_any(&python));
        answer.add(row.at_least_of_limit(OF_LIMIT).at_least_of_python(case.of_python));
    }
    Ok(answer.end())
}

async fn whole_road(case: &Case) -> Outcome<f64> {
    let rig = Rig::start(case.concurrency).await?;
    let tasks: Vec<Task> = (0..case.count).map(|_| container(case.network)).collect::<Outcome<_>>()?;
    rig.queue(tasks.into_iter()).await?;
    let drained = rig.drain(case.count, Duration::from_millis(2)).await?;
    rig.end().await?;
    Ok(rate(case, drained.took))
}

fn container(network: &str) -> Outcome<Task> {
    let args = json!({
        "image": IMAGE,
        "pull": "never",
        "container_args": ["true"],
        "options": { "network_mode": network },
    });
    task(&args)
}

/// A container task with these arguments.
pub(crate) fn task(args: &serde_json::Value) -> Outcome<Task> {
    let map = args.as_object().ok_or("arguments are a map")?;
    let read = |(name, value): (&String, &serde_json::Value)| {
        let arg = Arg::from_value(value.clone(), name).map_err(|error| format!("{name}: {error}"))?;
        Ok((name.clone(), arg))
    };
    Ok(Task::new(KIND, map.iter().map(read).collect::<Outcome<_>>()?))
}

async fn bare_loop(docker: &Docker, case: &Case) -> Outcome<f64> {
    let begin = Instant::now();
    let mut running =
        stream::iter(0..case.count).map(|_| bare(docker, case.network)).buffer_unordered(case.concurrency);
    while let Some(ended) = running.next().await {
        ended?;
    }
    Ok(rate(case, begin.elapsed()))
}

/// One container by nothing but the engine's calls.
async fn bare(docker: &Docker, network: &str) -> Outcome<()> {
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(HostConfig { network_mode: Some(network.to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None::<CreateContainerOptions>, body).await?.id;
    let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).build();
    let mut attached = docker.attach_container(&id, Some(options)).await?;
    docker.start_container(&id, None).await?;
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    let mut ended = Box::pin(docker.wait_container(&id, Some(options)));
    let read = async { while attached.output.next().await.is_some() {} };
    let (ended, ()) = tokio::join!(ended.next(), read);
    ended.ok_or("the engine did not say how the container ended")??;
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    Ok(docker.remove_container(&id, Some(options)).await?)
}

#[expect(clippy::cast_precision_loss, reason = "few containers")]
fn rate(case: &Case, took: Duration) -> f64 {
    case.count as f64 / took.as_secs_f64()
}
