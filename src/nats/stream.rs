//! Making streams and consumers, and repairing them: limits that are too low are raised, nothing is ever shrunk or deleted.

use serde_json::{Map, Value, json};

use super::link::found;
use super::{Link, LinkError, Place};

/// A stream as it should be; a field that is not there is of no interest.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its configuration, as `STREAM.CREATE` takes it, without name, replicas and storage.
    pub config: Map<String, Value>,
}

/// Fields of which a higher number keeps more; -1 and, for ages, 0 stand for no bound.
const LIMITS: [&str; 5] = ["max_msgs", "max_bytes", "max_age", "duplicate_window", "num_replicas"];

/// What [`ensure`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was as it should be.
    Found,
    /// It was made.
    Made,
    /// Its limits were raised.
    Raised,
}

/// Makes sure that the stream is there and keeps at least what is wanted.
pub async fn ensure(link: &Link, place: &Place, wanted: &Wanted) -> Result<Ensured, LinkError> {
    let name = &wanted.name;
    let info = found(link.ask(&format!("STREAM.INFO.{name}"), &json!({})).await)?;
    let Some(info) = info else {
        if !place.manage {
            return Err(LinkError::Missing(format!(
                "the stream {name} is not there, and the address says manage=no: run longshore broker init"
            )));
        }
        return make(link, place, wanted).await;
    };
    let current = info.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut next = current.clone();
    let mut lacking = Vec::new();
    for (field, value) in with_place(wanted, place) {
        let low = match current.get(&field) {
            Some(have) if LIMITS.contains(&field.as_str()) => keeps_less(have, &value),
            have if field == "subjects" => have.map(sorted) != Some(sorted(&value)),
            _ => false,
        };
        if low {
            lacking.push(field.clone());
            next.insert(field, value);
        }
    }
    if lacking.is_empty() || !place.manage {
        return Ok(Ensured::Found);
    }
    link.ask(&format!("STREAM.UPDATE.{name}"), &Value::Object(next)).await?;
    tracing::info!(stream = name, raised = lacking.join(", "), "the stream keeps more than before");
    Ok(Ensured::Raised)
}

async fn make(link: &Link, place: &Place, wanted: &Wanted) -> Result<Ensured, LinkError> {
    let name = &wanted.name;
    let mut config = with_place(wanted, place);
    config.insert("name".to_owned(), json!(name));
    match link.ask(&format!("STREAM.CREATE.{name}"), &Value::Object(config)).await {
        Ok(_) => Ok(Ensured::Made),
        Err(LinkError::Refused(said)) => {
            // Another may have been faster, with other limits.
            match found(link.ask(&format!("STREAM.INFO.{name}"), &json!({})).await)? {
                Some(_) => Ok(Ensured::Found),
                None => Err(LinkError::Refused(format!("the stream {name} cannot be made: {said}"))),
            }
        }
        Err(error) => Err(error),
    }
}

fn with_place(wanted: &Wanted, place: &Place) -> Map<String, Value> {
    let mut config = wanted.config.clone();
    config.insert("num_replicas".to_owned(), json!(place.replicas));
    config.insert("storage".to_owned(), json!(place.storage.as_str()));
    config
}

fn keeps_less(have: &Value, wanted: &Value) -> bool {
    let bound = |value: &Value| value.as_i64().filter(|bound| *bound > 0).unwrap_or(i64::MAX);
    bound(have) < bound(wanted)
}

fn sorted(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut texts: Vec<String> = texts.map(str::to_owned).collect();
    texts.sort_unstable();
    texts
}

/// What a stream says of itself.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Messages in it.
    pub messages: u64,
    /// Their bytes, headers and all.
    pub bytes: u64,
    /// Place of the oldest.
    pub first: u64,
    /// Place of the newest, also when it is gone.
    pub last: u64,
    /// Messages by subject, of those that were asked for.
    pub subjects: Vec<(String, u64)>,
}

/// Subjects in one answer of the server.
const SUBJECTS_AT_ONCE: u64 = 100_000;

/// The state of a stream; with the counts of the subjects that match `subjects`, when named.
pub async fn state(link: &Link, name: &str, subjects: Option<&str>) -> Result<State, LinkError> {
    let mut state = State::default();
    loop {
        let payload = match subjects {
            Some(filter) => json!({ "subjects_filter": filter, "offset": state.subjects.len() }),
            None => json!({}),
        };
        let info = link.ask(&format!("STREAM.INFO.{name}"), &payload).await?;
        let found = info.get("state").cloned().unwrap_or_default();
        let number = |field: &str| found.get(field).and_then(Value::as_u64).unwrap_or_default();
        state.messages = number("messages");
        state.bytes = number("bytes");
        state.first = number("first_seq");
        state.last = number("last_seq");
        let page = found.get("subjects").and_then(Value::as_object).cloned().unwrap_or_default();
        let full = page.len() as u64 >= SUBJECTS_AT_ONCE;
        state
            .subjects
            .extend(page.into_iter().map(|(name, count)| (name, count.as_u64().unwrap_or_default())));
        if !full {
            return Ok(state);
        }
    }
}

/// Removes the message at `sequence`, if it is still there; says whether it was.
pub async fn remove(link: &Link, name: &str, sequence: u64) -> Result<bool, LinkError> {
    // Without erasing: the bytes need not be overwritten.
    let payload = json!({ "seq": sequence, "no_erase": true });
    match link.ask(&format!("STREAM.MSG.DELETE.{name}"), &payload).await {
        Ok(_) => Ok(true),
        // The same code stands for what is not there and for what cannot be deleted.
        Err(LinkError::Missing(said)) => match link.at(name, sequence).await? {
            None => Ok(false),
            Some(_) => Err(LinkError::Refused(said)),
        },
        Err(error) => Err(error),
    }
}

/// Removes all messages of `subject`; says how many.
pub async fn purge(link: &Link, name: &str, subject: &str) -> Result<u64, LinkError> {
    let answer = link.ask(&format!("STREAM.PURGE.{name}"), &json!({ "filter": subject })).await?;
    Ok(answer.get("purged").and_then(Value::as_u64).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_keeps_less_is_repaired() {
        assert!(keeps_less(&json!(5), &json!(10)));
        assert!(keeps_less(&json!(5), &json!(-1)), "no bound keeps more than any");
        assert!(!keeps_less(&json!(10), &json!(5)));
        assert!(!keeps_less(&json!(-1), &json!(5)));
        assert!(!keeps_less(&json!(0), &json!(5)), "an age of 0 is no bound");
    }
}
