//! Giving work: dedup ids are remembered and messages added in one step.

use async_trait::async_trait;

use super::{Client, message};
use crate::broker::{BrokerError, Submission, Submit, Submitted};
use crate::redis::{LinkError, script, value};

script!(SUBMIT, "lua/common.lua", "lua/submit.lua");

/// Messages in one step; the server does nothing else meanwhile.
const AT_ONCE: usize = 500;

#[async_trait]
impl Submit for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        let listed = self.list_queues(submissions.iter().map(|submission| &submission.queue)).await;
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
        let mut queues = Vec::new();
        for submission in submissions {
            if !queues.contains(&&submission.queue) {
                queues.push(&submission.queue);
            }
        }
        let stems: Vec<String> = queues.iter().map(|queue| self.keys.stem(queue)).collect();
        let mut call = SUBMIT.on(&stems).arg(self.dedup_window().as_secs()).arg(self.keys.bell());
        for submission in submissions {
            let number = queues.iter().position(|queue| **queue == submission.queue).unwrap_or_default() + 1;
            // Rounded up: nothing may go before its time.
            let due = submission.not_before.map_or(0, |at| at.as_microsecond().div_euclid(1_000) + 1);
            let fields = message::fields(submission);
            call.push(number);
            call.push(submission.priority.class().as_str());
            call.push(due);
            call.push(&submission.dedup_id);
            call.push(fields.len());
            for field in &fields {
                call.push(&field[..]);
            }
        }
        let results = value::list(self.link.call(&call).await?)?;
        let results = results.iter().map(|result| {
            Ok(if value::int(result)? == 1 { Submitted::Queued } else { Submitted::Duplicate })
        });
        results.collect()
    }
}
