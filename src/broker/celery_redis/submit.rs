//! Giving work: dedup ids are remembered and messages added in one step.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Client, envelope};
use crate::broker::{BrokerError, Submission, Submit, Submitted};
use crate::redis::{LinkError, script, value};

script!(SUBMIT, "lua/common.lua", "lua/submit.lua");

/// Messages in one step; the server does nothing else meanwhile.
const AT_ONCE: usize = 500;

#[async_trait]
impl Submit for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        let listed = self.common.list_queues(submissions.iter().map(|submission| &submission.queue)).await;
        listed.map_err(self.cannot("take the submission"))?;
        let mut results = Vec::with_capacity(submissions.len());
        for step in submissions.chunks(AT_ONCE) {
            results.extend(self.submit_step(step).await.map_err(self.cannot("take the submission"))?);
        }
        Ok(results)
    }
}

impl Client {
    async fn submit_step(&self, submissions: &[Submission]) -> Result<Vec<Submitted>, LinkError> {
        let window = self.common.dedup_window().as_secs();
        let mut call = self.call(&SUBMIT, &[]).arg(window).arg(self.common.keys.bell());
        for submission in submissions {
            let queue = submission.queue.as_str();
            let tag = Uuid::now_v7().to_string();
            call.push(self.stem(&submission.queue));
            call.push(queue);
            call.push(self.kombu.list(queue, envelope::priority_of(submission)));
            // Rounded up: nothing may go before its time.
            call.push(submission.not_before.map_or(0, |at| at.as_microsecond().div_euclid(1_000) + 1));
            call.push(&submission.dedup_id);
            call.push(&tag);
            call.push(envelope::of_submission(submission, &tag));
        }
        let results = value::list(self.common.link.call(&call).await?)?;
        let results = results.iter().map(|result| {
            Ok(if value::int(result)? == 1 { Submitted::Queued } else { Submitted::Duplicate })
        });
        results.collect()
    }
}
