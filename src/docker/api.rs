//! The Docker Engine API behind [`Engine`](super::engine::Engine), through bollard. Owns the connection and turns every
//! failure into an [`EngineError`], once; decides nothing.
//!
//! # Decisions
//! - The version is agreed on with the first call and again after a failed one, never when the worker starts: an engine
//!   that comes up later is an engine like any other.
//! - `wait` asks for `not-running` after the start: `next-exit` never returns when the exit came first.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummaryStateEnum, CreateImageInfo,
    ImageInspect,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::address::{Address, Target};
use super::engine::{
    Containers, Creation, EngineError, Image, Images, Inspected, Listed, Logs, Output, PullRequest, PullStep,
    Survey,
};

/// An engine that speaks the Docker API: Docker, or Podman.
#[derive(Debug)]
pub struct DockerApi {
    address: Address,
    timeout: Duration,
    client: OnceCell<Docker>,
}

/// For requests whose answer comes when a container ends.
const UNBOUNDED: Duration = Duration::from_secs(u32::MAX as u64);

impl DockerApi {
    /// An engine at `address` that must answer each request within `timeout`. Connects when it is first needed.
    pub fn new(address: Address, timeout: Duration) -> Self {
        Self { address, timeout: timeout.max(Duration::from_secs(1)), client: OnceCell::new() }
    }

    async fn client(&self, call: &'static str) -> Result<&Docker, EngineError> {
        let connect = async || {
            let target = self.address.target();
            let seconds = self.timeout.as_secs();
            let docker = match &target {
                Target::Unix(path) => {
                    Docker::connect_with_unix(&path.to_string_lossy(), seconds, API_DEFAULT_VERSION)
                }
                Target::Tcp(address) => Docker::connect_with_http(address, seconds, API_DEFAULT_VERSION),
            };
            let docker = docker.map_err(|error| self.failed(call, error))?;
            docker.negotiate_version().await.map_err(|error| self.failed(call, error))
        };
        self.client.get_or_try_init(connect).await
    }

    async fn patient(&self, call: &'static str) -> Result<Docker, EngineError> {
        Ok(self.client(call).await?.clone().with_timeout(UNBOUNDED))
    }

    /// What an error of bollard's means.
    fn failed(&self, call: &'static str, error: Error) -> EngineError {
        let address = || self.address.target().to_string();
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { call, status: Some(status_code), message }
            }
            Error::DockerStreamError { error } => EngineError::Refused { call, status: None, message: error },
            Error::RequestTimeoutError => {
                EngineError::Silent { address: address(), call, seconds: self.timeout.as_secs() }
            }
            Error::SocketNotFoundError(_) => {
                EngineError::Away { address: address(), reason: "there is no such socket".to_owned() }
            }
            Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. } => {
                EngineError::Away { address: address(), reason: innermost(&error) }
            }
            other => EngineError::Malformed { call, message: other.to_string() },
        }
    }
}

/// The cause at the end of the chain: "connection refused" rather than "client error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[async_trait]
impl Containers for DockerApi {
    async fn create(&self, creation: Creation) -> Result<(String, Vec<String>), EngineError> {
        const CALL: &str = "create the container";
        let mut options = CreateContainerOptionsBuilder::new().name(&creation.name);
        if let Some(platform) = &creation.platform {
            options = options.platform(platform);
        }
        let created = self.client(CALL).await?.create_container(Some(options.build()), creation.body).await;
        let created = created.map_err(|error| self.failed(CALL, error))?;
        Ok((created.id, created.warnings))
    }

    async fn attach(&self, id: &str) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError> {
        const CALL: &str = "attach to the container";
        let options =
            AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).logs(false).build();
        let attached = self.client(CALL).await?.attach_container(id, Some(options)).await;
        let attached = attached.map_err(|error| self.failed(CALL, error))?;
        let address = self.address.target().to_string();
        Ok(attached
            .output
            .map(move |piece| match piece {
                Ok(piece) => Ok(output_of(piece)),
                Err(error) => Err(EngineError::Away { address: address.clone(), reason: innermost(&error) }),
            })
            .boxed())
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        const CALL: &str = "start the container";
        self.client(CALL).await?.start_container(id, None).await.map_err(|error| self.failed(CALL, error))
    }

    async fn wait(&self, id: &str) -> Result<i64, EngineError> {
        const CALL: &str = "wait for the container";
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let docker = self.patient(CALL).await?;
        let mut answers = Box::pin(docker.wait_container(id, Some(options)));
        match answers.next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            // Bollard calls every exit code but 0 an error.
            Some(Err(Error::DockerContainerWaitError { code, error })) if error.is_empty() => Ok(code),
            Some(Err(Error::DockerContainerWaitError { error, .. })) => {
                Err(EngineError::Refused { call: CALL, status: None, message: error })
            }
            // An engine that stops ends the answer in its middle.
            Some(Err(Error::JsonSerdeError { .. } | Error::JsonDataError { .. })) | None => {
                Err(EngineError::Away {
                    address: self.address.target().to_string(),
                    reason: "the connection ended before the container did".to_owned(),
                })
            }
            Some(Err(error)) => Err(self.failed(CALL, error)),
        }
    }

    async fn stop(&self, id: &str, grace: u32) -> Result<(), EngineError> {
        const CALL: &str = "stop the container";
        let seconds = i32::try_from(grace).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let patience = self.timeout + Duration::from_secs(u64::from(grace));
        let docker = self.client(CALL).await?.clone().with_timeout(patience);
        gone_is_fine(docker.stop_container(id, Some(options)).await).map_err(|error| self.failed(CALL, error))
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        const CALL: &str = "remove the container";
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self.client(CALL).await?.remove_container(id, Some(options)).await;
        match removed {
            // 409: its removal is already on its way.
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
            other => gone_is_fine(other).map_err(|error| self.failed(CALL, error)),
        }
    }
}

fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
        other => other,
    }
}

#[async_trait]
impl Logs for DockerApi {
    async fn logs(
        &self,
        id: &str,
        since: Option<Timestamp>,
    ) -> Result<BoxStream<'static, Result<Output, EngineError>>, EngineError> {
        const CALL: &str = "read the container's log";
        // The engine counts whole seconds: what it has too much is left out by the time that stands before each piece.
        let second = since.map_or(0, |at| i32::try_from(at.as_second()).unwrap_or(i32::MAX));
        let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true);
        let options = options.since(second).timestamps(since.is_some()).build();
        let pieces = self.patient(CALL).await?.logs(id, Some(options));
        let address = self.address.clone();
        let teller = Self::new(address, self.timeout);
        let wanted = pieces.filter_map(move |piece| {
            let told = match piece.map_err(|error| teller.failed(CALL, error)) {
                Ok(piece) => written_after(output_of(piece), since).map(Ok),
                Err(error) => Some(Err(error)),
            };
            std::future::ready(told)
        });
        Ok(wanted.boxed())
    }

    async fn oldest_log(&self, id: &str) -> Result<Option<Timestamp>, EngineError> {
        const CALL: &str = "read the container's log";
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).timestamps(true).build();
        let mut pieces = Box::pin(self.client(CALL).await?.logs(id, Some(options)));
        match pieces.next().await {
            None => Ok(None),
            Some(Ok(piece)) => Ok(written_at(output_of(piece).bytes()).map(|(at, _)| at)),
            Some(Err(error)) => Err(self.failed(CALL, error)),
        }
    }
}

fn output_of(piece: LogOutput) -> Output {
    match piece {
        LogOutput::StdErr { message } => Output::Stderr(message),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            Output::Stdout(message)
        }
    }
}

/// The piece without the time that stands before it, if it was written after `since`.
fn written_after(piece: Output, since: Option<Timestamp>) -> Option<Output> {
    let Some(since) = since else { return Some(piece) };
    let text = match written_at(piece.bytes()) {
        Some((at, text)) if at > since => piece.bytes().slice(text..),
        Some(_) => return None,
        None => return Some(piece),
    };
    Some(match piece {
        Output::Stdout(_) => Output::Stdout(text),
        Output::Stderr(_) => Output::Stderr(text),
    })
}

/// When a piece was written, and where its text begins.
fn written_at(piece: &[u8]) -> Option<(Timestamp, usize)> {
    let end = piece.iter().take(64).position(|byte| *byte == b' ')?;
    let at = std::str::from_utf8(&piece[..end]).ok()?.parse().ok()?;
    Some((at, end + 1))
}

#[async_trait]
impl Images for DockerApi {
    async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        const CALL: &str = "look at the image";
        match self.client(CALL).await?.inspect_image(reference).await {
            Ok(image) => Ok(Some(image_of(image))),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(CALL, error)),
        }
    }

    async fn pull(&self, pull: PullRequest) -> BoxStream<'static, Result<PullStep, EngineError>> {
        const CALL: &str = "pull the image";
        let docker = match self.patient(CALL).await {
            Ok(docker) => docker,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let mut options = CreateImageOptionsBuilder::new().from_image(&pull.reference);
        if let Some(platform) = &pull.platform {
            options = options.platform(platform);
        }
        let steps = docker.create_image(Some(options.build()), None, pull.credentials);
        // Errors are told apart by a handle of their own, since the stream outlives this borrow.
        let teller = Self::new(self.address.clone(), self.timeout);
        steps.map(move |step| step.map(step_of).map_err(|error| teller.failed(CALL, error))).boxed()
    }
}

fn image_of(image: ImageInspect) -> Image {
    let config = image.config.unwrap_or_default();
    Image {
        id: image.id.unwrap_or_default(),
        repo_digests: image.repo_digests.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
    }
}

fn step_of(info: CreateImageInfo) -> PullStep {
    let detail = info.progress_detail.unwrap_or_default();
    let bytes = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok());
    PullStep {
        layer: info.id,
        status: info.status.unwrap_or_default(),
        current: bytes(detail.current),
        total: bytes(detail.total),
    }
}

#[async_trait]
impl Survey for DockerApi {
    fn address(&self) -> String {
        self.address.target().to_string()
    }

    async fn listens(&self) -> bool {
        self.address.target().listens().await
    }

    async fn version(&self) -> Result<String, EngineError> {
        const CALL: &str = "tell its version";
        let version = self.client(CALL).await?.version().await.map_err(|error| self.failed(CALL, error))?;
        let name = version.platform.map(|platform| platform.name).filter(|name| !name.is_empty());
        let number = version.version.unwrap_or_default();
        Ok(name.map_or_else(|| number.clone(), |name| format!("{name} {number}")))
    }

    async fn inspect(&self, id: &str) -> Result<Option<Inspected>, EngineError> {
        const CALL: &str = "look at the container";
        match self.client(CALL).await?.inspect_container(id, None).await {
            Ok(found) => Ok(Some(inspected(found))),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(CALL, error)),
        }
    }

    async fn list(&self, labels: &[String]) -> Result<Vec<Listed>, EngineError> {
        const CALL: &str = "list containers";
        let filters = HashMap::from([("label", labels.to_vec())]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let list = self.client(CALL).await?.list_containers(Some(options)).await;
        let list = list.map_err(|error| self.failed(CALL, error))?;
        Ok(list
            .into_iter()
            .filter_map(|container| {
                let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
                Some(Listed {
                    id: container.id?,
                    name: name.trim_start_matches('/').to_owned(),
                    labels: container.labels.unwrap_or_default(),
                    running: container.state == Some(ContainerSummaryStateEnum::RUNNING),
                    created: container.created.unwrap_or_default(),
                })
            })
            .collect())
    }

    async fn network_driver(&self, name: &str) -> Result<Option<String>, EngineError> {
        const CALL: &str = "look at the network";
        match self.client(CALL).await?.inspect_network(name, None).await {
            Ok(network) => Ok(Some(network.driver.unwrap_or_default())),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(CALL, error)),
        }
    }
}

fn inspected(found: ContainerInspectResponse) -> Inspected {
    let state = found.state.unwrap_or_default();
    let memory = found.host_config.and_then(|host| host.memory).and_then(|bytes| u64::try_from(bytes).ok());
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    Inspected {
        id: found.id.unwrap_or_default(),
        labels: found.config.and_then(|config| config.labels).unwrap_or_default(),
        began: state.status.is_some_and(|status| status != ContainerStateStatusEnum::CREATED),
        running: state.running.unwrap_or_default(),
        removing: matches!(
            state.status,
            Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)
        ),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
        exit_code: state.exit_code,
        oom_killed: state.oom_killed.unwrap_or_default(),
        memory_limit: memory.filter(|bytes| *bytes > 0),
        mounts: found
            .mounts
            .unwrap_or_default()
            .into_iter()
            .filter_map(|mount| Some((mount.destination?, mount.source?)))
            .collect(),
        networks: networks.into_keys().collect(),
    }
}
