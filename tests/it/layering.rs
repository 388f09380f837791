//! Who may know whom: `use crate::` of every room against the table of `docs/design.md` §2.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Known by all rooms; know none of them, but `config` the types of the settings that it holds.
const COMMON: &[&str] = &["cancel", "crew", "error", "failpoint", "lifecycle", "retry", "units"];

/// What each room may know beside the common ones.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("task", &[]),
    ("policy", &["task"]),
    ("http", &[]),
    ("sqlite", &[]),
    ("redis", &[]),
    ("nats", &[]),
    ("events", &["task", "store", "broker"]),
    ("store", &["task", "events", "broker", "sqlite", "redis", "nats"]),
    ("broker", &["task", "events", "sqlite", "redis", "nats"]),
    ("handler", &["task", "events"]),
    ("ledger", &["task"]),
    ("ping", &["task", "events", "handler"]),
    ("girder", &["task", "http", "events", "store"]),
    ("pipeline", &["task", "events", "store", "handler", "http", "girder"]),
    ("docker", &["task", "events", "store", "handler", "http", "policy", "pipeline", "girder"]),
    ("executor", &["task", "events", "store", "broker", "handler", "ledger", "config"]),
    ("celery", &["task", "events", "broker", "ledger", "redis"]),
    ("transfer", &["task", "events", "broker", "store"]),
    ("config", &["docker", "policy", "girder"]),
];

/// The composition root and the command line know everybody.
const KNOW_ALL: &[&str] = &["worker", "cli", "main", "lib"];

#[test]
fn every_room_knows_only_whom_the_design_lets_it_know() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&root) {
        let room = room_of(&root, &file);
        let text = std::fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for part in line.split("crate::").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !name.is_empty() && name != room {
                    known.entry(room.clone()).or_default().insert(name);
                }
            }
        }
    }
    assert!(known.len() > 8, "the sources were found: {known:?}");
    let mut wrong = Vec::new();
    for (room, others) in &known {
        if KNOW_ALL.contains(&room.as_str())
            || COMMON.contains(&room.as_str()) && others.iter().all(is_common)
        {
            continue;
        }
        let Some((_, may)) = MAY_KNOW.iter().find(|(name, _)| name == room) else {
            wrong.push(format!("{room} is not in the table"));
            continue;
        };
        let not_allowed = others.iter().filter(|other| !is_common(other) && !may.contains(&other.as_str()));
        wrong.extend(not_allowed.map(|other| format!("{room} must not know {other}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[expect(clippy::ptr_arg, reason = "it is handed to iterators over strings")]
fn is_common(name: &String) -> bool {
    COMMON.contains(&name.as_str())
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") && !name.contains("tests") {
            found.push(path);
        }
    }
    found
}

/// The first component below `src`.
fn room_of(root: &Path, file: &Path) -> String {
    let below = file.strip_prefix(root).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}
