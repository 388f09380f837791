//! Giving work: many messages in flight, each one's answer awaited.

use async_trait::async_trait;
use jiff::Timestamp;

use super::names::Wait;
use super::{Client, message};
use crate::broker::{BrokerError, Submission, Submit, Submitted};
use crate::nats::{LinkError, in_order};

#[async_trait]
impl Submit for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        let sent: Vec<_> = submissions.iter().map(|submission| self.submit_one(submission)).collect();
        in_order(sent).await.map_err(self.cannot("take the submission"))
    }
}

impl Client {
    async fn submit_one(&self, submission: &Submission) -> Result<Submitted, LinkError> {
        let mut headers = message::headers(submission);
        let due = submission.not_before.filter(|due| *due > Timestamp::now());
        let wait = if due.is_some() { Wait::Time } else { Wait::Turn };
        if let Some(due) = due {
            message::set_due(&mut headers, due);
        }
        let place = self.names.place(wait, &submission.queue, submission.priority.class());
        let published = self.link.publish(place, headers, submission.body.clone()).await?;
        Ok(if published.duplicate { Submitted::Duplicate } else { Submitted::Queued })
    }
}
