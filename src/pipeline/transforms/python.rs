//! Transforms of `girder_worker` for tasks that are Python functions: `docker_run` has no use for them.
//!
//! The Python worker runs the container first and then fails over them. Here the task fails before anything starts, and says
//! what to send instead.

use async_trait::async_trait;

use crate::error::TaskError;
use crate::pipeline::{Place, Staging, Transform};
use crate::task::TransformSpec;
use crate::task::transform::PythonTransform;

/// The row's maker.
pub(in crate::pipeline) fn transform(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::PythonTransform(spec) => Some(Box::new(Refused(spec.clone()))),
        _ => None,
    }
}

struct Refused(PythonTransform);

#[async_trait]
impl Transform for Refused {
    async fn stage(&mut self, _place: Place, _staging: &mut Staging) -> Result<Option<String>, TaskError> {
        let PythonTransform { class, instead } = &self.0;
        let text = format!(
            "{class} works on what a Python function takes or gives, which docker_run has none of: use {instead}"
        );
        Err(TaskError::permanent("bad_argument", text))
    }
}
