//! What follows a container's own end, whichever process started it: the outputs go where they belong, then the container
//! and the workspace go. Called by `run` and `adopt`.
//!
//! # Decisions
//! - Container and workspace go after the end is recorded: a worker that dies in between would find neither to go on with,
//!   and the whole task would be run again.

use std::sync::Arc;

use serde_json::Value;

use super::book::LogBook;
use super::container::Container;
use super::drive::{Ended, may_leave};
use super::error;
use super::run::Room;
use super::spool;
use crate::error::TaskError;
use crate::events::reporter::Phase;
use crate::failpoint::{self, Moment};
use crate::handler::{Attempt, LEFT, left, outstanding};
use crate::pipeline::{Exit, Pipeline};

/// The end of one attempt.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    pub(super) room: &'a Arc<Room>,
    pub(super) attempt: &'a Attempt,
    /// The image's name.
    pub(super) image: &'a str,
}

impl Ending<'_> {
    /// Brings the outputs of a container that ended to where they belong. One that a later process could go on with stays
    /// until that is recorded, lest this one dies or leaves in the middle; any other goes at once.
    pub(super) async fn finish(
        self,
        (ended, container): (Ended, Container),
        pipeline: &mut Pipeline,
        book: Option<&LogBook>,
    ) -> Result<Value, TaskError> {
        self.attempt.report().describe(|details| {
            details.exit_code = Some(ended.code);
            details.oom_killed = Some(ended.oom.is_some());
        });
        if book.is_none() {
            container.dispose().await;
            return self.deliver(ended, pipeline).await;
        }
        let result = self.deliver(ended, pipeline).await;
        let is_spooled = result.as_ref().is_err_and(|error| outstanding(error).is_some());
        if result.is_err() && !is_spooled && may_leave(self.attempt, book) {
            container.leave();
            return Err(left());
        }
        if is_spooled {
            container.dispose().await;
        } else {
            self.attempt.rest(container.dispose()).await;
        }
        result
    }

    /// A stream's failure is told before the exit code that may follow from it.
    async fn deliver(self, ended: Ended, pipeline: &mut Pipeline) -> Result<Value, TaskError> {
        let failed = (ended.code != 0).then(|| error::exit(ended.code, ended.oom, &ended.last_words));
        if let Err(stream) = pipeline.container_ended().await {
            if let Some(failed) = failed {
                self.attempt.report().note(failed.message);
            }
            return Err(stream.with_exit_code(ended.code));
        }
        let attempt = self.attempt;
        failpoint::reached(Moment::Uploading, attempt.task().id.as_str(), attempt.fence().0);
        let exit = Exit { code: ended.code, oom_killed: ended.oom.is_some() };
        let finished = tokio::select! {
            finished = pipeline.finish(&exit) => finished,
            reason = self.attempt.scope().canceled() => return Err(error::ended(&reason)),
        };
        if let Some(failed) = failed {
            if let Err(hook) = finished {
                self.attempt.report().warn(hook.message);
            }
            return Err(failed);
        }
        let value = finished.map_err(|hook| {
            if outstanding(&hook).is_some() {
                spool::keep_book(self.room, self.attempt, self.image);
            }
            hook.with_exit_code(ended.code)
        })?;
        self.attempt.report().reached(Phase::Uploaded);
        Ok(value)
    }

    /// Takes back what the pipeline made once the end is recorded, unless the attempt was left to a later process. What only
    /// waits for its outputs to be taken is recorded much later, and needs nothing of it.
    pub(super) async fn close(
        self,
        result: Result<Value, TaskError>,
        pipeline: Pipeline,
    ) -> Result<Value, TaskError> {
        match &result {
            Err(error) if error.code == LEFT => pipeline.leave(),
            Err(error) if outstanding(error).is_some() => self.clean_up(pipeline).await,
            Ok(_) | Err(_) => {
                let (room, attempt, image) = (self.room.clone(), self.attempt.clone(), self.image.to_owned());
                let cleaning = async move {
                    Ending { room: &room, attempt: &attempt, image: &image }.clean_up(pipeline).await;
                };
                self.attempt.rest(cleaning).await;
            }
        }
        result
    }

    /// Takes back what the pipeline made.
    pub(super) async fn clean_up(self, pipeline: Pipeline) {
        let Self { room, attempt, image } = self;
        // Asked before the container was made or found, so it is known.
        pipeline.cleanup(&room.cleaner(attempt, image, room.known_housing())).await;
    }
}
