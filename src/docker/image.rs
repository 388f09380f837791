//! Getting images onto the host: once for all who wait, never when it is already here and may stay, and with the reason
//! when it cannot be had.
//!
//! # Decisions
//! - What the engine says of a local image is believed for a few seconds, so that a thousand tasks of one image ask once;
//!   an image that went in between shows at creation, which asks again.
//! - A pull belongs to nobody: it ends when it is done or when nobody waits for it any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::credentials::Logins;
use super::engine::{Engine, Image, PullRequest, PullStep};
use super::error;
use super::reference::Reference;
use super::settings::Settings;
use crate::crew::Crew;
use crate::error::{ErrorClass, TaskError};
use crate::events::Progress;
use crate::events::reporter::Reporter;
use crate::policy::image::Pull;

/// How long the engine's word on a local image is believed.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// The pause before the second try of a pull; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The images of one engine.
#[derive(Clone)]
pub(super) struct ImageRoom {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    crew: Crew,
    logins: Logins,
    timeout: Duration,
    attempts: u32,
    fall_back: bool,
    flights: Mutex<HashMap<Wanted, Weak<Flight>>>,
    known: Mutex<HashMap<Wanted, (Instant, Image)>>,
}

/// An image for a platform.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    reference: Reference,
    platform: Option<String>,
}

/// A pull under way, kept alive by those who wait for it.
struct Flight {
    state: watch::Receiver<Stage>,
    _abandoned: DropGuard,
}

#[derive(Clone)]
enum Stage {
    Pulling(Progress),
    Landed(Result<Image, TaskError>),
}

impl Wanted {
    /// Checks the name.
    pub(super) fn read(image: &str, platform: Option<&str>) -> Result<Self, TaskError> {
        Ok(Self { reference: Reference::read(image)?, platform: platform.map(str::to_owned) })
    }
    /// The image as the task named it.
    pub(super) fn name(&self) -> &str {
        self.reference.as_str()
    }
}

impl ImageRoom {
    pub(super) fn new(engine: Arc<dyn Engine>, crew: Crew, settings: &Settings) -> Self {
        let inner = Inner {
            engine,
            crew,
            logins: Logins::new(&settings.config_dir),
            timeout: settings.pull_timeout.get(),
            attempts: settings.pull_attempts.max(1),
            fall_back: settings.fall_back_to_local,
            flights: Mutex::default(),
            known: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Sees to it that the image is here, as `pull` says, and tells `report` how far it is. Cancel-safe: dropping it
    /// leaves a pull to the others who wait for it.
    pub(super) async fn ensure(
        &self,
        wanted: &Wanted,
        pull: Pull,
        report: &Reporter,
    ) -> Result<Image, TaskError> {
        let image = wanted.reference.as_str();
        match pull {
            Pull::Never => self.local(wanted).await?.ok_or_else(|| {
                error::image_missing(
                    image,
                    "it is not on this host and pull is \"never\"; pull it here or set pull to \"missing\"",
                )
            }),
            Pull::Missing => match self.local(wanted).await? {
                Some(local) => Ok(local),
                None => self.fetch(wanted, report).await,
            },
            Pull::Always => match self.fetch(wanted, report).await {
                Err(failed) if self.inner.fall_back && failed.class == ErrorClass::Retryable => {
                    let Some(local) = self.local(wanted).await? else { return Err(failed) };
                    report.warn(format!("{failed}; the image that is here is used instead"));
                    Ok(local)
                }
                other => other,
            },
        }
    }

    /// Pulls it even if it is here: what is here is not what is wanted.
    pub(super) async fn fetch(&self, wanted: &Wanted, report: &Reporter) -> Result<Image, TaskError> {
        let flight = self.join(wanted);
        let mut state = flight.state.clone();
        report.note(format!("pulling {}", wanted.reference.tagged()));
        loop {
            let stage = state.borrow_and_update().clone();
            match stage {
                Stage::Landed(Ok(image)) => {
                    report.note(format!("pulled {}", wanted.reference.tagged()));
                    return Ok(image);
                }
                Stage::Landed(Err(error)) => return Err(error),
                Stage::Pulling(progress) if progress.message.is_some() => report.progress(progress),
                Stage::Pulling(_) => {}
            }
            if state.changed().await.is_err() {
                return Err(TaskError::retryable("pull_failed", "the worker ended the pull"));
            }
        }
    }

    /// What is known of the local image.
    async fn local(&self, wanted: &Wanted) -> Result<Option<Image>, TaskError> {
        let known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner).get(wanted).cloned();
        if let Some((since, image)) = known
            && since.elapsed() < KNOWN_FOR
        {
            return Ok(Some(image));
        }
        let found =
            self.inner.engine.image(wanted.reference.as_str()).await.map_err(|e| error::engine(&e))?;
        if let Some(image) = &found {
            self.inner.remember(wanted, image);
        }
        Ok(found)
    }

    /// The pull of this image that is under way, or a new one.
    fn join(&self, wanted: &Wanted) -> Arc<Flight> {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = flights.get(wanted).and_then(Weak::upgrade);
        if let Some(flight) = under_way.filter(|flight| !matches!(*flight.state.borrow(), Stage::Landed(_))) {
            return flight;
        }
        let (tell, state) = watch::channel(Stage::Pulling(Progress::default()));
        let abandoned = CancellationToken::new();
        let flight = Arc::new(Flight { state, _abandoned: abandoned.clone().drop_guard() });
        flights.retain(|_, flight| flight.strong_count() > 0);
        flights.insert(wanted.clone(), Arc::downgrade(&flight));
        drop(flights);
        let (inner, wanted) = (self.inner.clone(), wanted.clone());
        self.inner.crew.spawn("pull", async move {
            tokio::select! {
                biased;
                () = abandoned.cancelled() => tracing::debug!(image = wanted.reference.as_str(), "pull abandoned"),
                landed = inner.pull(&wanted, &tell) => {
                    tell.send_replace(Stage::Landed(landed));
                }
            }
        });
        flight
    }
}

impl Inner {
    fn remember(&self, wanted: &Wanted, image: &Image) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (since, _)| since.elapsed() < KNOWN_FOR);
        known.insert(wanted.clone(), (Instant::now(), image.clone()));
    }

    /// Tries until it is here, the tries are used up or the time is over.
    async fn pull(&self, wanted: &Wanted, tell: &watch::Sender<Stage>) -> Result<Image, TaskError> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let pulled = tokio::time::timeout_at(deadline, self.pull_once(wanted, tell)).await;
            match pulled {
                Err(_) => return Err(self.too_slow(wanted, tell)),
                Ok(Err(failed)) if failed.class == ErrorClass::Retryable && tries < self.attempts => {
                    tracing::debug!(image = wanted.reference.as_str(), %failed, "pull failed, trying again");
                    if tokio::time::timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
                        return Err(failed);
                    }
                }
                Ok(Ok(image)) => {
                    self.remember(wanted, &image);
                    return Ok(image);
                }
                Ok(Err(failed)) => return Err(failed),
            }
            pause *= 2;
            tries += 1;
        }
    }

    async fn pull_once(&self, wanted: &Wanted, tell: &watch::Sender<Stage>) -> Result<Image, TaskError> {
        let name = wanted.reference.tagged();
        let login = self.logins.of(wanted.reference.registry()).await;
        let credentials = login.map_err(|error| TaskError::retryable("registry_login", error.to_string()))?;
        let request = PullRequest { reference: name.clone(), platform: wanted.platform.clone(), credentials };
        let mut steps = self.engine.pull(request).await;
        let mut layers = Layers::default();
        while let Some(step) = steps.next().await {
            let step = step.map_err(|error| error::pull(&error, &name, &self.logins.advice()))?;
            if layers.take(step) {
                tell.send_replace(Stage::Pulling(layers.progress(&name)));
            }
        }
        let found =
            self.engine.image(wanted.reference.as_str()).await.map_err(|error| error::engine(&error))?;
        found.ok_or_else(|| error::image_missing(&name, "the engine pulled it and does not have it"))
    }

    fn too_slow(&self, wanted: &Wanted, tell: &watch::Sender<Stage>) -> TaskError {
        let stood = match &*tell.borrow() {
            Stage::Pulling(Progress { current: Some(current), total: Some(total), .. }) => {
                format!("{current} of {total} bytes had come")
            }
            Stage::Pulling(_) | Stage::Landed(_) => "nothing of it had come".to_owned(),
        };
        TaskError::retryable(
            "pull_timeout",
            format!(
                "{:?} did not arrive within {} ({stood}); docker.pull_timeout sets this limit",
                wanted.reference.tagged(),
                crate::units::Span(self.timeout)
            ),
        )
    }
}

/// How far each layer of a pull is.
#[derive(Default)]
struct Layers {
    layers: HashMap<String, (u64, u64)>,
}

impl Layers {
    /// Takes a step and says whether it changed anything worth telling.
    fn take(&mut self, step: PullStep) -> bool {
        let Some(layer) = step.layer else { return false };
        match (step.status.as_str(), step.current, step.total) {
            ("Downloading", Some(current), Some(total)) => {
                self.layers.insert(layer, (current.min(total), total)) != Some((current, total))
            }
            ("Download complete" | "Pull complete", ..) => match self.layers.get_mut(&layer) {
                Some((current, total)) if current != total => {
                    *current = *total;
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a progress bar needs no more than 53 bits of bytes")]
    fn progress(&self, name: &str) -> Progress {
        let (current, total) =
            self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        Progress {
            message: Some(format!("pulling {name}")),
            current: Some(current as f64),
            total: Some(total as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let step = |layer: &str, status: &str, bytes: Option<(u64, u64)>| PullStep {
            layer: Some(layer.to_owned()),
            status: status.to_owned(),
            current: bytes.map(|b| b.0),
            total: bytes.map(|b| b.1),
        };
        let mut layers = Layers::default();
        assert!(!layers.take(step("a", "Already exists", None)));
        assert!(layers.take(step("b", "Downloading", Some((10, 100)))));
        assert!(!layers.take(step("b", "Downloading", Some((10, 100)))));
        assert!(layers.take(step("c", "Downloading", Some((1, 50)))));
        assert!(layers.take(step("b", "Download complete", None)));
        assert!(!layers.take(step("b", "Pull complete", None)));
        let progress = layers.progress("i:1");
        assert_eq!((progress.current, progress.total), (Some(101.0), Some(150.0)));
    }
}
