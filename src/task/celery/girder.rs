//! Girder's headers: the job to keep up to date, the API, and the result hooks.

use std::collections::BTreeMap;

use super::super::jsonpickle::{self, KeyText, Rules};
use super::value::{Budget, Reader};
use super::volume::{Part, Volumes};
use super::wrong;
use crate::task::envelope::{DecodeError, Limits};
use crate::task::json::Json;
use crate::task::message::RawMessage;
use crate::task::{GirderContext, JobSpec, Secret, TransformSpec};

/// Which Girder asked, if one did. A message without these headers runs without a job.
pub(super) fn context(message: &RawMessage) -> Result<Option<GirderContext>, DecodeError> {
    let job = message.header("jobInfoSpec").map(|spec| job(spec, message)).transpose()?;
    let given = match (text(message, "girder_api_url")?, text(message, "apiUrl")?) {
        (Some(url), _) | (None, Some(url)) => Some(url),
        (None, None) => job.as_ref().map(|job| job.url.split("/job/").next().unwrap_or_default().to_owned()),
    };
    let Some(api_url) = given else { return Ok(None) };
    Ok(Some(GirderContext {
        api_url: api_url.trim_end_matches('/').to_owned(),
        token: None,
        client_token: text(message, "girder_client_token")?.map(Secret::new),
        job,
    }))
}

/// The result hooks, each a document of its own: `girder_result_hooks` is a list of them.
pub(super) fn hooks(
    message: &RawMessage,
    volumes: &mut Volumes,
    budget: &Budget,
    limits: &Limits,
) -> Result<Vec<TransformSpec>, DecodeError> {
    let documents = hook_documents(message, limits)?;
    let mut hooks = Vec::with_capacity(documents.len());
    // The Python worker passes over what is no transform; null is what a producer leaves in a hook's place.
    for (n, document) in documents.iter().enumerate().filter(|(_, document)| !document.root.is_null()) {
        let mut reader = Reader::new(document, volumes, Part::Hook, budget);
        hooks.push(reader.transform(&document.root, &format!("girder_result_hooks[{n}]"))?);
    }
    Ok(hooks)
}

/// The documents of the result hooks, undecoded as to their meaning.
pub fn hook_documents(
    message: &RawMessage,
    limits: &Limits,
) -> Result<Vec<jsonpickle::Document>, DecodeError> {
    let Some(header) = message.header("girder_result_hooks") else { return Ok(Vec::new()) };
    let Some(items) = header.items() else {
        return Err(wrong("girder_result_hooks", "must be a list of transforms"));
    };
    let rules = Rules { order: message.header_order, keys: KeyText::Literal };
    items
        .iter()
        .enumerate()
        .map(|(n, hook)| jsonpickle::decode(hook, rules, &format!("girder_result_hooks[{n}]"), limits))
        .collect()
}

/// The names of session attributes that are not honoured: all but `verify` as a boolean, and `headers`.
pub(super) fn session_ignored(message: &RawMessage) -> Vec<String> {
    let session = message.header("girder_client_session_kwargs").and_then(Json::entries);
    let honoured = |name: &str, value: &Json| match name {
        "verify" => matches!(value, Json::Bool(_)),
        "headers" => value.entries().is_some(),
        _ => false,
    };
    session
        .unwrap_or_default()
        .iter()
        .filter(|(name, value)| !honoured(name, value))
        .map(|(name, _)| name.clone())
        .collect()
}

/// `jobInfoSpec`: method, url, headers and logPrint; the session's headers go below the job's own.
fn job(spec: &Json, message: &RawMessage) -> Result<JobSpec, DecodeError> {
    if spec.entries().is_none() {
        return Err(wrong("jobInfoSpec", "must be a map with the job's url and headers"));
    }
    let Some(url) = spec.get("url").and_then(Json::text).filter(|url| !url.is_empty()) else {
        return Err(wrong("jobInfoSpec.url", "must be the job's address"));
    };
    let session = message.header("girder_client_session_kwargs").unwrap_or(&Json::Null);
    let mut headers = BTreeMap::new();
    for (path, source) in [
        ("girder_client_session_kwargs.headers", session.get("headers")),
        ("jobInfoSpec.headers", spec.get("headers")),
    ] {
        for (name, value) in source.and_then(Json::entries).unwrap_or_default() {
            let Some(value) = value.text() else {
                return Err(wrong(&format!("{path}.{name}"), "must be a text"));
            };
            headers.insert(name.clone(), Secret::new(value));
        }
    }
    Ok(JobSpec {
        url: url.to_owned(),
        method: spec.get("method").and_then(Json::text).unwrap_or("PUT").to_owned(),
        headers,
        interval: match spec.get("interval") {
            Some(Json::Number(number)) => number.as_f64().filter(|seconds| *seconds >= 0.0).unwrap_or(0.5),
            _ => 0.5,
        },
        log: !matches!(spec.get("logPrint"), Some(Json::Bool(false))),
        verify_tls: !matches!(session.get("verify"), Some(Json::Bool(false))),
    })
}

fn text(message: &RawMessage, name: &str) -> Result<Option<String>, DecodeError> {
    match message.header(name) {
        None => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(wrong(name, "must be a text")),
    }
}
