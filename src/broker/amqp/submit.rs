//! Giving work: into queues as they are, or through a delay.

use async_trait::async_trait;
use lapin::options::BasicPublishOptions;

use super::{Client, wire};
use crate::broker::{BrokerError, Submission, Submit, Submitted};

#[async_trait]
impl Submit for Client {
    /// In order, not all or nothing: AMQP's transactions would cost what they are not worth here.
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        let mut sent = Vec::with_capacity(submissions.len());
        for submission in &submissions {
            let message = wire::original(submission);
            let queue = &submission.queue;
            if let Some(due) = submission.not_before {
                self.send_at(queue, due, &message).await?;
                continue;
            }
            self.declare_work_queue(queue).await?;
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            sent.push((queue, message.clone(), self.link.send("", queue.as_str(), &message, options).await?));
        }
        for (queue, message, confirmation) in sent {
            if !self.link.taken(confirmation).await? {
                // It was deleted since it was declared.
                super::lock(&self.declared).remove(queue);
                self.send_at(queue, jiff::Timestamp::now(), &message).await?;
            }
        }
        Ok(vec![Submitted::Queued; submissions.len()])
    }
}
