//! What a source of work needs for the Celery messages that come from it: where results go, and who calls what follows.

use std::sync::Arc;

use super::{WorkerError, limits};
use crate::broker::{Broker, BrokerUrl};
use crate::celery::{Backend, Results, Successors};
use crate::config::Settings;
use crate::events::EventSink;
use crate::task::QueueName;

/// The sinks for Celery tasks that come from `broker`.
pub(super) async fn sinks(
    settings: &Settings,
    (url, broker): (&BrokerUrl, &Broker),
) -> Result<Vec<Arc<dyn EventSink>>, WorkerError> {
    let celery = &settings.celery;
    let default_queue = QueueName::new(celery.default_queue.as_str()).map_err(WorkerError::DefaultQueue)?;
    let mut sinks: Vec<Arc<dyn EventSink>> =
        vec![Arc::new(Successors::new(broker.clone(), default_queue, limits(settings)))];
    let timeout = settings.connect_timeout.get();
    if let Some(backend) = Backend::open(celery.result_backend.expose(), url, timeout).await? {
        sinks.push(Arc::new(Results::new(backend, limits(settings))));
    }
    Ok(sinks)
}
