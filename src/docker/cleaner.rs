//! Removes files that the worker may not remove itself, by a container that may: as root, with nothing mounted but that
//! folder, from an image that is already here. Used by the pipeline's cleanup, and only when its own unlink was refused.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, HostConfig};

use super::engine::{Creation, Engine};
use super::error;
use super::labels::{self, Afterwards};
use super::request::bind;
use super::selfhost::Housing;
use crate::error::TaskError;
use crate::handler::Attempt;
use crate::pipeline::Cleaner;

/// Where the cleaner sees the folder.
const TARGET: &str = "/longshore-clean";
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Cleans up after one attempt.
pub struct ContainerCleaner<'a> {
    engine: Arc<dyn Engine>,
    attempt: &'a Attempt,
    image: &'a str,
    housing: Option<&'a Housing>,
}

impl<'a> ContainerCleaner<'a> {
    /// With a container of `image`, a local image with a shell; it is never pulled.
    pub fn new(engine: Arc<dyn Engine>, attempt: &'a Attempt, image: &'a str) -> Self {
        Self { engine, attempt, image, housing: None }
    }

    /// For a worker that runs in a container itself.
    pub(super) fn housed(self, housing: Option<&'a Housing>) -> Self {
        Self { housing, ..self }
    }
}

#[async_trait]
impl Cleaner for ContainerCleaner<'_> {
    async fn clean(&self, folder: &Path) -> Result<(), TaskError> {
        let source =
            self.housing.map_or_else(|| Ok(folder.to_owned()), |housing| housing.host_path(folder))?;
        let creation = self.creation(bind(&source, TARGET, "rw"));
        let made = self.engine.create(creation).await;
        let (id, _) =
            made.map_err(|refused| self.failed(folder, &error::create(&refused, self.image).message))?;
        let code = tokio::time::timeout(PATIENCE, self.run(&id)).await;
        // The folder is removed next, so the container goes first.
        self.engine.remove(&id).await.map_err(|failed| error::engine(&failed))?;
        match code {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(code)) => Err(self.failed(folder, &format!("it ended with {code}"))),
            Ok(Err(failed)) => Err(self.failed(folder, &failed.message)),
            Err(_) => Err(self.failed(folder, &format!("it took longer than {PATIENCE:?}"))),
        }
    }
}

impl ContainerCleaner<'_> {
    fn creation(&self, bind: String) -> Creation {
        let words = |list: &[&str]| Some(list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let mut own = labels::labels(self.attempt, None, Afterwards::Remove);
        own.insert(labels::CLEANER.to_owned(), "true".to_owned());
        // Names that the shell does not expand stay as they are, which -f passes over.
        let script = format!("rm -rf {TARGET}/* {TARGET}/.[!.]* {TARGET}/..?*");
        let host = HostConfig {
            binds: Some(vec![bind]),
            network_mode: Some("none".to_owned()),
            cap_drop: words(&["ALL"]),
            cap_add: words(&["DAC_OVERRIDE", "FOWNER"]),
            security_opt: words(&["no-new-privileges"]),
            readonly_rootfs: Some(true),
            pids_limit: Some(64),
            ..HostConfig::default()
        };
        Creation {
            name: format!("longshore-clean-{}", uuid::Uuid::now_v7().simple()),
            platform: None,
            body: ContainerCreateBody {
                image: Some(self.image.to_owned()),
                entrypoint: words(&["/bin/sh", "-c"]),
                cmd: Some(vec![script]),
                user: Some("0:0".to_owned()),
                working_dir: Some("/".to_owned()),
                labels: Some(own),
                // Past the engine's network stack, which takes most of what so short a container costs.
                network_disabled: Some(true),
                host_config: Some(host),
                ..ContainerCreateBody::default()
            },
        }
    }

    async fn run(&self, id: &str) -> Result<i64, TaskError> {
        self.engine.start(id).await.map_err(|failed| error::start(&failed, &["/bin/sh".to_owned()]))?;
        self.engine.wait(id).await.map_err(|failed| error::engine(&failed))
    }

    fn failed(&self, folder: &Path, why: &str) -> TaskError {
        TaskError::retryable(
            "cleanup",
            format!(
                "{} holds files that the worker may not remove, and a container of {:?} did not remove them: {why}; \
                 remove the folder as root, and set docker.cleaner_image to a local image with /bin/sh",
                folder.display(),
                self.image
            ),
        )
    }
}
