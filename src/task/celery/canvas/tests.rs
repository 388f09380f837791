use serde_json::json;

use super::*;
use crate::task::celery::decode;
use crate::task::json::Json;
use crate::task::{Decoded, RawMessage};

const DOCKER_RUN: &str = "girder_worker.docker.tasks.docker_run";

fn at() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

/// A docker_run with this embed, as a map of its parts.
fn task(embed: &Value, headers: &Value) -> Task {
    body_task(&json!([["busybox"], {}, embed]).to_string(), headers)
}

fn body_task(body: &str, headers: &Value) -> Task {
    let mut message = RawMessage::new(body.as_bytes().to_vec());
    let named = json!({"task": DOCKER_RUN, "id": "me", "root_id": "root"});
    for table in [&named, headers] {
        message.headers.extend(Json::from(table).entries().unwrap_or_default().iter().cloned());
    }
    message.content_type = Some("application/json".to_owned());
    message.properties.reply_to = Some("caller".to_owned());
    let Ok(Decoded::Task(task)) = decode(&message, &Limits::default()) else { panic!("no task: {body}") };
    task
}

fn following(task: &Task, ended: Ended) -> Vec<Successor> {
    let context = CeleryContext::of(task).unwrap();
    successors(task, &context, (ended, at()), &Limits::default()).unwrap()
}

fn body(successor: &Successor) -> Value {
    serde_json::from_str(&successor.body).unwrap()
}

fn signature(task: &str, options: &Value) -> Value {
    json!({"task": task, "args": ["own"], "kwargs": {"k": 1}, "options": options, "subtask_type": null, "immutable": false})
}

fn nothing() -> Value {
    json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null})
}

#[test]
fn the_last_of_the_chain_is_next_and_takes_the_rest_along() {
    let last = signature("py.last", &json!({"task_id": "l"}));
    let next = signature("py.next", &json!({"task_id": "n", "reply_to": "caller", "priority": 4}));
    let task = task(&json!({"chain": [last, next]}), &json!({}));
    assert_eq!(unsupported(&task, &Limits::default()), None);
    let [next] = &following(&task, Ended::Well)[..] else { panic!() };
    assert_eq!(next.id.as_str(), "n");
    assert_eq!(
        (&next.headers["task"], &next.headers["root_id"], &next.headers["parent_id"]),
        (&json!("py.next"), &json!("root"), &json!("me"))
    );
    assert_eq!(
        (
            next.properties.correlation_id.as_deref(),
            next.properties.reply_to.as_deref(),
            next.properties.priority
        ),
        (Some("n"), Some("caller"), Some(4))
    );
    let mut embed = nothing();
    embed["chain"] = json!([last]);
    assert_eq!(body(next), json!([[null, "own"], {"k": 1}, embed]));
    assert!(following(&task, Ended::Badly).is_empty());
}

#[test]
fn an_immutable_one_gets_no_result_and_what_it_links_to_goes_along() {
    let mut next = signature(
        "py.next",
        &json!({
            "task_id": "n", "queue": "gpu", "link": signature("py.cb", &json!({})), "link_error": [signature("py.eb", &json!({}))],
            "time_limit": 9, "soft_time_limit": 2.5, "countdown": 60, "expires": 90, "headers": {"mine": {"a": [1]}}, "ignore_result": true,
        }),
    );
    next["immutable"] = true.into();
    let task = task(&json!({"chain": [next]}), &json!({}));
    let [next] = &following(&task, Ended::Well)[..] else { panic!() };
    let mut embed = nothing();
    embed["callbacks"] = json!([signature("py.cb", &json!({}))]);
    embed["errbacks"] = json!([signature("py.eb", &json!({}))]);
    assert_eq!(body(next), json!([["own"], {"k": 1}, embed]));
    assert_eq!(next.queue.as_ref().map(QueueName::as_str), Some("gpu"));
    assert_eq!(next.headers["timelimit"], json!([9, 2.5]));
    assert_eq!(next.headers["eta"], "2026-11-23T10:01:00.000000+00:00");
    assert_eq!(next.headers["expires"], "2026-11-23T10:01:30.000000+00:00");
    assert_eq!((&next.headers["mine"], &next.headers["ignore_result"]), (&json!({"a": [1]}), &json!(true)));
}

#[test]
fn several_callbacks_are_a_group_and_all_are_the_same_each_time() {
    let callbacks = json!([signature("a", &json!({})), signature("b", &json!({"task_id": "named"}))]);
    let task = task(&json!({"callbacks": callbacks, "errbacks": [signature("e", &json!({}))]}), &json!({}));
    let called = following(&task, Ended::Well);
    assert_eq!(called, following(&task, Ended::Well));
    let [a, b] = &called[..] else { panic!() };
    assert_eq!((b.id.as_str(), &a.headers["group"]), ("named", &b.headers["group"]));
    assert!(a.headers["group"].is_string() && a.id != b.id);
    assert_eq!(body(a), json!([[null, "own"], {"k": 1}, nothing()]));
    let [errback] = &following(&task, Ended::Badly)[..] else { panic!() };
    assert_eq!(
        body(errback),
        json!([["me", "own"], {"k": 1}, nothing()]),
        "an errback gets the failed task's id"
    );
    assert!(called.iter().all(|one| one.id != errback.id));
}

#[test]
fn a_chain_as_callback_begins_with_its_first_and_keeps_what_is_for_all_or_for_the_last() {
    let inner = json!({"task": "celery.chain", "args": [], "kwargs": {"tasks": [signature("y", &json!({})), signature("z", &json!({}))]},
        "options": {}, "subtask_type": "chain", "immutable": false});
    let chain = json!({"task": "celery.chain", "args": [7], "kwargs": {"tasks": [signature("x", &json!({})), inner]},
        "options": {"task_id": "last", "link_error": [signature("e", &json!({}))]}, "subtask_type": "chain", "immutable": false});
    let task = task(&json!({"callbacks": [chain]}), &json!({}));
    let [first] = &following(&task, Ended::Well)[..] else { panic!() };
    assert_eq!((first.headers["task"].as_str(), first.called), (Some("x"), Called::InCanvas));
    let sent = body(first);
    assert_eq!(sent[0], json!([null, 7, "own"]));
    assert_eq!(sent[2]["errbacks"], json!([signature("e", &json!({}))]));
    let names: Vec<&str> =
        sent[2]["chain"].as_array().unwrap().iter().map(|one| one["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["z", "y"]);
    assert_eq!(sent[2]["chain"][0]["options"]["task_id"], "last");
    assert_eq!(sent[2]["chain"][1]["options"].get("task_id"), None);
    assert_eq!(sent[2]["chain"][1]["options"]["link_error"], json!([signature("e", &json!({}))]));
}

#[test]
fn every_member_of_a_group_at_the_end_of_a_chain_is_called_with_its_own_id() {
    let members = [0, 1].map(|n| signature("g", &json!({"task_id": format!("g{n}"), "group_index": n})));
    let group = json!({"task": "celery.group", "args": [], "kwargs": {"tasks": members},
        "options": {"task_id": "group", "root_id": null}, "subtask_type": "group", "immutable": false});
    let called = following(&task(&json!({"chain": [group]}), &json!({})), Ended::Well);
    let seen: Vec<_> = called
        .iter()
        .map(|one| (one.id.as_str(), &one.headers["group"], &one.headers["group_index"]))
        .collect();
    assert_eq!(seen, [("g0", &json!("group"), &json!(0)), ("g1", &json!("group"), &json!(1))]);
    let behind = task(&json!({"chain": [signature("z", &json!({})), group]}), &json!({}));
    assert!(unsupported(&behind, &Limits::default()).unwrap().contains("goes on behind a group"));
}

#[test]
fn chords_and_what_cannot_be_honoured_are_refused_with_the_remedy() {
    let refused = |embed: Value| unsupported(&task(&embed, &json!({})), &Limits::default()).unwrap();
    let chord = json!({"task": "celery.chord", "kwargs": {"header": [], "body": signature("b", &json!({}))}, "options": {}, "subtask_type": "chord"});
    assert!(
        refused(json!({"chord": signature("b", &json!({}))}))
            .starts_with("canvas not supported: the message asks for a chord")
    );
    assert!(refused(json!({"chain": [chord]})).contains("a chord"));
    assert!(refused(json!({"errbacks": [chord]})).contains("a chord"));
    assert!(
        refused(json!({"chain": [signature("a", &json!({"chord": signature("b", &json!({}))}))]}))
            .contains("a chord")
    );
    assert!(refused(json!({"callbacks": [{"task": "c", "subtask_type": "chunks"}]})).contains("\"chunks\""));
    assert!(
        refused(json!({"callbacks": [signature("c", &json!({"exchange": "x"}))]})).contains("name the queue")
    );
    assert!(
        refused(json!({"callbacks": [signature("c", &json!({"expires": [1]}))]}))
            .contains("the option expires of the signature of c")
    );
    // A chord further down the chain is for whoever runs the task before it.
    let later = task(&json!({"chain": [chord, signature("a", &json!({}))]}), &json!({}));
    assert_eq!(unsupported(&later, &Limits::default()), None);
    assert_eq!(unsupported(&task(&json!({}), &json!({})), &Limits::default()), None);
}

#[test]
fn girders_objects_arrive_as_they_were_and_its_headers_go_along() {
    let sent = r#"{"py/tuple": [{"py/tuple": ["i"]}, {}, {"callbacks": null, "errbacks": null, "chord": null, "chain": [{"py/object": "celery.canvas.Signature",
        "task": "girder_worker.docker.tasks.docker_run", "args": {"py/tuple": ["busybox"]},
        "kwargs": {"container_args": [{"py/object": "girder_worker.docker.transforms.VolumePath", "filename": "a", "_volume": {"py/object": "girder_worker.docker.transforms.TemporaryVolume"}}, {"py/id": 6}],
                   "girder_result_hooks": [{"py/object": "girder_worker.docker.transforms.girder.GirderUploadVolumePathToItem", "item_id": "5", "_volumepath": {"py/id": 6}}], "girder_job_title": "t"},
        "options": {"task_id": "n"}, "subtask_type": null, "immutable": true, "__dict__": {"_app": {"py/reduce": [{"py/function": "f"}, {"py/tuple": []}]}}}]}]}"#;
    let girder = json!({"girder_api_url": "http://g/api/v1", "girder_client_token": "secret"});
    let task = body_task(sent, &girder);
    let [next] = &following(&task, Ended::Well)[..] else { panic!() };
    assert_eq!(
        (&next.headers["girder_api_url"], &next.headers["girder_client_token"]),
        (&json!("http://g/api/v1"), &json!("secret"))
    );
    assert!(!next.body.contains("girder_job_title") && !next.body.contains("_app"), "{}", next.body);
    let hook = &next.headers["girder_result_hooks"][0];
    let volume = json!({"py/object": "girder_worker.docker.transforms.VolumePath", "_volume": {"py/object": "girder_worker.docker.transforms.TemporaryVolume"}, "filename": "a"});
    assert_eq!(hook["_volumepath"], volume);
    // A worker of girder's reads it again, the second mention being the first.
    let mut message = RawMessage::new(next.body.clone().into_bytes());
    message.headers = next.headers.iter().map(|(name, value)| (name.clone(), Json::from(value))).collect();
    message.content_type = Some("application/json".to_owned());
    let Ok(Decoded::Task(again)) = decode(&message, &Limits::default()) else { panic!("{}", next.body) };
    let crate::task::Arg::List(args) = &again.args["container_args"] else { panic!() };
    assert_eq!(args[0], args[1]);
    assert_eq!(again.result_hooks.len(), 1);
}

#[test]
fn what_came_in_protocol_1_is_followed_in_protocol_1() {
    let sent = json!({"task": DOCKER_RUN, "id": "me", "args": ["busybox"], "kwargs": {}, "retries": 0, "taskset": null,
        "callbacks": [signature("py.cb", &json!({"countdown": 1}))], "errbacks": null, "chord": null, "timelimit": [null, null]});
    let mut message = RawMessage::new(sent.to_string().into_bytes());
    message.content_type = Some("application/json".to_owned());
    let Ok(Decoded::Task(task)) = decode(&message, &Limits::default()) else { panic!() };
    let [called] = &following(&task, Ended::Well)[..] else { panic!() };
    assert!(called.headers.is_empty());
    let body = body(called);
    assert_eq!(
        (&body["task"], &body["args"], &body["eta"]),
        (&json!("py.cb"), &json!([null, "own"]), &json!("2026-11-23T10:00:01.000000+00:00"))
    );
    let mut message = RawMessage::new(
        called
            .body
            .replace("py.cb", "longshore.ping")
            .replace(r#""own""#, "")
            .replace("null, ]", "null]")
            .replace(r#""k""#, r#""sleep""#)
            .into_bytes(),
    );
    message.content_type = Some("application/json".to_owned());
    assert!(matches!(decode(&message, &Limits::default()), Ok(Decoded::Task(_))), "{}", called.body);
}

#[test]
fn those_that_wait_for_a_failed_task_are_known() {
    let task = task(
        &json!({"chain": [signature("l", &json!({"task_id": "l", "reply_to": "caller"})), signature("n", &json!({"task_id": "n"})), signature("x", &json!({}))],
        "chord": signature("b", &json!({"task_id": "b"}))}),
        &json!({}),
    );
    let found = doomed(&CeleryContext::of(&task).unwrap(), &Limits::default());
    let seen: Vec<_> = found.iter().map(|one| (one.id.as_str(), one.reply_to.as_deref(), one.part)).collect();
    assert_eq!(
        seen,
        [("l", Some("caller"), Part::Chain), ("n", None, Part::Chain), ("b", None, Part::Chord)]
    );
}
