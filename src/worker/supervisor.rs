//! Tells the service manager that started this process how it is: systemd's `Type=notify` (sd_notify(3)). Without one,
//! nothing is told. A message that does not arrive is no reason not to work.

use sd_notify::NotifyState;

use super::Worker;

/// The worker takes tasks.
pub(super) fn ready(worker: &Worker) {
    let status = format!("{} slots, queues {}", worker.lanes, names(worker));
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The worker finishes what it has and ends.
pub(super) fn draining() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining: what runs is finished")]);
}

fn names(worker: &Worker) -> String {
    let names: Vec<&str> = worker.queues.iter().map(AsRef::as_ref).collect();
    names.join(", ")
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
